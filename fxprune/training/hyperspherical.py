r"""Pruning on the fly: training that leaves some weights far from zero, and the rest so near that they can go.

Pruning On-the-Fly (arXiv 2212.12651) prunes without retraining, by "hyperspherical learning" and "loss penalty terms":
some weights are pushed "far from zero, while the rest weight values are pushed near zero and can be safely pruned with
no need for retraining" [ABS]. Formulas, weights and schedule of the paper could not be found. What is here is a
reconstruction that fits the abstract [DESIGN], not the paper's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture import Traced
from fxprune.errors import InputError
from fxprune.graph_tools import tensor_uses
from fxprune.linear.shares import Amounts, shares_of
from fxprune.linear.sparsity import NEAR_ZERO, note_masks
from fxprune.training.objectives import Objective, check_same_options
from fxprune.training.spheres import norms_of, retract, to_plain, to_sphere, unit


@dataclass(frozen=True)
class TwoSided:
    """The penalty on the weights of a layer whose filters have norm 1 [DESIGN].

    With the set ``P`` that is to go to zero and the rest ``K``::

        t      = the share-quantile of |v| over the layer      P = {|v| <= t}, K = the rest
        near   = mean over filters of sum over P of v^2        = mean of 1 - cos^2 of a filter and its kept part [DER]
        far    = mean over K of relu(edge - |v|)^2 * d         edge = margin / sqrt(d (1 - share))
        loss   = near + far_weight * far

    ``d`` is the number of weights of a filter, so that ``edge`` is the size that all kept weights would have if they
    were equal, times the margin. In each filter the largest weight is kept in any case.

    Attributes:
        far_weight: Weight of the second term.
        margin: How far from zero kept weights are to be, in (0, 1].
    """

    far_weight: float = 0.1
    margin: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.far_weight < float("inf") or not 0 < self.margin <= 1:
            raise InputError(f"{self} makes no sense: far_weight must be 0 or above, and finite, and margin in (0, 1]")

    def edge(self, share: float, size: int) -> float:
        """Return the size below which kept weights are pushed away from zero, for filters of so many weights."""
        return float(self.margin / (size * (1 - share)) ** 0.5)

    def loss(self, weight: Tensor, near: Tensor, share: float) -> Tensor:
        """Return the penalty of a layer: a scalar.

        Args:
            weight: (filters, ...), each of norm 1.
            near: The set P, as booleans of the same shape.
            share: The share of weights that is to be near zero, in (0, 1).
        """
        rows, where = weight.flatten(1), near.flatten(1)
        loss = (rows.square() * where).sum(1).mean()
        if self.far_weight:
            short = (self.edge(share, rows.shape[1]) - rows.abs()).relu().square() * ~where
            loss = loss + self.far_weight * rows.shape[1] * short.sum() / (~where).sum()
        return loss


def near_set(weight: Tensor, share: float) -> Tensor:
    """Return the weights of a layer that are to go to zero: those up to the quantile, but of each filter the largest.

    Of weights of one size the first go, so that it is never more than the share.

    Args:
        weight: (filters, ...).
        share: In [0, 1).
    """
    sizes = weight.detach().abs().flatten(1)
    count = min(round(share * sizes.numel()), sizes.numel() - 1)
    if count < 1:
        return torch.zeros_like(weight, dtype=torch.bool)
    edge = sizes.flatten().kthvalue(count).values  # torch.quantile has a limit of 16 million
    spared = torch.zeros_like(sizes, dtype=torch.bool).scatter_(1, sizes.argmax(1, keepdim=True), True)
    below, at = sizes < edge, (sizes == edge) & ~spared
    first = at.flatten().cumsum(0).reshape(at.shape) <= count - below.sum()
    where = (below & ~spared) | (at & first)
    return where.reshape(weight.shape)


class Hyperspherical(Objective):
    """Trains filters on the unit sphere under a two-sided penalty, for pruning without retraining.

    It begins on a trained model or a fresh one: the layers whose weights are to be pruned become hyperspherical
    (:mod:`fxprune.training.spheres`) without moving an output. On the sphere the squares of a filter's weights sum up
    to 1, so that what leaves some must go to the others; a penalty without it is met by shrinking the layer [DER].

    To the loss is added ``strength * min(1, progress / warmup)`` times the mean of :class:`TwoSided` over layers. Which
    weights are to be near zero is looked at anew in each step, up to ``freeze`` of the training: from then on they are
    the ones [DESIGN]. :meth:`finish` makes plain layers of them and records the set::

        done = finetune(traced, train, recipe=Recipe(...), objectives=[
            lambda model: Hyperspherical.begin(traced.with_module(model), 0.5)])
        pruned = Pipeline([passes.PruneWeights(criterion="trained")])(done.traced).traced

    In a loop of your own, with ``model = traced.module``::

        sphere = Hyperspherical.begin(traced, 0.5, steps=len(loader) * epochs)
        optimizer = ...                                         # now: parameters may have been added
        for x, y in batches:
            loss = criterion(model(x), y) + sphere.extra_loss()
            optimizer.zero_grad(); loss.backward(); sphere.after_backward()
            optimizer.step(); sphere.after_step()
        trained = sphere.finish()

    Recipes spare weights on the sphere from weight decay, which would do nothing but change their rate; in a loop of
    your own do the same with ``fxprune.training.spheres.sphere_weights(model)``.

    Args:
        traced: The capture around the module that is trained, which is changed.
        amount: Share of weights to drive to zero: a number for all layers but the first convolution [ABS] and depthwise
            convolutions [DESIGN]; or glob patterns of paths with a share each, of which the first that matches counts.
        exclude: Glob patterns of layers to leave as they are; ``()`` for none, the first convolution included.
        strength: Largest weight of the penalty; 0 for the sphere alone. A short training may take ten times as much.
        penalty: Its two sides.
        warmup: Share of the training in which the strength rises from 0.
        freeze: Share of the training behind which the set stays the same.
        steps: Steps of the optimiser in all; None where ``finetune`` says it.
        sphere: Whether layers become hyperspherical. Without (for comparison) the penalty is on weights as they are,
            divided by the mean norm of their layer's filters when training began.

    Layers whose weight is not trained are left as they are; ``skipped`` says so.

    Raises:
        InputError: An option is out of range, a pattern matches no layer, or no layer has weights to prune.
    """

    keeps_last = True

    def __init__(  # noqa: PLR0913 - each is one choice of the method
        self,
        traced: Traced,
        amount: Amounts = 0.5,
        *,
        exclude: str | Sequence[str] | None = None,
        strength: float = 1.0,
        penalty: TwoSided | None = None,
        warmup: float = 0.5,
        freeze: float = 0.7,
        steps: int | None = None,
        sphere: bool = True,
    ) -> None:
        if not (0 <= strength < float("inf") and 0 <= warmup <= 1 and 0 <= freeze <= 1):
            raise InputError(
                f"strength={strength} must be 0 or above, and finite, and warmup={warmup} and freeze={freeze} shares "
                "of the training, in [0, 1]"
            )
        self.traced, self.strength, self.penalty = traced, strength, penalty or TwoSided()
        self.warmup, self.freeze, self.iteration = warmup, freeze, 0
        self.steps: int | None = None
        chosen = shares_of(type(self).__name__, traced.module, amount, exclude)
        self.shares, self.skipped = chosen.shares, chosen.skipped
        for path in [path for path in self.shares if not self._layer(path).weight.requires_grad]:
            del self.shares[path]
            self.skipped[path] = "its weight is not trained (requires_grad is False), so nothing drives it to zero"
        if not self.shares:
            raise InputError(
                "no layer has weights to drive to zero: "
                + ("; ".join(f"{path}: {why}" for path, why in self.skipped.items()) or "there is no such layer")
            )
        self.near: dict[str, Tensor] = {}  # once it is frozen
        self.sizes: dict[str, float] = {}
        uses = tensor_uses(traced.module)
        for path in self.shares:
            if sphere:
                to_sphere(traced.module, chosen.nodes[path], uses)
            else:
                self.sizes[path] = float(norms_of(self._layer(path).weight.detach().double()).mean()) or 1.0
        if steps is not None:
            self.expect(steps)

    def expect(self, steps: int) -> None:
        """Hear how many steps there will be."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps is {steps!r}; give the number of steps of the whole training")
        self.steps = steps

    @property
    def factor(self) -> float:
        """The weight of the penalty in the step that comes."""
        rising = self.warmup * self._steps()
        return self.strength * (min(1.0, self.iteration / rising) if rising else 1.0)

    def directions(self, path: str) -> Tensor:
        """Return the weight of a layer as the penalty sees it, with gradients: (filters, ...)."""
        weight: Tensor = self._layer(path).weight
        return weight / self.sizes[path] if path in self.sizes else unit(weight)

    def sets(self) -> dict[str, Tensor]:
        """Return the weights of each layer that are to be near zero, as they are now or were frozen."""
        return self.near or {path: near_set(self.directions(path), share) for path, share in self.shares.items()}

    def extra_loss(self) -> Tensor | float:
        """Return the weighted penalty of the weights as they are: a scalar in float32 or wider.

        Raises:
            InputError: Nobody has said how many steps there will be.
        """
        factor = self.factor
        if not factor:
            return 0.0
        terms, sets = [], self.sets()
        for path, share in self.shares.items():
            with torch.autocast(self._layer(path).weight.device.type, enabled=False):
                weight = self.directions(path)
                wide = weight if weight.dtype is torch.float64 else weight.float()
                terms.append(self.penalty.loss(wide, sets[path].to(wide.device), share))
        return factor * torch.stack(terms).mean()

    def after_step(self) -> None:
        """Go back to the sphere, count the step, and freeze the sets when it is time."""
        for path in self.shares:
            retract(self._layer(path))
        self.iteration += 1
        if not self.near and self.iteration >= self.freeze * self._steps():
            self.near = {path: each.clone() for path, each in self.sets().items()}

    def finish(self) -> Traced:
        """Make plain layers, whose filters have norm 1 where a batch norm is behind, and record the sets.

        Returns:
            The capture around the trained module, for ``PruneWeights(criterion="trained")``.
        """
        note_masks(self.traced.module, NEAR_ZERO, self.sets())
        for path in self.shares:
            to_plain(self._layer(path))
        return self.traced

    def state_dict(self) -> dict[str, Any]:
        """Return the options, the number of steps that are done, and the sets once they are frozen."""
        return {"options": self._options(), "iteration": self.iteration, "near": dict(self.near)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            InputError: The training began with other options.
        """
        check_same_options(self._options(), state["options"])
        self.iteration = int(state["iteration"])
        self.near = {path: each.to(self._layer(path).weight.device) for path, each in state["near"].items()}

    def _options(self) -> dict[str, Any]:
        return {
            "amount": dict(self.shares),
            "strength": self.strength,
            "far_weight": self.penalty.far_weight,
            "margin": self.penalty.margin,
            "warmup": self.warmup,
            "freeze": self.freeze,
            "steps": self.steps,
            "sizes": dict(self.sizes),
        }

    def _steps(self) -> int:
        if self.steps is None:
            raise InputError(
                "the schedule of the penalty needs the number of steps of the training: give steps=, or call "
                "expect(steps) before the first"
            )
        return self.steps

    def _layer(self, path: str) -> Any:
        layer: nn.Module = self.traced.module.get_submodule(path)
        return layer
