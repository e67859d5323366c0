r"""Unstructured sparsity: which single weights go, what stands in their place, and the record of it.

Pruned values are replaced by a mean, which *instantly recovers* accuracy (Pruning On-the-Fly, arXiv 2212.12651 [ABS]).
Whose mean could not be found, so there are three [DESIGN]. With ``P`` the pruned entries of a filter ``w``:

* ``"filter"``: ``c = mean of w over P``. For inputs with independent entries of mean ``mu`` and variance ``sigma^2``
  the error of the output is ``mu^2 (sum over P of w - c)^2 + sigma^2 sum over P of (w - c)^2``, and this ``c`` is the
  minimum of both terms [DER];
* ``"layer"``: the same over all filters of the layer: one number;
* ``"sign"``: ``+c`` or ``-c`` by the sign of each value (0 is positive), ``c = mean of |w| over P``, per filter; a bit
  more per weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, fx

Fill = Literal["zero", "filter", "layer", "sign"]
FILLS: tuple[Fill, ...] = ("zero", "filter", "layer", "sign")

NEAR_ZERO = "fxprune.near_zero"
"""Key in a graph module's ``meta``: path of a layer -> the entries of its weight that training drove to zero."""
PRUNED = "fxprune.pruned"
"""Key in a graph module's ``meta``: path of a layer -> the entries of its weight that were pruned, as booleans."""
FILLED = "fxprune.pruned_fill"
"""Key in a graph module's ``meta``: path of a layer -> what stands in the place of those: one of :data:`FILLS`."""


class Pruned(NamedTuple):
    """The record of pruned entries, held against the weights.

    Attributes:
        masks: Path -> the pruned entries, as booleans, of layers whose weights hold what was put in their place.
        lost: Path -> why its record says nothing of the layer any more.
    """

    masks: dict[str, Tensor]
    lost: dict[str, str]


CHANGED = "its weights were changed since, and what was pruned holds several values"
"""Why a record is lost: a training without ``KeepPruned`` does this, and so does a rewriting of the layer."""


def masks_of(module: fx.GraphModule, key: str) -> dict[str, Tensor]:
    """Return one of the records of entries; of layers that are gone or have another shape now there is none."""
    weights = dict(module.named_parameters(remove_duplicate=False))
    found = {}
    for path, mask in module.meta.get(key, {}).items():
        weight = weights.get(f"{path}.sparse.weight", weights.get(f"{path}.weight"))  # split, see linear/split.py
        if weight is not None and weight.shape == mask.shape:
            found[path] = mask.to(weight.device)
    return found


def pruned_of(module: fx.GraphModule) -> Pruned:
    """Return which entries are pruned, of layers that still hold exactly what was put in their place, and which do not.

    A record outlives what it is of: weights may be trained without it, or written anew.
    """
    masks = masks_of(module, PRUNED)
    fills: Mapping[str, Fill] = module.meta.get(FILLED, {})
    weights = dict(module.named_parameters(remove_duplicate=False))
    lost = {path: "it is gone or has another shape" for path in module.meta.get(PRUNED, {}) if path not in masks}
    for path, mask in list(masks.items()):
        sparse = weights.get(f"{path}.sparse.weight")
        fill = fills.get(path, "sign") if sparse is None else "zero"
        if not is_filled(weights[f"{path}.weight"] if sparse is None else sparse, mask, fill):
            lost[path] = CHANGED
            del masks[path]
    return Pruned(masks, lost)


def note_masks(module: fx.GraphModule, key: str, masks: Mapping[str, Tensor]) -> None:
    """Replace one of the records of entries; copies of the module keep theirs."""
    module.meta[key] = dict(masks)


# ---------------------------------------------------------------- which weights go


def smallest(weight: Tensor, count: int, gone: Tensor | None = None) -> Tensor:
    """Return the entries of smallest size, so many in all, as booleans; of equal ones the first.

    Args:
        weight: Any shape.
        count: How many; below the number of entries.
        gone: Entries that are among them in any case, with fewer than ``count`` of them, or else they alone are
            returned.
    """
    mask = torch.zeros_like(weight, dtype=torch.bool) if gone is None else gone.clone()
    more = count - int(mask.sum())
    if more > 0:
        sizes = weight.detach().abs().double().masked_fill(mask, torch.inf).flatten()
        mask.view(-1)[sizes.argsort(stable=True)[:more]] = True
    return mask


def lamp_scores(weight: Tensor, gone: Tensor | None = None) -> Tensor:
    """Return the layer-adaptive magnitude (LAMP, arXiv 2010.07611, section 6.1 [READ S6]) of each entry, in float64.

    ``w_u^2 / sum of w_v^2`` over all surviving v that are not smaller than u, u included: the largest has the score 1.
    Of equal entries the first counts as the smaller. Entries that are gone have the score 0.

    Args:
        weight: Any shape.
        gone: Entries that do not survive.
    """
    squares = weight.detach().double().square().flatten()
    if gone is not None:
        squares = squares.masked_fill(gone.flatten(), 0.0)
    ordered, order = squares.sort(stable=True)
    tails = ordered.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = torch.where(tails > 0, ordered / tails, 0.0)
    return scores.reshape(weight.shape)


def counts_over_layers(scores: Mapping[str, Tensor], gone: Mapping[str, Tensor], share: float) -> dict[str, int]:
    """Return how many entries of each layer go, where layers compete: those of the smallest scores over all.

    Args:
        scores: Path -> a score per entry.
        gone: Path -> entries that are gone already; they count among the share.
        share: Of all entries.

    Returns:
        Path -> number of entries, those included that are gone. One entry at least stays in each layer.
    """
    total = sum(each.numel() for each in scores.values())
    old = {path: int(gone[path].sum()) if path in gone else 0 for path in scores}
    more = total - round((1 - share) * total) - sum(old.values())
    if more <= 0:
        return old
    survivors = [
        each.flatten()[~gone[path].flatten()] if path in gone else each.flatten() for path, each in scores.items()
    ]
    owner = torch.cat([torch.full((len(each),), number) for number, each in enumerate(survivors)])
    values = torch.cat([each.double().cpu() for each in survivors])
    first = values.argsort(stable=True)[:more]
    taken = torch.bincount(owner[first], minlength=len(survivors)).tolist()
    return {
        path: min(old[path] + taken[number], scores[path].numel() - 1) for number, path in enumerate(scores)
    }  # fmt: skip


# ---------------------------------------------------------------- what stands in their place


def filled(weight: Tensor, pruned: Tensor, fill: Fill) -> Tensor:
    """Return a weight whose pruned entries hold a mean of what they held, in float64.

    Args:
        weight: (filters, ...).
        pruned: The same shape, booleans.
        fill: Whose mean: see the top of this module; ``"zero"`` for none.
    """
    rows, where = weight.detach().double().flatten(1), pruned.flatten(1)
    if fill == "zero":
        values = torch.zeros_like(rows)
    elif fill == "layer":
        values = (rows * where).sum() / where.sum().clamp(min=1) * torch.ones_like(rows)
    else:
        sizes = rows.abs() if fill == "sign" else rows
        means = (sizes * where).sum(1, keepdim=True) / where.sum(1, keepdim=True).clamp(min=1)
        values = torch.where(rows < 0, -means, means) if fill == "sign" else means.expand_as(rows)  # 0 is positive
    return torch.where(where, values, rows).reshape(weight.shape)


def fills_of(weight: Tensor, pruned: Tensor) -> Tensor | None:
    """Return the one value that all pruned entries of each filter hold, or None where they hold several.

    Args:
        weight: (filters, ...).
        pruned: The same shape, booleans.

    Returns:
        (filters,) in the weight's type; 0 for filters without pruned entries.
    """
    rows, where = weight.detach().flatten(1), pruned.flatten(1)
    first = rows.gather(1, where.to(torch.int8).argmax(1, keepdim=True))
    if bool((where & (rows != first)).any()):
        return None
    return torch.where(where.any(1), first[:, 0], torch.zeros_like(first[:, 0]))


def is_filled(weight: Tensor, pruned: Tensor, fill: Fill) -> bool:
    """Whether all pruned entries hold what :func:`filled` puts there, as far as can be seen.

    One value per filter will do for ``"layer"`` too: what was folded into the layer since has scaled its filters.
    """
    if fill == "zero":
        return not bool(weight.detach()[pruned].any())
    return fills_of(weight.abs() if fill == "sign" else weight, pruned) is not None
