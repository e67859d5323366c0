r"""Write every convolution and linear layer as an orthonormal basis, scales, and a layer that mixes.

Basis Scaling (arXiv 2108.02893) prunes a pre-trained network for a new task without training single weights: after the
singular value decomposition ``H = U S V^T`` of a kernel ``H`` (O outputs x I k^2 inputs), the filters of ``V^T`` are
independent of each other, and each has one factor that is trained and tells how much it matters [ABS]::

    y = (U S) (scales * (V^T x)) + bias

================  ========================================================  =========================================
part              what it is                                                why
================  ========================================================  =========================================
``X.basis``       R = min(O, I k^2) filters, orthonormal; no bias; stride,  [ABS] for the idea, [DER] for the algebra
                  padding, dilation and padding mode of the layer
``X.scales``      R factors, 1 at the start                                 [DESIGN]: where the paper has them, and
                                                                            what they start with, could not be found;
                                                                            the Taylor importance is the same for all
``X.mix``         single taps, R -> O, ``U S``; the layer's bias            [DER]
groups            a decomposition of each                                   [DER]
norms, head       stay where they are                                       [DER]
================  ========================================================  =========================================

*ABS*: the paper's abstract; *DER*: derived, and checked by numbers; *DESIGN*: a reconstruction. What the paper does in
detail was not read. The number of inputs and outputs stays, so that any other pass may follow or come before.

The whole basis costs more than the layer. :class:`~fxprune.passes.MergeBasis` puts together again what does not pay,
once :func:`fxprune.linear.basis_budget.choose_vectors` has decided which vectors go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.graph_tools import module_of, place_of, tensor_uses
from fxprune.linear.basis import (
    Block,
    basis_paths,
    blocks_with_basis,
    inside_a_basis,
    is_orthonormal,
    note_basis_paths,
    orthonormal_basis,
)
from fxprune.linear.blocks import inside_a_block
from fxprune.linear.choice import check_patterns, is_candidate, matches, patterns_of
from fxprune.linear.layers import COMPUTED, TRANSPOSED, why_not_alone, why_not_plain
from fxprune.linear.split import why_split
from fxprune.linear.taps import flat, grouped
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip


@dataclass(frozen=True)
class DecomposeBasis(Pass):
    """Decompose convolutions and linear layers into an orthonormal basis and scales, exactly.

    The layer at path ``X`` becomes a container of ``X.basis``, ``X.scales`` and ``X.mix``, each with a node of its own.
    ``module.meta["fxprune.basis"]`` lists the paths. Directions that a kernel does not read within the rounding of
    float64 get no vector. Scales can be trained; all else can be if it could before
    (:class:`fxprune.training.BasisScaling` trains scales, norms and the head alone).

    Left alone, with the reason, is what cannot be cheaper with a single vector per group either: depthwise layers, a
    single output or a single input.

    Memory: one value of R channels more per layer.

    Attributes:
        layers: Glob patterns of paths of layers to decompose; others are not looked at.
        exclude: Glob patterns of paths of layers to leave as they are; a head that is new, and trained whole.
        reorthonormalize: Decompose anew what is decomposed already and has lost its orthonormal basis, as channels were
            cut that it reads, needs fewer vectors, as channels were cut that it gives, or has lost its scales, as
            MergeBasis kept the two layers.

    Raises:
        InputError: A pattern matches no layer.
    """

    name: ClassVar[str] = "decompose-basis"
    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    layers: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    reorthonormalize: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", patterns_of(self.name, "layers", self.layers))
        object.__setattr__(self, "exclude", patterns_of(self.name, "exclude", self.exclude))

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Decompose each layer that is chosen; what was decomposed before only where that is asked for."""
        module = traced.module
        nodes = [node for node in module.graph.nodes if is_candidate(module, node)]
        known = basis_paths(module)
        paths = [place_of(node) for node in nodes]
        check_patterns(self.name, {"layers": self.layers, "exclude": self.exclude}, [*paths, *known])
        uses = tensor_uses(module)
        for path, block in blocks_with_basis(module).items():
            if matches(path, self.layers):
                yield self._look_again(module, path, block)
        for node in nodes:
            place = place_of(node)
            if not matches(place, self.layers) or inside_a_basis(module, place) in known:
                continue
            reason = self._why_not(module, node, uses)
            if reason:
                yield Skip(place, reason)
            else:
                yield Change(place, _decompose(module, node))

    def _look_again(self, module: fx.GraphModule, path: str, block: Block | str) -> Change | Skip:
        """Decompose a block anew where that is asked for and changes something."""
        if isinstance(block, str):
            return Skip(path, f"it was decomposed before, and {block}")
        if not self.reorthonormalize or matches(path, self.exclude):
            return Skip(path, "it was decomposed before")
        basis, mix = block.layers
        kernel = grouped(basis.weight, block.groups)
        needed = block.rank <= mix.weight.shape[0] // block.groups  # else outputs were cut, and fewer vectors will do
        if block.scales is not None and needed and is_orthonormal(kernel, basis.weight.dtype):
            return Skip(path, "it was decomposed before, and its basis is orthonormal still")
        kernel, bias = block.form().tensors
        parts = orthonormal_basis(kernel)
        own = mix.bias if basis.bias is None or bias is None else nn.Parameter(bias, mix.weight.requires_grad)
        _put(module, path, block, _layers(basis, parts, own))
        old, new = block.rank, parts[0].shape[1]
        return Change(path, f"decomposed anew: {old} -> {new} vectors{_each(block.groups)}")

    def _why_not(self, module: fx.GraphModule, node: fx.Node, uses: dict[int, list[str]]) -> str:
        if node.op == "call_function":
            return COMPUTED
        place, layer = place_of(node), module_of(module, node)
        block = inside_a_block(module, place)
        if block is not None:
            return f"it is part of {block}, which was expanded; collapse it first (Reparameterize)"
        if matches(place, self.exclude):
            return "it is excluded"
        if isinstance(layer, TRANSPOSED):
            return "transposed convolutions are not decomposed"
        reason = why_split(module, place) or why_not_plain(layer) or why_not_alone(module, node, uses)
        return reason or _why_not_worth_it(layer)


def _why_not_worth_it(layer: Any) -> str:
    """Return why no split of a layer pays, or why it has none; empty if there is one."""
    if not layer.weight.isfinite().all():
        return "its weights are not finite"
    groups = int(getattr(layer, "groups", 1))
    rows, reads = layer.weight.shape[0] // groups, layer.weight[0].numel()
    if rows + reads < rows * reads:
        return ""
    vector = "one vector" + " in each group" * (groups > 1)
    depthwise = "it is depthwise: " if groups > 1 and groups == layer.weight.shape[0] else ""
    return (
        f"{depthwise}a split could not pay: {vector} would take {groups * (rows + reads):,} weights, and the layer has "
        f"{layer.weight.numel():,}"
    )


def _decompose(module: fx.GraphModule, node: fx.Node) -> str:
    """Put basis, scales and mix in the place of a layer, and return what was done in words."""
    path, layer = place_of(node), module_of(module, node)
    groups = int(getattr(layer, "groups", 1))
    parts = orthonormal_basis(grouped(layer.weight, groups))  # type: ignore[arg-type]
    _put(module, path, node, _layers(layer, parts, layer.bias))  # type: ignore[arg-type]
    note_basis_paths(module, (*basis_paths(module), path))
    rank = parts[0].shape[1]
    rows, reads = parts[1].shape[1], parts[0][0, 0].numel()
    return f"{rank} vectors{_each(groups)}; a split pays with fewer than {rows * reads / (rows + reads):.4g}"


def _each(groups: int) -> str:
    return f" in each of {groups} groups" if groups > 1 else ""


# ---------------------------------------------------------------- layers and graph


def _layers(like: Any, parts: tuple[Tensor, Tensor], bias: nn.Parameter | None) -> tuple[Any, Any]:
    """Return the basis, which moves as a layer does, and the layer of single taps behind it."""
    basis, mix = parts
    groups, rank, columns, *taps = basis.shape
    rows = mix.shape[1]
    first: Any
    second: Any
    if isinstance(like, nn.Linear):
        first = nn.Linear(columns, rank, bias=False, device="meta")
        second = nn.Linear(rank, rows, bias=bias is not None, device="meta")
    else:
        moves = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation}
        first = type(like)(
            groups * columns, groups * rank, tuple(taps), groups=groups, bias=False,
            padding_mode=like.padding_mode, device="meta", **moves,
        )  # fmt: skip
        second = type(like)(groups * rank, groups * rows, 1, groups=groups, bias=bias is not None, device="meta")
    trainable = like.weight.requires_grad
    first.weight = nn.Parameter(flat(basis).contiguous(), requires_grad=trainable)
    ones = [1] * len(taps)
    second.weight = nn.Parameter(flat(mix.reshape(*mix.shape, *ones)).contiguous(), requires_grad=trainable)
    if bias is not None:
        second.bias = bias
    return first.train(like.training), second.train(like.training)


def _put(module: fx.GraphModule, path: str, old: fx.Node | Block, layers: tuple[Any, Any]) -> None:
    """Call the two layers, with scales of 1 between them, in place of a layer or of an older pair."""
    basis, mix = layers
    container = nn.Module().train(basis.training)
    container.scales = nn.Parameter(torch.ones_like(basis.weight.detach().flatten(1)[:, 0]))
    container.basis, container.mix = basis, mix
    parent, _, name = path.rpartition(".")
    module.get_submodule(parent)._modules[name] = container
    end, source = (old.mix, old.basis.args[0]) if isinstance(old, Block) else (old, old.args[0])
    with module.graph.inserting_before(end):
        value = module.graph.call_module(f"{path}.basis", (source,))
        scales = module.graph.get_attr(f"{path}.scales")
        dims = len(getattr(basis, "kernel_size", ()))
        if dims:
            scales = module.graph.call_function(torch.ops.aten.view.default, (scales, [-1, *[1] * dims]))
        product = module.graph.call_function(torch.ops.aten.mul.Tensor, (value, scales))
        last = module.graph.call_module(f"{path}.mix", (product,))
    for node in (value, product, last):
        node.meta = dict(end.meta)
    end.replace_all_uses_with(last)
    gone = (old.mix, *reversed(old.scaling), old.basis) if isinstance(old, Block) else (old,)
    for node in gone:
        module.graph.erase_node(node)
