"""How much each removable unit matters.

A unit's score combines all its slices in all parameters, output and input side, and is normalised by the number of
elements, so that a unit with many members is neither favoured nor punished. Every score works on whole arrays: norms
per index of each axis, then one sum per class.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from difflib import get_close_matches

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fxprune.channels import Groups
from fxprune.errors import InputError

Scores = NDArray[np.float64]
Importance = str | Callable[[Groups], Scores]
_MATRIX = 2**24  # elements of the distance matrix that fpgm holds at a time


def score(groups: Groups, importance: Importance, seed: int = 0) -> Scores:
    """Return one score per class; the lower, the sooner it goes. NaN means "no score": such a unit is kept.

    Args:
        groups: the channel groups.
        importance: ``l1``, ``l2``, ``bn_scale``, ``taylor``, ``fpgm``, ``lamp``, ``random``, or a function from the
            groups to one number per class.
        seed: for ``random``.

    Raises:
        InputError: the name is unknown, no removable unit gets a score, or the function returns something else than one
            number per class.
    """
    if callable(importance):
        return _checked(importance(groups), groups, getattr(importance, "__name__", "the importance function"))
    check_importance(importance)
    if importance == "random":
        return np.random.default_rng(seed).random(len(groups.live))
    if empty := next((name for name, _, _, tensor in _slices(groups) if tensor.is_meta), None):
        raise InputError(
            f"{empty} has no data (it is on the meta device), so that importance {importance!r} cannot be computed; "
            "give importance='random', or Shards(...).importance('l2') of fxprune.deploy.streaming, which reads files"
        )
    with torch.no_grad():
        scores = _NAMED[importance](groups)
    if groups.live.any() and np.isnan(scores[groups.live]).all():
        general = (
            f"Importance {importance!r} gives no removable unit of this model a score (magnitudes are those of real "
            "parameters); use another, such as 'random', or pass a function."
        )
        raise InputError(_NO_SCORE.get(importance, general))
    return scores


def check_importance(importance: Importance) -> None:
    """Raise an ``InputError`` unless it is a function or a known name."""
    if callable(importance) or importance in (*_NAMED, "random"):
        return
    near = get_close_matches(str(importance), [*_NAMED, "random"], 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join([*_NAMED, "random"])
    raise InputError(f"There is no importance {importance!r}.{hint} Use one of {names}, or pass a function.")


def comparable(importance: Importance) -> bool:
    """Return whether scores of different layers can be ranked as they are; magnitudes cannot, before normalisation."""
    return callable(importance) or importance in ("bn_scale", "taylor", "lamp", "random")


def total_importance(groups: Groups, importance: Importance, scores: Scores) -> Scores:
    """Return what is lost with each class, elements and all: for ``l2`` its squared norm, for ``l1`` its norm.

    Scores are per element, so that units of different sizes can be ranked; a sum over what was removed counts each
    element. A function's scores are taken as they are.
    """
    if callable(importance):
        return scores
    values = [(labels, np.full(len(labels), t.numel() / t.shape[dim])) for _, dim, labels, t in _slices(groups)]
    if not values:
        return scores
    labels, counts = (np.concatenate(part) for part in zip(*values, strict=True))
    elements = np.bincount(labels, counts, len(groups.live))
    return np.asarray(elements * (scores**2 if importance == "l2" else scores))


def _slices(groups: Groups) -> Iterator[tuple[str, int, NDArray[np.int64], nn.Parameter]]:
    """Yield every labelled axis of every floating-point parameter."""
    parameters = dict(groups.traced.module.named_parameters())
    for name, dim in groups.parameters:
        labels = groups.axis(name, dim)
        if labels is not None and name in parameters and parameters[name].is_floating_point():
            yield name, dim, labels, parameters[name]


def _mean_per_class(groups: Groups, values: list[tuple[NDArray[np.int64], Scores, float]]) -> Scores:
    """Return for each class the sum of its values, divided by the sum of its elements; NaN where it has none."""
    classes = len(groups.live)
    if not values:
        return np.full(classes, np.nan)
    labels = np.concatenate([labels for labels, _, _ in values])
    total = np.bincount(labels, np.concatenate([value for _, value, _ in values]), classes)
    elements = np.bincount(
        labels, np.concatenate([np.full(len(labels), count) for labels, _, count in values]), classes
    )
    return _ratio(total.astype(np.float64), elements.astype(np.float64))


def _ratio(total: Scores, count: Scores) -> Scores:
    return np.asarray(np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0))


def _sums(tensor: torch.Tensor, dim: int, order: float) -> Scores:
    """Return the sum of |w|^order over all dimensions but ``dim``."""
    others = [other for other in range(tensor.dim()) if other != dim]
    tensor = tensor.detach().float()
    if tensor.dim() == 2 and dim == 1 and order in (1.0, 2.0):  # ten times as fast as a norm over columns
        powers = tensor.abs() if order == 1.0 else tensor.square()
        return np.asarray(powers.sum(0).double().cpu().numpy())
    norms = torch.linalg.vector_norm(tensor, order, others) if others else tensor.abs()
    return np.asarray(norms.double().cpu().numpy() ** order)


def magnitude_of(groups: Groups, order: float, weights: Callable[[str], torch.Tensor]) -> Scores:
    """Return the mean of |w|^order of each unit, to the power of 1 / order, of weights that are asked for by name.

    Each is asked for once, and not kept. The model's own may be without data.
    """
    values: list[tuple[NDArray[np.int64], Scores, float]] = []
    for name, slices in itertools.groupby(_slices(groups), key=lambda found: found[0]):
        tensor = weights(name)
        values += [
            (labels, _sums(tensor, dim, order), tensor.numel() / tensor.shape[dim]) for _, dim, labels, _ in slices
        ]
    return np.asarray(_mean_per_class(groups, values) ** (1.0 / order))


def _magnitude(groups: Groups, order: float) -> Scores:
    return magnitude_of(groups, order, groups.traced.module.get_parameter)


def l1(groups: Groups) -> Scores:
    """Mean absolute weight of a unit."""
    return _magnitude(groups, 1.0)


def l2(groups: Groups) -> Scores:
    """Root mean square of a unit's weights."""
    return _magnitude(groups, 2.0)


def lamp(groups: Groups) -> Scores:
    """Layer-adaptive magnitude (Lee et al. 2021, arXiv 2010.07611) of whole units instead of single weights.

    The mean square of a unit over the sum of those of its family that are at least as large: the best unit of each
    family scores 1.
    """
    energy = _magnitude(groups, 2.0) ** 2
    scores = np.full_like(energy, np.nan)
    for family in groups.families:
        order = family[np.argsort(energy[family], kind="stable")]
        rest = np.cumsum(energy[order][::-1])[::-1]
        scores[order] = np.divide(energy[order], rest, out=np.zeros_like(rest), where=rest > 0)
    return scores


def bn_scale(groups: Groups) -> Scores:
    """Mean absolute scale of a unit's batch norms (Liu et al. 2017, arXiv 1708.06519); NaN where it meets none."""
    scales = _batchnorm_scales(groups)
    values = [(labels, _sums(tensor, dim, 1.0), 1.0) for name, dim, labels, tensor in _slices(groups) if name in scales]
    return _mean_per_class(groups, values)


def _batchnorm_scales(groups: Groups) -> set[str]:
    module = groups.traced.module
    names = {
        f"{name}.weight" for name, child in module.named_modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)
    }
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if (
            schema is not None
            and "batch_norm" in schema.name
            and len(node.args) > 1
            and getattr(node.args[1], "op", "") == "get_attr"
        ):
            names.add(str(node.args[1].target))
    return names


def taylor(groups: Groups) -> Scores:
    """First-order Taylor, squared (Molchanov et al. 2019, arXiv 1906.10771), from the gradients in ``param.grad``.

    Per parameter axis the change of the loss when the unit goes is the sum of gradient times weight over its slices;
    the score is the mean of the squared changes over the axes that have a gradient. Accumulate gradients by calling
    ``backward`` on the original model, without an optimiser step.
    """
    classes = len(groups.live)
    total, axes = np.zeros(classes), np.zeros(classes)
    for _, dim, labels, tensor in _slices(groups):
        if tensor.grad is not None:
            others = [other for other in range(tensor.dim()) if other != dim]
            change = (tensor.grad.float() * tensor.detach().float()).double()
            change = change.sum(others) if others else change
            present = np.unique(labels)
            total[present] += np.bincount(labels, change.cpu().numpy(), classes)[present] ** 2
            axes[present] += 1
    return _ratio(total, axes)


def fpgm(groups: Groups) -> Scores:
    """Distance to the geometric median (He et al. 2019, arXiv 1811.00250): units close to all others go first.

    Per weight axis, the mean distance of a unit's slice to those of the other units with as many indices; the root of
    the summed squares over the axes, per element. Vectors and biases have no geometry and are left out.
    """
    values = []
    for _, dim, labels, tensor in _slices(groups):
        if tensor.dim() > 1:
            present, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
            order = np.argsort(inverse, kind="stable")
            for count in np.unique(counts):
                chosen = order[(counts == count)[inverse[order]]]
                rows = (
                    tensor.detach().float().movedim(dim, 0)[torch.from_numpy(chosen)].reshape(len(chosen) // count, -1)
                )
                values.append((present[counts == count], _mean_distance(rows) ** 2, float(rows.shape[1])))
    return np.asarray(_mean_per_class(groups, values) ** 0.5)


def _mean_distance(rows: torch.Tensor) -> Scores:
    """Return the mean Euclidean distance of each row to the others, holding a bounded part of the matrix at a time."""
    step = max(1, _MATRIX // len(rows))
    parts = [torch.cdist(rows[start : start + step], rows).sum(1) for start in range(0, len(rows), step)]
    return np.asarray(torch.cat(parts).double().cpu().numpy() / max(len(rows) - 1, 1))


def _checked(values: object, groups: Groups, name: str) -> Scores:
    """Return a user's scores as an array, or say what is wrong with them."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        scores = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Importance {name} must return one number per class, but its result is no array of numbers: {error}."
        ) from error
    if scores.shape != groups.live.shape:
        raise InputError(
            f"Importance {name} must return one number per class, shape {groups.live.shape}, "
            f"but returned {scores.shape}."
        )
    if np.isinf(scores[groups.live]).any():
        raise InputError(
            f"Importance {name} returned infinite scores; use NaN for units that must stay and finite numbers "
            "for all others."
        )
    if groups.live.any() and np.isnan(scores[groups.live]).all():
        raise InputError(
            f"Importance {name} returned NaN for every removable unit, so nothing may go; "
            "return finite numbers for those that may."
        )
    return scores


_NAMED: dict[str, Callable[[Groups], Scores]] = {
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "taylor": taylor,
    "fpgm": fpgm,
    "lamp": lamp,
}
_NO_SCORE = {
    "taylor": "Importance 'taylor' needs gradients, but no parameter of this model has any: "
    "run the loss and backward() on a few batches with the "
    "original model (its parameters are shared with the graph) before making the plan, and do not zero the gradients.",
    "bn_scale": "Importance 'bn_scale' needs batch norms, but no removable unit of this model meets one; "
    "use another one, such as 'l2'.",
}
