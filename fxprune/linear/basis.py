r"""A layer as an orthonormal basis, a scale for each of its vectors, and what mixes them again.

A kernel ``H`` (outputs x everything that one output reads) has the singular value decomposition ``U S V^T``, and::

    y = (U S) (scales * (V^T x)) + bias            scales = 1

A decomposed layer at path ``X`` is a convolution ``X.basis`` (``V^T``, moving as the layer did), a product with the
parameter ``X.scales`` (vectors of all groups), and ``X.mix`` (``U S``, single taps, with the layer's bias). Once its
scales are multiplied into ``X.mix`` it is a *pair*. ``module.meta["fxprune.basis"]`` lists their paths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.errors import InputError
from fxprune.graph_tools import assign, copy_module, module_of, tensor_uses
from fxprune.linear.combine import chain
from fxprune.linear.forms import Form, affine, layer_form
from fxprune.linear.layers import LAYERS, why_not_alone, why_not_plain
from fxprune.linear.taps import grouped

BASIS = "fxprune.basis"
"""Key in a graph module's ``meta``: paths of the layers that were decomposed and not put together again."""


def orthonormal_basis(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal vectors that span what a kernel reads, and how they are mixed to give the kernel.

    They are sorted by singular values, of which those that are zero within rounding are left out; the entry of each
    vector that is largest in size is positive.

    Args:
        kernel: (groups, outputs, inputs, *taps) in float64.

    Returns:
        (groups, rank, inputs, *taps) and (groups, outputs, rank). All groups have the largest rank of any, at least 1.
    """
    groups, rows, *reads = kernel.shape
    left, values, right = _svd(kernel.reshape(groups, rows, -1))
    noise = max(rows, math.prod(reads)) * torch.finfo(kernel.dtype).eps * values[:, :1]
    rank = max(1, int((values > noise).sum(1).max()))
    left, values, right = left[..., :rank], values[:, None, :rank], right[:, :rank]
    signs = right.gather(2, right.abs().argmax(2, keepdim=True)).sign()
    return (right * signs).reshape(groups, rank, *reads), left * values * signs.mT


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin decomposition; LAPACK takes ten times as long for a wide matrix as for a tall one."""
    if matrix.shape[1] >= matrix.shape[2]:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right
    left, values, right = torch.linalg.svd(matrix.mT.contiguous(), full_matrices=False)
    return right.mT, values, left.mT


def is_orthonormal(kernel: Tensor, dtype: torch.dtype) -> bool:
    """Whether the vectors of each group of a kernel are orthonormal, within the rounding of a dtype."""
    vectors = kernel.flatten(2)
    gram = vectors @ vectors.mT
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return bool((gram - unit).abs().max() <= 32 * torch.finfo(dtype).eps)


# ---------------------------------------------------------------- decomposed layers in a graph


@dataclass(frozen=True)
class Block:
    """A decomposed layer, as it is in the graph.

    Attributes:
        path: The path of the layer that it was.
        basis: The call of the basis convolution.
        mix: The call of the layer that mixes.
        scaling: The nodes between the two, in order: the scales, their view, the product; empty for a pair.
        layers: The two layers.
        scales: (groups * rank,); None for a pair.
    """

    path: str
    basis: fx.Node
    mix: fx.Node
    scaling: tuple[fx.Node, ...]
    layers: tuple[Any, Any]
    scales: nn.Parameter | None

    @property
    def groups(self) -> int:
        """Groups of both layers."""
        return int(getattr(self.layers[0], "groups", 1))

    @property
    def rank(self) -> int:
        """Vectors per group."""
        return int(self.layers[0].weight.shape[0]) // self.groups

    @property
    def of_vector(self) -> int:
        """Weights of one vector in each group, in both layers."""
        basis, mix = self.layers
        return int(basis.weight[0].numel() * self.groups + mix.weight.shape[0])

    @property
    def of_layer(self) -> int:
        """Weights of the single layer that does the same."""
        basis, mix = self.layers
        return int(mix.weight.shape[0] * basis.weight[0].numel())

    def pays(self, rank: int) -> bool:
        """Whether so many vectors per group cost less than a single layer, in parameters and multiply-accumulates.

        The break-even ``rank < O I k^2 / (I k^2 + O)`` per group; both layers give outputs at the same places, so that
        it is the same for both counts.
        """
        return rank * self.of_vector < self.of_layer

    def form(self) -> Form:
        """Return the single layer that does the same, not yet multiplied out."""
        basis, mix = (layer_form(layer) for layer in self.layers)
        if self.scales is not None:
            dims = len(basis.window.kernel)
            basis = chain(basis, affine(self.scales.detach(), None, basis.outputs, dims))
        return chain(basis, mix)


def basis_paths(module: fx.GraphModule) -> tuple[str, ...]:
    """Return the paths of all decomposed layers."""
    return tuple(module.meta.get(BASIS, ()))


def note_basis_paths(module: fx.GraphModule, paths: Iterable[str]) -> None:
    """Replace the record of decomposed layers; copies of the module keep theirs."""
    module.meta[BASIS] = tuple(dict.fromkeys(paths))


def inside_a_basis(module: fx.GraphModule, path: str) -> str | None:
    """Return the decomposed layer that a module belongs to, or None."""
    return next((block for block in basis_paths(module) if path.startswith(f"{block}.")), None)


def blocks_with_basis(module: fx.GraphModule) -> dict[str, Block | str]:
    """Return each decomposed layer, or why it is none any more, by path and in graph order.

    Left out are those of which nothing is called: another pass made one layer of them, or removed them.
    """
    uses = tensor_uses(module)
    called = {str(node.target): node for node in module.graph.find_nodes(op="call_module")}
    order = {target: position for position, target in enumerate(called)}
    present = [path for path in basis_paths(module) if {f"{path}.basis", f"{path}.mix"} & called.keys()]
    paths = sorted(present, key=lambda path: order.get(f"{path}.basis", len(order)))
    return {path: _block(module, path, called, uses) for path in paths}


def whole_blocks(module: fx.GraphModule) -> list[Block]:
    """Return the decomposed layers that still have scales, in graph order."""
    blocks = blocks_with_basis(module).values()
    return [block for block in blocks if isinstance(block, Block) and block.scales is not None]


def basis_scales(module: nn.Module) -> list[nn.Parameter]:
    """Return the scales of all decomposed layers of a model; none where it is no graph."""
    return [block.scales for block in whole_blocks(module) if block.scales is not None] if _has_record(module) else []


def _has_record(module: nn.Module) -> TypeGuard[fx.GraphModule]:
    return isinstance(module, fx.GraphModule) and bool(basis_paths(module))


def _block(module: fx.GraphModule, path: str, called: Mapping[str, fx.Node], uses: dict[int, list[str]]) -> Block | str:
    basis, mix = called.get(f"{path}.basis"), called.get(f"{path}.mix")
    if basis is None or mix is None:
        return f"{path}.{'mix' if basis else 'basis'} is not called any more"
    for node in (basis, mix):
        layer = module_of(module, node)
        why = why_not_plain(layer) or why_not_alone(module, node, uses)
        if why or not isinstance(layer, LAYERS):
            return f"of {node.target}: {why or f'it is a {type(layer).__name__}'}"
    container = module.get_submodule(path)
    others = {*container._modules, *container._parameters, *container._buffers} - {"basis", "mix", "scales"}
    if others:  # such as the slope of an activation behind its mix: it would go with the container
        return f"{path} also holds {', '.join(sorted(others))}, which would go with it"
    scaling = _scaling(module, path, basis, mix)
    if isinstance(scaling, str):
        return scaling
    scales = getattr(module.get_submodule(path), "scales") if scaling else None  # noqa: B009 - it is no layer's own
    if scales is not None and uses.get(id(scales), []) != [f"{path}.scales", scaling[0].name]:
        return f"its scales are also {', '.join(uses.get(id(scales), []))}"
    return Block(path, basis, mix, scaling, (module_of(module, basis), module_of(module, mix)), scales)


def _scaling(module: fx.GraphModule, path: str, basis: fx.Node, mix: fx.Node) -> tuple[fx.Node, ...] | str:
    """Return the nodes of the product between basis and mix, or why there is something else."""
    broken = "its basis, scales and mix are no chain any more"
    source = mix.args[0]
    if source is basis:
        return () if len(basis.users) == 1 else broken
    if not isinstance(source, fx.Node) or source.target is not torch.ops.aten.mul.Tensor or source.args[0] is not basis:
        return broken
    constants, node = list[fx.Node](), source.args[1]
    while isinstance(node, fx.Node) and node.target in (torch.ops.aten.view.default, torch.ops.aten.reshape.default):
        constants.append(node)
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "get_attr" or node.target != f"{path}.scales":
        return broken
    nodes = (node, *reversed(constants), source)
    return nodes if all(len(each.users) == 1 for each in (basis, *nodes)) else broken


def singular_values(module: fx.GraphModule) -> dict[str, Tensor]:
    """Return how large each vector's share of its kernel is: its singular value, times its scale.

    It needs no data, and is what importances of scales are to be compared with.

    Args:
        module: A graph with decomposed layers, whose bases are orthonormal.

    Returns:
        Path of a decomposed layer -> (groups * rank,) in float64.
    """
    values = {}
    for block in whole_blocks(module):
        mix = grouped(block.layers[1].weight, block.groups)
        assert block.scales is not None  # whole blocks have them
        values[block.path] = mix.reshape(mix.shape[:3]).norm(dim=1).flatten() * block.scales.detach().double().abs()
    return values


# ---------------------------------------------------------------- the masked reference


def with_vectors_dropped(traced: Traced, dropped: Mapping[str, Sequence[int]]) -> Traced:
    """Return a copy whose scales are zero for some vectors: the function that is left when these go.

    Args:
        traced: The capture; it stays as it is.
        dropped: Path of a decomposed layer -> positions in its scales.

    Raises:
        InputError: There is no such layer, or no such position.
    """
    module = copy_module(traced.module)
    blocks = {block.path: block for block in whole_blocks(module)}
    for path, positions in dropped.items():
        if path not in blocks:
            raise InputError(
                f"{path} is no decomposed layer with scales of this model; these are {', '.join(blocks) or 'none'}"
            )
        scales = blocks[path].scales
        assert scales is not None
        if any(not 0 <= position < scales.numel() for position in positions):
            raise InputError(f"{path} has vectors 0 to {scales.numel() - 1}, and some of {list(positions)} are none")
        value = scales.detach().clone()
        value[torch.tensor(list(positions), dtype=torch.long, device=value.device)] = 0
        assign(module.get_submodule(path), "scales", value)
    return traced.with_module(module)
