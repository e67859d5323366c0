r"""Unstructured pruning: single weights go, and what stands in their place recovers accuracy at once.

Pruning On-the-Fly (arXiv 2212.12651) prunes what training has driven near zero
(:class:`fxprune.training.Hyperspherical`), and can "instantly recover the accuracy of a pruned model by replacing the
pruned values with their mean value" [ABS]. Which threshold and whose mean the paper takes could not be found: what is
here is a reconstruction [DESIGN], and does for any trained model.

====================  ==================================================================================================
``criterion``         which weights go
====================  ==================================================================================================
``"magnitude"``       the smallest
``"lamp"``            those of the smallest layer-adaptive score (LAMP, arXiv 2010.07611 [READ]): ``w_u^2`` over the sum
                      of all squares in the layer that are not smaller. Globally; within a layer it is the magnitude
``"trained"``         the set that training drove near zero, as it recorded it
====================  ==================================================================================================

What stands in their place (``fill``): see :mod:`fxprune.linear.sparsity`. How that is written (``form``):
``"dense"``, as the weight of the layer; or ``"cheap"``, as a sparse layer plus one number per filter times a box sum of
the inputs (:mod:`fxprune.linear.split`), which is the same function [DER].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from fxprune.capture import Traced
from fxprune.errors import InputError, PreconditionError
from fxprune.graph_tools import module_of, why_hooked
from fxprune.linear.choice import patterns_of
from fxprune.linear.shares import Amounts, Shares, check_amounts, shares_of
from fxprune.linear.sparsity import (
    FILLED,
    FILLS,
    NEAR_ZERO,
    PRUNED,
    Fill,
    counts_over_layers,
    filled,
    fills_of,
    is_filled,
    lamp_scores,
    masks_of,
    note_masks,
    pruned_of,
    smallest,
)
from fxprune.linear.split import set_whole_weight, split, split_paths, whole_weight
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip


@dataclass(frozen=True)
class PruneWeights(Pass):
    """Prune single weights of convolutions and linear layers; a mean of them stands in their place.

    ``module.meta["fxprune.pruned"]`` holds the pruned entries of each layer. A later run counts them in its amount and
    adds to them, so that pruning can go by steps; their new mean is that of all that was ever pruned. A record counts
    only while the weights hold exactly what was put there: of a layer that was changed since (trained without
    ``KeepPruned``, written anew) it is dropped, which the report says, and all its weights count as kept.

    Behind it ``CalibrateBatchNorm`` does as much again for accuracy, and ``FuseBatchNorm`` keeps all values of a filter
    that are equal equal: run it before ``form="cheap"``, as nothing folds into a layer that was split. A second
    PruneWeights with the same amount splits what the first one pruned.

    Attributes:
        amount: Share of weights to prune, in [0, 1): one for all layers but the first convolution [ABS] and depthwise
            convolutions [DESIGN]; or glob patterns of paths with a share each, of which the first that matches counts.
            None for ``criterion="trained"``, whose set has its own size.
        criterion: ``"magnitude"``, ``"lamp"`` or ``"trained"``; see the top of this module.
        scope: ``"local"``: the share is one of each layer; ``"global"``: layers compete, and one weight at least stays
            in each. The trained set is what it is.
        fill: ``"filter"``, ``"layer"``, ``"sign"``, or ``"zero"`` for none.
        form: ``"dense"`` or ``"cheap"``.
        exclude: Glob patterns of paths of layers to leave whole; ``()`` for none, the first convolution included.

    Raises:
        InputError: An option is out of range, two contradict each other, or a pattern matches no layer.
        PreconditionError: The trained set is asked for, and the model has none.
    """

    name: ClassVar[str] = "prune-weights"
    keeps: ClassVar[Keeps] = Keeps.SIGNATURE

    amount: Amounts | None = None
    criterion: Literal["magnitude", "lamp", "trained"] = "magnitude"
    scope: Literal["local", "global"] = "local"
    fill: Fill = "filter"
    form: Literal["dense", "cheap"] = "dense"
    exclude: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.exclude is not None:
            object.__setattr__(self, "exclude", patterns_of(self.name, "exclude", self.exclude))
        known: dict[str, tuple[str, ...]] = {
            "criterion": ("magnitude", "lamp", "trained"),
            "scope": ("local", "global"),
            "fill": FILLS,
            "form": ("dense", "cheap"),
        }
        for option, choices in known.items():
            if getattr(self, option) not in choices:
                raise InputError(
                    f"{self.name}: {option} is {getattr(self, option)!r}; there are {', '.join(map(repr, choices))}"
                )
        if (self.amount is None) != (self.criterion == "trained"):
            raise InputError(
                f"{self.name}: amount is {self.amount!r} with criterion {self.criterion!r}: give the share of weights "
                "to prune, or criterion='trained', which takes the set that training made"
            )
        if self.amount is not None:
            check_amounts(self.name, self.amount)
        if self.scope == "global" and isinstance(self.amount, Mapping):
            raise InputError(
                f"{self.name}: layers that compete have one amount; give a number, and exclude= for layers to leave "
                "whole, or scope='local'"
            )
        if self.form == "cheap" and self.fill == "sign":
            raise InputError(
                f"{self.name}: fill='sign' leaves two values in each filter, and the cheap form holds one; use "
                "fill='filter' or form='dense'"
            )

    def requires(self, traced: Traced) -> None:
        """Refuse a model without a trained set where that is asked for."""
        if self.criterion == "trained" and not masks_of(traced.module, NEAR_ZERO):
            raise PreconditionError(
                f"{self.name}: no set of weights near zero is recorded in this model; train it with "
                "fxprune.training.Hyperspherical and take the capture that it returns, or give an amount and "
                "criterion='magnitude'"
            )

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Prune each layer that is asked for."""
        module = traced.module
        chosen = self._shares(module)
        gone, lost = pruned_of(module)
        weights = {path: whole_weight(module, path) for path in chosen.nodes}
        masks = self._masks(module, chosen, weights, {path: gone[path] for path in weights if path in gone})
        note_masks(module, PRUNED, {**gone, **{path: mask for path, mask in masks.items() if bool(mask.any())}})
        fills = {path: fill for path, fill in module.meta.get(FILLED, {}).items() if path in gone}
        for path, node in chosen.nodes.items():
            said = self._prune(module, path, weights[path], masks[path], gone.get(path))
            if said:
                fills[path] = self.fill
                said += f"; the record of an earlier pruning was dropped: {lost[path]}" if path in lost else ""
            why = "it was pruned before" if path in gone else "none of its weights is to go"
            if self.form == "cheap":
                done, why = self._split(module, path, node, masks[path], why)
                said = "; ".join(part for part in (said, done) if part)
            yield Change(path, said) if said else Skip(path, why)
        module.meta[FILLED] = fills
        dropped = {path: f"the record of its pruning was dropped: {why}" for path, why in lost.items()}
        dropped = {path: said for path, said in dropped.items() if path not in chosen.nodes}
        for path, reason in {**dropped, **chosen.skipped}.items():
            yield Skip(path, f"{reason}; {dropped[path]}" if path in dropped and path in chosen.skipped else reason)

    def _shares(self, module: fx.GraphModule) -> Shares:
        if self.amount is not None:
            return shares_of(self.name, module, self.amount, self.exclude)
        return shares_of(self.name, module, dict.fromkeys(masks_of(module, NEAR_ZERO), 0.5), self.exclude)

    def _masks(
        self, module: fx.GraphModule, chosen: Shares, weights: Mapping[str, Tensor], gone: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the entries of each layer that are to be pruned, those included that are."""
        if self.criterion == "trained":
            near = masks_of(module, NEAR_ZERO)
            return {path: near[path] | gone[path] if path in gone else near[path] for path in weights}
        if self.scope == "local":
            counts = {
                path: min(round(share * weights[path].numel()), weights[path].numel() - 1)
                for path, share in chosen.shares.items()
            }
        else:
            assert isinstance(self.amount, int | float)
            lamp = self.criterion == "lamp"
            scores = {
                path: lamp_scores(weight, gone.get(path)) if lamp else weight.abs() for path, weight in weights.items()
            }
            counts = counts_over_layers(scores, gone, self.amount)
        return {path: smallest(weight, counts[path], gone.get(path)) for path, weight in weights.items()}

    def _prune(self, module: fx.GraphModule, path: str, weight: Tensor, mask: Tensor, gone: Tensor | None) -> str:
        """Prune a layer; return what was done in words, empty if there is nothing to prune but what is gone."""
        known = gone is not None and torch.equal(mask, gone) and is_filled(weight, mask, self.fill)
        if known or not bool(mask.any()):
            return ""
        new = filled(weight, mask, self.fill)
        set_whole_weight(module, path, new, mask)
        count, size = int(mask.sum()), float(weight.norm()) or 1.0
        moved, zeroed = float((new - weight).norm()) / size, float((weight * mask).norm()) / size
        said = f"{count:,} of {mask.numel():,} weights ({100 * count / mask.numel():.1f} %)"
        if self.fill == "zero":
            return f"{said} are 0, {zeroed:.3g} of their norm"
        means = {"filter": "a mean per filter", "layer": "one mean", "sign": "a mean per filter with their sign"}
        return f"{said} hold {means[self.fill]}, which moves them by {moved:.3g} of their norm ({zeroed:.3g} with 0)"

    def _split(self, module: fx.GraphModule, path: str, node: fx.Node, mask: Tensor, why: str) -> tuple[str, str]:
        """Write a layer in the cheap form; return what was done in words, and else why it was not."""
        if path in split_paths(module):
            return "", why
        layer: Any = module_of(module, node)
        fills = fills_of(layer.weight.detach(), mask)
        assert fills is not None  # they were filled so
        if not bool(fills.any()):
            return "", f"{why}, and there is nothing to fill in: what was pruned is zero"
        if hooked := why_hooked(layer):
            return "", hooked
        split(module, node, mask, fills)
        where = "filter" if torch.unique(fills).numel() > 1 else "layer"
        return f"written as a sparse layer and a box sum times a number per {where}", ""
