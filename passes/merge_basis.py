r"""Drop basis vectors whose scale is zero, and put layers together again that are not cheaper in two.

After :class:`~fxprune.passes.DecomposeBasis`, and with some scales set to zero
(:func:`fxprune.linear.basis.with_vectors_dropped`, :class:`fxprune.training.BasisScaling`)::

    y = (U S) (scales * (V^T x)) + bias

Vectors of scale zero go, from the basis and from what mixes. Two layers cost ``R (I k^2 + O)`` in each group, one costs
``O I k^2``, in parameters and, as both layers give outputs at the same places, in multiply-accumulates too. So the
split stays where ``R < O I k^2 / (I k^2 + O)``, with the scales multiplied into what mixes; elsewhere the parts become
one layer ``(U S) diag(scales) V^T`` at the path of the old one [DER: Basis Scaling, arXiv 2108.02893, counts parameters
after pruning; the rule itself was derived].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.errors import InputError
from fxprune.linear.basis import Block, basis_paths, blocks_with_basis, note_basis_paths
from fxprune.linear.basis_costs import macs_of_vector
from fxprune.linear.forms import layer_of
from fxprune.linear.taps import flat, grouped
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip
from fxprune.surgery.cut import fit_layer


@dataclass(frozen=True)
class MergeBasis(Pass):
    """Drop basis vectors of scale zero; keep each split in two layers where it is cheaper, else merge it into one.

    The result is exactly what the model computes with the zeros in place. Layers that were merged have their old
    state_dict keys and shapes again; kept splits have ``X.basis.weight``, ``X.mix.weight`` and ``X.mix.bias``. In a
    grouped layer all groups keep as many vectors as the one that keeps most.

    A split that stayed is looked at again in later runs: once channels were cut, one layer may be cheaper.

    Attributes:
        most: Largest share of a single layer's weights that a split may cost to stay, in [0, 1]. At 1 it stays where it
            is cheaper at all; below, two calls have to earn their overhead; at 0 everything is merged.
    """

    name: ClassVar[str] = "merge-basis"
    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    most: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.most, bool) or not isinstance(self.most, int | float) or not 0 <= self.most <= 1:
            raise InputError(
                f"{self.name}: most is {self.most!r}; it is the share of a single layer's cost at which a split stays, "
                "in [0, 1]"
            )

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Look at each decomposed layer."""
        module = traced.module
        macs = macs_of_vector(traced)
        for path, block in blocks_with_basis(module).items():
            if isinstance(block, str):
                yield Skip(path, block)
            else:
                yield self._merge(module, block, macs[path])

    def _merge(self, module: fx.GraphModule, block: Block, macs: float) -> Change | Skip:
        kept = _kept(block)
        split = kept.shape[1] * block.of_vector
        stays = block.pays(kept.shape[1]) and split <= self.most * block.of_layer
        counts = _in_words(block, kept.shape[1], macs)
        if stays and block.scales is None:
            return Skip(block.path, f"two layers are cheaper: {counts}")
        vectors = f"{kept.shape[1]} of {block.rank} vectors left" + " in each group" * (block.groups > 1)
        if stays:
            _keep_split(module, block, kept)
        else:
            _join(module, block)
        return Change(block.path, f"{vectors}; {'stays in two layers' if stays else 'merged into one layer'}: {counts}")


def _kept(block: Block) -> Tensor:
    """Return the positions of the vectors that stay, (groups, vectors), in increasing order: at least one."""
    if block.scales is None:
        return torch.arange(block.groups * block.rank).reshape(block.groups, block.rank)
    used = (block.scales.detach() != 0).reshape(block.groups, block.rank).cpu()
    count = max(1, int(used.sum(1).max()))
    within = used.long().argsort(dim=1, descending=True, stable=True)[:, :count].sort(1).values
    return within + block.rank * torch.arange(block.groups)[:, None]


def _in_words(block: Block, rank: int, macs: float) -> str:
    split, whole = rank * block.of_vector, block.of_layer
    return (
        f"split in two it has {split:,} weights and {round(rank * macs):,} multiply-accumulates per sample, as one "
        f"layer {whole:,} and {round(whole / block.of_vector * macs):,}"
    )


def _keep_split(module: fx.GraphModule, block: Block, kept: Tensor) -> None:
    """Leave two layers with the vectors that stay, and the scales in the second."""
    basis, mix = block.layers
    assert block.scales is not None
    groups, count = kept.shape
    where = kept.flatten().to(basis.weight.device)
    scales = block.scales.detach().double()
    _, bias = block.form().tensors if basis.bias is not None else (None, mix.bias)
    kernel = grouped(mix.weight, groups)
    within = (kept - block.rank * torch.arange(groups)[:, None]).to(kernel.device)
    columns = (groups, 1, count, *[1] * (kernel.ndim - 3))
    picked = kernel.gather(2, within.reshape(columns).expand_as(kernel[:, :, :count]))
    factors = scales[where].reshape(columns).to(kernel.device)
    _set(basis, "weight", basis.weight.detach()[where])
    _set(mix, "weight", flat(picked * factors).contiguous())
    if basis.bias is not None:
        basis.bias = None
        mix.bias = nn.Parameter(bias, requires_grad=mix.weight.requires_grad)  # type: ignore[arg-type]
    for layer in (basis, mix):
        fit_layer(layer, None)
    block.mix.replace_input_with(block.scaling[-1], block.basis)
    for node in reversed(block.scaling):
        module.graph.erase_node(node)
    del module.get_submodule(block.path)._parameters["scales"]


def _set(layer: Any, name: str, value: Tensor) -> None:
    setattr(layer, name, nn.Parameter(value, requires_grad=getattr(layer, name).requires_grad))


def _join(module: fx.GraphModule, block: Block) -> None:
    """Put one layer in the place of the parts, under the path of the old one."""
    basis, mix = block.layers
    spelled = [basis.padding] if isinstance(getattr(basis, "padding", None), str) else []
    trainable = basis.weight.requires_grad or mix.weight.requires_grad
    layer: Any = layer_of(block.form(), spelled=spelled, trainable=trainable)
    if basis.bias is None and mix.bias is not None:
        layer.bias = mix.bias  # the very one: it is not changed
    layer.train(basis.training)
    parent, _, name = block.path.rpartition(".")
    module.get_submodule(parent)._modules[name] = layer
    with module.graph.inserting_before(block.mix):
        node = module.graph.call_module(block.path, (block.basis.args[0],))
    node.meta = dict(block.mix.meta)
    block.mix.replace_all_uses_with(node)
    for gone in (block.mix, *reversed(block.scaling), block.basis):
        module.graph.erase_node(gone)
    note_basis_paths(module, [path for path in basis_paths(module) if path != block.path])
