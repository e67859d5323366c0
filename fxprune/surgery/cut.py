"""The cut: parameters and buffers by label, module attributes, the numbers in the graph, and all shapes once more."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced, propagate
from fxprune.channels import Groups, find_groups
from fxprune.errors import PlanError, VerifyError
from fxprune.graph_tools import assign
from fxprune.surgery.compensate import compensation_of, shift_biases
from fxprune.surgery.constants import Constant
from fxprune.surgery.kept import Kept, removal_of
from fxprune.surgery.literals import Rewriter


def cut(
    traced: Traced,
    removed: Any,
    groups: Groups | None = None,
    *,
    calibration: Iterable[Any] | None = None,
    exact: bool = False,
) -> Traced:
    """Remove channels and return the smaller model; the given one is left as it is.

    Args:
        traced: The captured model.
        removed: A plan, or a mapping parameter -> dimension -> indices as ``Groups.removal`` gives it.
        groups: The groups of ``traced``, if they are at hand.
        calibration: Batches of inputs, for a plan with ``compensate="mean"``; iterated over once.
        exact: Whether to leave biases that took up a constant in float64, for :func:`verify_cut`; the model then runs
            in float64 only. Rounding them costs about 1e-7.

    Raises:
        PlanError: The removal empties a dimension, or leaves less than an operation needs (``Groups.minimums``).
        InputError: The removal does not fit this model, or the calibration batches do not.
        VerifyError: Shapes disagree after the cut.
    """
    groups = groups or find_groups(traced)
    kept = Kept(groups, removal_of(removed))
    constants = compensation_of(traced, removed, kept, calibration).constants
    return cut_with(traced, kept, constants, exact=exact)


def cut_with(traced: Traced, kept: Kept, constants: Mapping[str, Constant], *, exact: bool) -> Traced:
    """Cut as :func:`cut` does, with what the removed channels hold where they are read already known."""
    _check_minimums(kept)
    tensors = _cut_tensors(traced.module, kept)
    root = _copy_tree(traced.module, tensors, {})
    graph = copy.deepcopy(traced.module.graph)
    pairs = list(zip(traced.module.graph.nodes, list(graph.nodes), strict=True))
    rewriter = Rewriter(kept, traced.module)
    rewriter.run(pairs)
    for name, constant in rewriter.constants.items():
        root.register_buffer(name, constant, persistent=False)
    for old, new in pairs:
        if old.op == "call_module":
            layer = root.get_submodule(str(new.target))
            fit_layer(layer, kept.groups_left(old))
            if isinstance(old.meta.get("val"), Tensor):
                _fit_bare_norm(layer, kept.shape(old))
    module = _assemble(root, graph, type(traced.module).__name__)
    result = traced.with_module(module)
    propagate(module, traced.args, traced.kwargs)
    _check_shapes(pairs, kept)
    module.graph.eliminate_dead_code()  # lists of positions that were replaced
    module.recompile()
    shifted = shift_biases(traced, result, kept, constants)
    if not exact:
        for layer, name, dtype in shifted:
            assign(layer, name, getattr(layer, name).detach().to(dtype))
    return result


def _cut_tensors(module: fx.GraphModule, kept: Kept) -> dict[int, Tensor]:
    """Return the shrunken copy of every parameter and buffer, by identity of the old one."""
    axes = {(name, d): kept.groups.axis(name, d) for name, d in kept.groups.parameters}
    by_name: dict[str, list[int]] = {}
    for name, d in axes:
        by_name.setdefault(name, []).append(d)
    result: dict[int, Tensor] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        value = tensor.detach()
        for d in by_name.get(name, ()):
            stays = kept.mask(axes[name, d])  # type: ignore[arg-type]
            if stays.all():
                continue
            if not stays.any():
                raise PlanError(f"the plan removes all of dimension {d} of {name}; keep at least one channel")
            value = value.index_select(d, torch.from_numpy(np.flatnonzero(stays)).to(value.device))
        value = value.clone() if value.data_ptr() == tensor.data_ptr() else _stored_as(value, tensor)
        result[id(tensor)] = (
            nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        )
    return result


def _stored_as(value: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor with its channels innermost where another has them there, as models for fast inference do."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if layout is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=layout):
        return value
    return value.contiguous(memory_format=layout)


def _copy_tree(module: nn.Module, tensors: dict[int, Tensor], memo: dict[int, nn.Module]) -> nn.Module:
    """Copy a module tree around new tensors; what was shared stays shared."""
    if id(module) in memo:
        return memo[id(module)]
    new: Any = nn.Module() if isinstance(module, fx.GraphModule) else copy.copy(module)
    memo[id(module)] = new
    new.training = module.training
    new._parameters = {k: None if p is None else tensors[id(p)] for k, p in module._parameters.items()}
    new._buffers = {k: None if b is None else tensors[id(b)] for k, b in module._buffers.items()}
    new._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    new._modules = {k: None if m is None else _copy_tree(m, tensors, memo) for k, m in module._modules.items()}
    return new  # type: ignore[no-any-return]


def _assemble(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """Make a graph module that holds the whole tree, also what the graph does not call."""
    module = fx.GraphModule(root, graph, name)
    module.training = root.training
    module._modules.update(root._modules)
    module._parameters.update(root._parameters)
    module._buffers.update(root._buffers)
    module._non_persistent_buffers_set |= root._non_persistent_buffers_set
    module.graph.lint()
    return module


def fit_layer(layer: Any, groups: int | None) -> None:
    """Set the attributes of a layer to the sizes of its parameters, and its groups where they are given."""
    if groups is not None:
        name = "num_groups" if isinstance(layer, nn.GroupNorm) else "groups"
        setattr(layer, name, groups)
    weight: Any = getattr(layer, "weight", None)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, nn.modules.conv._ConvNd):
        layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU)):
        _fit_vector(layer)
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        layer.num_embeddings, layer.embedding_dim = weight.shape
    elif isinstance(layer, nn.Bilinear):
        layer.out_features, layer.in1_features, layer.in2_features = weight.shape
    else:
        _fit_recurrent(layer)


def _fit_vector(layer: Any) -> None:
    vector = layer.weight if layer.weight is not None else getattr(layer, "running_mean", None)
    if vector is not None:
        name = {nn.GroupNorm: "num_channels", nn.PReLU: "num_parameters"}.get(type(layer), "num_features")
        setattr(layer, name, vector.shape[0])


def _fit_bare_norm(layer: Any, shape: tuple[int, ...]) -> None:
    """Set the attributes of a norm without any vector to the sizes of what it gives."""
    if next(layer.parameters(), None) is not None or next(layer.buffers(), None) is not None:
        return
    if isinstance(layer, nn.GroupNorm):
        layer.num_channels = shape[1]
    elif isinstance(layer, nn.modules.batchnorm._NormBase) and len(shape) > 1:
        layer.num_features = shape[1]
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        layer.normalized_shape = shape[len(shape) - len(layer.normalized_shape) :]


def _fit_recurrent(layer: Any) -> None:
    if isinstance(layer, nn.RNNCellBase):
        layer.input_size, layer.hidden_size = layer.weight_ih.shape[1], layer.weight_hh.shape[1]
    if not isinstance(layer, nn.RNNBase):
        return
    gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    first: Any = layer.weight_ih_l0
    layer.input_size, layer.hidden_size = first.shape[1], first.shape[0] // gates
    if layer.proj_size:
        projection: Any = layer.weight_hr_l0
        layer.proj_size = projection.shape[0]
    layer._init_flat_weights()  # the kernel is called with a flat list of weights that is kept beside the parameters


def _check_minimums(kept: Kept) -> None:
    """Refuse to leave less than an operation needs: no parameter has to shrink to nothing with it."""
    for minimum in kept.groups.minimums:
        count = minimum.left(~kept.gone)
        if count < minimum.least:
            raise PlanError(
                f"the plan leaves {count} of the values that {minimum.place} reads, which needs {minimum.least}; "
                "keep more of these channels"
            )


def _check_shapes(pairs: list[tuple[fx.Node, fx.Node]], kept: Kept) -> None:
    """Compare the shapes that running the graph gives with those that the labels promise."""
    for old, new in pairs:
        if isinstance(old.meta.get("val"), Tensor):
            promised, found = kept.shape(old), tuple(new.meta["val"].shape)
            if promised != found:
                where = old.meta.get("source") or old.meta.get("path")
                raise VerifyError(
                    f"after the cut {old.name} ({old.target}, {where}) has shape {found}, "
                    f"and the labels promise {promised}; protect its parameters and report this graph"
                )
