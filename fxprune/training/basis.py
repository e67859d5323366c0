"""Training of decomposed layers: scales, norms and the head learn; scales tell which basis vectors matter.

Basis Scaling (arXiv 2108.02893) transfers a pre-trained network to a new task: after
:class:`~fxprune.passes.DecomposeBasis`, only the scales of the basis vectors, the norms' affine parameters and the new
head are trained; "fine-tuning individual weights is unnecessary" [ABS]. A vector's importance is the first-order Taylor
expansion of the loss in its scale, squared, and summed over batches [ABS for Taylor on scales; READ for the formula, in
the code of Molchanov et al. 2019, arXiv 1906.10771]::

    importance = sum over batches of (scale * d loss / d scale) ** 2        with the gradient of the batch's mean loss

The schedule (train, accumulate, drop at once, train on) and ranking over layers are [DESIGN]: the paper's were not
found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.errors import InputError
from fxprune.graph_tools import module_of
from fxprune.linear.basis import Block, inside_a_basis, whole_blocks
from fxprune.linear.basis_budget import RANKINGS, Ranking, VectorChoice, choose_vectors
from fxprune.linear.blocks import inside_a_block
from fxprune.training.evaluate import Task, split_batch
from fxprune.training.objectives import Objective, check_same_options

Kind = Literal["square", "abs"]
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def basis_importance(
    traced: Traced,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    kind: Kind = "square",
) -> dict[str, Tensor]:
    """Return the importance of every basis vector, from the gradients of some batches; nothing is trained.

    Args:
        traced: The capture with decomposed layers, in the mode in which it shall run (see ``module.eval``); batch norms
            in training mode update their statistics.
        batches: Pairs (inputs, target); see :func:`fxprune.training.evaluate.split_batch`.
        loss: From output and target to the mean loss; default cross-entropy of logits.
        kind: ``"square"``, or ``"abs"``: the absolute change (Molchanov et al. 2017, arXiv 1611.06440).

    Returns:
        Path of a decomposed layer -> (groups * rank,) in float64.

    Raises:
        InputError: There is no decomposed layer, or no batch.
    """
    blocks, task = _blocks(traced.module), Task(loss, 0.0)
    scales = [_scales(block) for block in blocks]
    device = scales[0].device
    sums = [torch.zeros_like(each, dtype=torch.float64, requires_grad=False) for each in scales]
    flags = [each.requires_grad for each in scales]
    empty = True
    try:
        for each in scales:
            each.requires_grad_(True)
        for batch in batches:
            empty = False
            args, kwargs, target = split_batch(batch, device)
            value = task.measure(traced.module(*args, **kwargs), target, smooth=False)
            gradients = torch.autograd.grad(value, scales, allow_unused=True)
            for total, scale, gradient in zip(sums, scales, gradients, strict=True):
                if gradient is not None:
                    total += _change(scale, gradient, kind)
    finally:
        for each, flag in zip(scales, flags, strict=True):
            each.requires_grad_(flag)
    if empty:
        raise InputError("there are no batches to take importances from: the data are empty or used up")
    return {block.path: total for block, total in zip(blocks, sums, strict=True)}


def _change(scale: Tensor, gradient: Tensor, kind: Kind) -> Tensor:
    change = scale.detach().double() * gradient.detach().double()
    return change**2 if kind == "square" else change.abs()


def _blocks(module: fx.GraphModule) -> list[Block]:
    blocks = whole_blocks(module)
    if not blocks:
        raise InputError("the model has no decomposed layer with scales; run the pass DecomposeBasis on it first")
    return blocks


def _scales(block: Block) -> nn.Parameter:
    assert block.scales is not None  # whole blocks have them
    return block.scales


class BasisScaling(Objective):
    """Trains scales, norms and the head alone, accumulates importances, and drops vectors under a budget.

    From the moment it is made all other parameters need no gradient; :meth:`finish` gives them back as they were. The
    gradient of each step after ``start`` adds to the importances. At step ``drop_at``, or in :meth:`finish`, the least
    important vectors get the scale zero, and keep it in all further training: the model is then exactly what
    :class:`~fxprune.passes.MergeBasis` leaves, which makes it small.

    Where vectors are dropped on the way, it asks for the weights of the last epoch: the best may be from before.

    In ``finetune``, whose copy of the model is what the objective needs::

        finetune(traced, train, objectives=[lambda m: BasisScaling.begin(traced.with_module(m), params=0.4)])

    Args:
        traced: The capture around the very module that is trained.
        params: Share of the parameters to keep, of those that the model has with single layers; see
            :func:`fxprune.linear.basis_budget.choose_vectors`.
        macs: The same for multiply-accumulates. Without either, nothing is dropped.
        start: Steps of the optimiser before importances are accumulated.
        drop_at: Steps until vectors are dropped; None: when training is over.
        head: Glob patterns of names of parameters that are trained too; None: all of the layers behind which no other
            layer with a matrix follows. ``()`` for none.
        kind: ``"square"`` or ``"abs"``; see :func:`basis_importance`.
        ranking: How importances of different layers are compared; see the same function.

    Raises:
        InputError: There is no decomposed layer, a pattern matches nothing, or options contradict each other.
    """

    def __init__(  # noqa: PLR0913 - each is one choice of the method
        self,
        traced: Traced,
        *,
        params: float | None = None,
        macs: float | None = None,
        start: int = 0,
        drop_at: int | None = None,
        head: Sequence[str] | None = None,
        kind: Kind = "square",
        ranking: Ranking = "cost",
    ) -> None:
        self.traced, self.kind, self.ranking = traced, kind, ranking
        self.budget = {name: keep for name, keep in (("params", params), ("macs", macs)) if keep is not None}
        self.start, self.drop_at, self.steps = start, drop_at, 0
        self.keeps_last = drop_at is not None
        if kind not in ("square", "abs"):
            raise InputError(f"kind is {kind!r}; importances are 'square' or 'abs'")
        if ranking not in RANKINGS:
            raise InputError(f"ranking is {ranking!r}; basis vectors are ranked by {', '.join(map(repr, RANKINGS))}")
        if len(self.budget) > 1:
            raise InputError("give one budget, params= or macs=, and not both")
        if start < 0 or (drop_at is not None and (not self.budget or drop_at <= start)):
            raise InputError(
                f"start={start} and drop_at={drop_at} do not fit: importances are accumulated from the one to the "
                "other, and dropping needs a budget (params= or macs=)"
            )
        self.blocks = {block.path: block for block in _blocks(traced.module)}
        for share in self.budget.values():
            if not 0 < share <= 1:
                raise InputError(f"the budget {self.budget} is the share to keep, in (0, 1]")
        self.scores = {
            path: torch.zeros_like(_scales(block), dtype=torch.float64, requires_grad=False)
            for path, block in self.blocks.items()
        }
        self.choice: VectorChoice | None = None
        self.dropped: dict[str, list[int]] | None = None
        self._flags = {name: value.requires_grad for name, value in traced.module.named_parameters()}
        self.trained = _trained(traced.module, self.blocks, head)
        for name, value in traced.module.named_parameters():
            if name in self.trained or self._flags[name]:
                value.requires_grad_(name in self.trained)

    @classmethod
    def check_length(cls, steps: int, start: int = 0, drop_at: int | None = None, **options: Any) -> None:
        """Refuse what ends before vectors are to be dropped, or importances accumulated, whatever the model.

        Args:
            steps: Of the training.
            start: As for the class.
            drop_at: As for the class.
            options: Its others, of which a budget matters.

        Raises:
            InputError: The training is too short.
        """
        budget = any(options.get(name) is not None for name in ("params", "macs"))
        late = drop_at or (start + 1 if budget else 0)
        if late > steps:
            raise InputError(
                f"the training has {steps} steps, and start={start}, drop_at={drop_at} take {late} at least; "
                "train longer, or start and drop sooner"
            )

    def expect(self, steps: int) -> None:
        """Refuse a training that ends before vectors are to be dropped, or importances accumulated."""
        self.check_length(steps, self.start, self.drop_at, **self.budget)

    def after_backward(self) -> None:
        """Add the step's gradients to the importances; hold back those of dropped vectors.

        Gradients that are not finite, for which a loop in half precision skips the step, count for nothing.
        """
        if self.dropped is None and self.steps >= self.start:
            for path, block in self.blocks.items():
                scales = _scales(block)
                change = None if scales.grad is None else _change(scales, scales.grad, self.kind)
                if change is not None and change.isfinite().all():
                    self.scores[path] = self.scores[path].to(change.device) + change
        for path, positions in (self.dropped or {}).items():
            gradient = _scales(self.blocks[path]).grad
            if gradient is not None:
                gradient[positions] = 0

    def after_step(self) -> None:
        """Count the step; drop vectors when it is time, and keep their scales at zero (momentum moves them)."""
        self.steps += 1
        if self.dropped is None and self.drop_at is not None and self.steps >= self.drop_at:
            self.drop()
        self._mask()

    def drop(self) -> VectorChoice:
        """Choose the least important vectors under the budget and set their scales to zero.

        Raises:
            BudgetError: The budget is not met with one vector left in each group of each layer.
        """
        self.choice = choose_vectors(
            self.traced,
            self.scores,
            params=self.budget.get("params"),
            macs=self.budget.get("macs"),
            ranking=self.ranking,
        )
        self.dropped = self.choice.dropped
        self._mask()
        return self.choice

    def _mask(self) -> None:
        with torch.no_grad():
            for path, positions in (self.dropped or {}).items():
                _scales(self.blocks[path])[positions] = 0

    def finish(self) -> Traced:
        """Drop what is to be dropped, and give every parameter back the flag that it had.

        Returns:
            The capture around the trained module, for :class:`~fxprune.passes.MergeBasis`.
        """
        if self.budget and self.dropped is None:
            self.drop()
        self._mask()
        for name, value in self.traced.module.named_parameters():
            value.requires_grad_(self._flags[name])
        return self.traced

    def state_dict(self) -> dict[str, Any]:
        """Return importances, steps, and what was dropped."""
        return {"options": self._options(), "scores": dict(self.scores), "steps": self.steps, "dropped": self.dropped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            InputError: The training began with other options.
        """
        check_same_options(self._options(), state.get("options"))
        for path, block in self.blocks.items():
            self.scores[path] = state["scores"][path].to(_scales(block).device)
        self.steps, self.dropped = state["steps"], state["dropped"]
        self._mask()

    def _options(self) -> dict[str, Any]:
        return {
            "budget": dict(self.budget),
            "start": self.start,
            "drop_at": self.drop_at,
            "kind": self.kind,
            "ranking": self.ranking,
            "trained": sorted(self.trained),
        }


# ---------------------------------------------------------------- what is trained


def _trained(module: fx.GraphModule, blocks: Mapping[str, Block], head: Sequence[str] | None) -> set[str]:
    """Return the names of the parameters that learn: scales, norms, head."""
    names = [name for name, value in module.named_parameters() if value.is_floating_point()]
    trained = {f"{path}.scales" for path in blocks}
    for path, layer in module.named_modules():
        if isinstance(layer, _NORMS):
            trained |= {f"{path}.{name}" for name, _ in layer.named_parameters(recurse=False)}
    if head is None:
        heads = _heads(module)
        return trained | {name for name in names if any(name == each or name.startswith(f"{each}.") for each in heads)}
    for pattern in head:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise InputError(
                f"the pattern {pattern!r} of head matches none of the parameters {', '.join(names[:5])}..."
            )
        trained |= found
    return trained


def _heads(module: fx.GraphModule) -> set[str]:
    """Return paths of layers, and names of parameters, behind which no other layer with a matrix follows."""
    heads, seen = set[str](), set[fx.Node]()
    (result,) = module.graph.output_node().args
    pending = [node for node in pytree.tree_leaves(result) if isinstance(node, fx.Node)]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        found = _matrices(module, node)
        heads |= found
        pending += [] if found else node.all_input_nodes
    return heads


def _matrices(module: fx.GraphModule, node: fx.Node) -> set[str]:
    """Return the path of a node's layer, or names of the parameters that it reads, with two dimensions or more."""
    if node.op == "call_module":
        path, layer = str(node.target), module_of(module, node)
        if isinstance(layer, _NORMS) or all(weight.ndim < 2 for weight in layer.parameters()):
            return set()
        return {inside_a_basis(module, path) or inside_a_block(module, path) or path}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    read = {str(source.target) for source in node.all_input_nodes if source.op == "get_attr"}
    return {name for name in read if name in parameters and parameters[name].ndim > 1}
