"""Nothing is right until it is checked: the cut graph against the masked reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.capture.traced import redrawn
from fxprune.channels import Groups, find_groups
from fxprune.distance import distance, is_finite, relative, top
from fxprune.errors import VerifyError
from fxprune.runner import Runner, Weights
from fxprune.surgery.compensate import compensation_of
from fxprune.surgery.constants import Constant
from fxprune.surgery.kept import Kept, removal_of
from fxprune.surgery.reference import Masked

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Seen = Callable[[fx.Node, Any], None] | None
_TRIES = 4


@dataclass(frozen=True)
class Verification:
    """What the check found.

    Attributes:
        max_relative_error: The largest difference of any output, divided by the largest magnitude of that output.
        dtype: In which type both graphs were run.
        tolerance: What was allowed.
        outputs: How many tensors were compared.
        live: Whether some output moved with the inputs. Where none does (the last channel that is left is dead behind
            a ReLU, or normalised over itself), equal outputs say little about what lies before.
    """

    max_relative_error: float
    dtype: str
    tolerance: float
    outputs: int
    live: bool = True

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_relative_error <= self.tolerance

    def require_live(self) -> None:
        """Raise ``VerifyError`` where the outputs are the same for all inputs, so that equal ones prove nothing."""
        if not self.live:
            raise VerifyError(
                "the outputs of the cut model are the same for every input that was tried, so that nothing is proved "
                "by comparing them; remove less: where few channels are left, all of them may be dead behind a ReLU. "
                "Where they are to be trained next, say that this may be: PruneChannels(plan, allow_constant=True)"
            )


def verify_cut(
    traced: Traced,
    pruned: Traced,
    removed: Any,
    groups: Groups | None = None,
    *,
    calibration: Iterable[Any] | None = None,
    tolerance: float = 1e-9,
) -> Verification:
    """Check in float64 that the cut graph computes what the original does without the removed channels.

    The inputs are the example's, with one sample more where the batch is dynamic. Where the outputs do not move with
    them (the last channel that is left may be dead behind a ReLU), random ones are compared too.

    Args:
        traced: The original.
        pruned: What was cut out of it; with ``exact=True`` where the plan compensates, or the rounding of biases shows.
        removed: The plan or the removal.
        groups: The groups of ``traced``, if they are at hand.
        calibration: The batches that the cut was given.
        tolerance: The largest relative error allowed.

    Raises:
        VerifyError: It does not (the message names the first node that differs), or the outputs prove nothing because
            they are constant.
    """
    groups = groups or find_groups(traced)
    kept = Kept(groups, removal_of(removed))
    constants = compensation_of(traced, removed, kept, calibration).constants
    return verify_with(traced, pruned, kept, constants, tolerance=tolerance)


def verify_with(
    traced: Traced,
    pruned: Traced,
    kept: Kept,
    constants: Mapping[str, Constant],
    *,
    tolerance: float = 1e-9,
    inputs: Inputs | None = None,
    weights: tuple[Weights | None, Weights | None] = (None, None),
) -> Verification:
    """Check as :func:`verify_cut` does, with what the removed channels hold where they are read already known.

    ``inputs`` are taken in place of the example's. ``weights`` gives the tensors of the original and of the cut model
    where these hold no data; a layer's are asked for when it runs.
    """
    sides = _Sides(traced, pruned, kept, constants, weights)
    inputs, reference = _reference(sides) if inputs is None else (inputs, sides.reference().run_flat(*inputs))
    try:
        found = sides.small().run_flat(*inputs)
    except Exception as error:  # a graph raises whatever its operations raise
        raise VerifyError(f"the cut model does not run where the original does: {error}") from error
    result = _compare(sides, inputs, found, reference, tolerance)
    if _rows_differ(found, inputs, traced):
        return result
    return _compare_elsewhere(sides, inputs, found, result)


def _compare(
    sides: _Sides, inputs: Inputs, found: list[Tensor], reference: list[Tensor], tolerance: float
) -> Verification:
    """Compare all outputs at one input."""
    if len(reference) != len(found):
        raise VerifyError(f"the cut model has {len(found)} outputs, the original {len(reference)}")
    if all(_is_vacuous(output) for output in reference):
        raise VerifyError(
            f"every output of the reference is one constant (or not finite){_unfit(sides.traced.module)}, so comparing "
            "with it proves nothing; load trained weights, or give layers whose weights are all zero (often the last "
            "one) random values first"
        )
    errors = [relative_error(a, b) for a, b in zip(found, reference, strict=True)]
    result = Verification(max(errors), "float64", tolerance, len(errors))
    if not result.ok:
        where = _first_difference(sides, inputs, tolerance)
        raise VerifyError(
            f"the cut model differs from the masked reference by {result.max_relative_error:.3g} "
            f"(allowed: {tolerance:g}); {where}"
        )
    return result


def _rows_differ(outputs: list[Tensor], inputs: Inputs, traced: Traced) -> bool:
    """Whether some output tells the first sample from the last, which is the first at half its size."""
    if not traced.batch_is_dynamic:
        return False
    sizes = {leaf.shape[0] for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim}
    rows = [output for output in outputs if output.ndim and output.shape[0] in sizes - {1}]
    return any(_moved([output[:1]], [output[-1:]]) for output in rows)


def _compare_elsewhere(sides: _Sides, inputs: Inputs, found: list[Tensor], result: Verification) -> Verification:
    """Compare at other inputs too, the first where the outputs are not what they were.

    Outputs that are the same for all inputs agree with anything that shares their last bias.
    """
    for seed in range(1, _TRIES + 1):
        others = _redrawn(inputs, seed)
        try:
            now = sides.small().run_flat(*others)
        except Exception:  # random values are no input of every model: offsets ascend, indices stay inside
            continue
        if all(bool(output.isfinite().all()) for output in now) and _moved(found, now):
            there = _compare(sides, others, now, sides.reference().run_flat(*others), result.tolerance)
            return max(result, there, key=lambda one: one.max_relative_error)
    # Ids may all be one value in the example; that others would change nothing is not known then.
    floats = any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in pytree.tree_leaves(inputs))
    return replace(result, live=not floats)


def _moved(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether any output is another, by more than rounding."""
    return any(not relative_error(b, a) <= 1e-12 for a, b in zip(before, after, strict=True))


def _redrawn(inputs: Inputs, seed: int) -> Inputs:
    """Return random inputs of the same shapes."""
    generator = torch.Generator().manual_seed(seed)

    def other(leaf: Any) -> Any:
        return redrawn(leaf, leaf.shape, generator) if isinstance(leaf, Tensor) and leaf.numel() else leaf

    found: Inputs = pytree.tree_map(other, inputs)
    return found


@dataclass(frozen=True)
class _Sides:
    """What is compared: the original as the masked reference, and what was cut out of it."""

    traced: Traced
    pruned: Traced
    kept: Kept
    constants: Mapping[str, Constant]
    weights: tuple[Weights | None, Weights | None]

    def reference(self, seen: Seen = None) -> Masked:
        return Masked(self.traced.module, self.kept, self.constants, seen=seen, weights=self.weights[0])

    def small(self, seen: Seen = None) -> Runner:
        return Runner(self.pruned.module, seen=seen, weights=self.weights[1])


def _reference(sides: _Sides) -> tuple[Inputs, list[Tensor]]:
    """Run the reference at another batch and image size than the example's, where it can be; return the inputs too.

    The labels were worked out at the size of the example. Some mistakes only show at another: a reshape may split it
    by chance where it would split no other.
    """
    traced = sides.traced
    inputs: Inputs = (traced.args, traced.kwargs)
    if traced.batch_is_dynamic:
        leaves, nested = pytree.tree_flatten(inputs)
        tries: list[Inputs] = [pytree.tree_unflatten(map(_one_more, leaves, traced.batches()), nested)]
        if traced.another_size is not None:  # some models take multiples of their stride only
            tries = [traced.inputs(traced.batch + 1, scale=scale) for scale in (traced.another_size, 2.0)] + tries
        for larger in tries:
            try:
                return larger, sides.reference().run_flat(*larger)
            except Exception:  # an input whose first dimension is no batch, or a size that the model cannot take
                continue
    try:
        return inputs, sides.reference().run_flat(*inputs)
    except Exception as error:
        raise VerifyError(
            f"the original does not run in float64, so that nothing can be compared with it: {error}; "
            "switch the check off (verify=False) and compare on data of your own"
        ) from error


def _one_more(leaf: Any, batch: int | None) -> Any:
    if not isinstance(leaf, Tensor) or batch is None or leaf.shape[0] != batch:
        return leaf
    # Half as large, to see whether outputs depend on it; any other value might be no input of this model.
    return torch.cat([leaf, leaf[:1] / 2 if leaf.is_floating_point() else leaf[:1]])


def _unfit(module: nn.Module) -> str:
    """Name weights that are no numbers."""
    found = [
        name
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        if tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all())
    ]
    return f", and {', '.join(found[:3])} {'hold' if len(found) > 1 else 'holds'} values that are not" if found else ""


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Return how far an output of a graph is from its reference; the stricter use of :mod:`fxprune.distance`.

    The scale is the largest magnitude of the reference itself (1 where that is zero everywhere), so that a small output
    counts as much as a large one. Where either is not finite it is infinite, also for equal infinities and for NaN in
    the same places: a proof needs numbers that could have differed.
    """
    if not is_finite(found) or not is_finite(reference):
        return float("inf")
    return relative(distance(found, reference), top(reference) or 1.0)


def _is_vacuous(output: Tensor) -> bool:
    if output.numel() < 2:
        return False
    values = output.double() if not output.is_complex() else output.abs().double()
    return not bool(torch.isfinite(values).all()) or float(values.max() - values.min()) == 0.0


def _first_difference(sides: _Sides, inputs: Inputs, tolerance: float) -> str:
    """Name the first node whose kept values differ.

    Holds all values of both runs, so it is only called when the check has failed.
    """
    ones: dict[str, Any] = {}
    others: dict[str, Any] = {}
    sides.reference(lambda node, value: ones.update({node.name: value})).run_flat(*inputs)
    sides.small(lambda node, value: others.update({node.name: value})).run_flat(*inputs)
    for node in sides.traced.module.graph.nodes:
        a, b = ones.get(node.name), others.get(node.name)
        if node.op == "output" or not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        for d, mask in enumerate(sides.kept.masks(node)):
            if mask is not None:
                a = a.index_select(d, torch.from_numpy(np.flatnonzero(mask)))
        if relative_error(b, a) > tolerance:
            where = node.meta.get("source") or node.meta.get("path") or "unknown place"
            return f"the first node that differs is {node.name} ({node.target}, {where})"
    return "no single node differs"
