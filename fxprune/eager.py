"""The user's own class back: what was done to the graph, written into the eager module that it was captured from.

The forward code stays as it is, and with it everything that the graph left behind: stochastic depth, auxiliary heads,
losses. Whether that code still computes what the graph computes is not assumed but checked; where Python has a width
written into it, the module is left as it was, and the error names the line.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.capture.recording import record
from fxprune.errors import InputError, VerifyError
from fxprune.graph_tools import evaluating, wide
from fxprune.runner import Runner
from fxprune.surgery.cut import fit_layer

TOLERANCE = 1e-9
"""Largest relative difference between the module and the graph in float64."""

SINGLE_TOLERANCE = 1e-4
"""The same in float32, for code that cannot run in float64."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_LIBRARY = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, __file__))


@dataclass
class Applied:
    """What was changed in a module.

    Attributes:
        tensors: Parameters and buffers that got another shape or another value, by name.
        removed: Modules that the graph no longer has and that became ``nn.Identity``: folded norms, removed layers.
        dtype: What the module and the graph were compared in.
        max_relative_error: The largest difference between them, relative to the largest output.
    """

    tensors: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    dtype: str = "float64"
    max_relative_error: float = 0.0


def apply_to(traced: Traced, model: nn.Module) -> Applied:
    """Write the weights and sizes of a pruned capture into the eager model, in place, and check that they agree.

    Args:
        traced: What passes made of the model's capture. Its layers have to be the model's own, by name: apply before
            passes that put other layers in their place.
        model: The model that was captured, or one built the same way. Modes and hooks stay as they are.

    Returns:
        What was changed, and the error of the comparison on the example inputs (eval mode, float64).

    Raises:
        InputError: The capture has parameters that the model has not, or lacks some that its code needs.
        VerifyError: The model's own code does not compute what the graph does, or does not run; the message names the
            line where it stopped. The model is as it was.
    """
    undo: list[Callable[[], None]] = []
    try:
        applied = _write(traced, model, undo)
        _check_pinned(traced, applied)
        _compare(traced, model, applied)
        _runs_around_regions(traced, model)
    except BaseException as error:
        for step in reversed(undo):
            step()
        gone = traced.module.meta.get("fxprune.gone")
        if gone and isinstance(error, VerifyError):
            raise _not_without(model, error) from error
        raise
    return applied


def _not_without(model: nn.Module, error: VerifyError) -> VerifyError:
    """Say what removed layers ask of a model's own code."""
    return VerifyError(
        f"the code of {type(model).__name__} cannot do without the removed layers: a module that lost everything "
        "passes its first input on, but a sum that is written in the code around a branch stays, and zeros in its "
        'place would keep a part of the cost. Remove whole blocks (level="block"), or deploy the graph itself; the '
        f"model is as it was. Without the layers, {error}"
    )


def _write(traced: Traced, model: nn.Module, undo: list[Callable[[], None]]) -> Applied:
    graph, applied = traced.module, Applied()
    own = dict(_named_tensors(model))
    new = {name: tensor for name, tensor in _named_tensors(graph) if name in own or name in graph.state_dict()}
    made = dict[int, Tensor]()
    undo.append(lambda: _flatten_weights(model))  # runs last, when the weights are back
    _add_parameters(graph, model, own, new)
    for name, tensor in new.items():
        path, _, key = name.rpartition(".")
        owner = model.get_submodule(path)
        store = owner._buffers if key in owner._buffers else owner._parameters
        old = store.get(key)
        if old is not None and old.shape == tensor.shape and torch.equal(old, tensor.to(old.device)):
            continue
        value = made.setdefault(id(tensor), _like(tensor, old))  # what was tied stays tied
        undo.append(lambda store=store, key=key, old=old: _put(store, key, old))  # type: ignore[misc]
        store[key] = value  # type: ignore[assignment]
        applied.tensors.append(name)
    _fit_sizes(graph, model, applied.tensors, undo)
    passing = _pass_on(model, traced.module, undo)
    lost = [name for name in own if name not in new and not name.startswith(tuple(f"{path}." for path in passing))]
    applied.removed = [*passing, *_remove(model, lost, undo)]
    return applied


class PassOn(nn.Module):
    """Stands in a model for a removed module that takes several inputs; gives the first."""

    def forward(self, first: Any, *others: Any, **named: Any) -> Any:
        """Return the first input."""
        return first


_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def _pass_on(model: nn.Module, graph: fx.GraphModule, undo: list[Callable[[], None]]) -> list[str]:
    """Let the modules that lost all their tensors with removed layers pass their input on: the outermost ones.

    So do modules without tensors, such as activations, that are not called any more. Of a list of modules its members
    do: the list itself is none. Whether the model computes what the graph does is checked behind this, as ever.
    """
    gone, uncalled = (graph.meta.get(key, frozenset()) for key in ("fxprune.gone", "fxprune.gone_calls"))
    replaced: list[str] = []
    for path in sorted({*_paths_of(gone), *uncalled}, key=lambda path: path.count(".")):
        holder, name = _submodule(model, path.rpartition(".")[0]), path.rpartition(".")[2]
        module = _submodule(model, path)
        if holder is None or module is None or any(path.startswith(f"{outer}.") for outer in replaced):
            continue
        owned = {key for key, _ in _named_tensors(module)}
        inner = path in uncalled and not any(True for _ in module.children())
        if isinstance(module, _CONTAINERS) or not (owned or inner) or not {f"{path}.{key}" for key in owned} <= gone:
            continue
        inputs = inspect.signature(module.forward).parameters
        undo.append(lambda holder=holder, name=name, module=module: _put(holder._modules, name, module))  # type: ignore
        holder._modules[name] = (nn.Identity() if len(inputs) == 1 else PassOn()).train(module.training)
        replaced.append(path)
    return replaced


def _paths_of(names: Iterable[str]) -> list[str]:
    """Return the paths of all modules around some tensors."""
    paths = dict[str, None]()
    for name in sorted(names):
        parts = name.split(".")
        paths |= dict.fromkeys(".".join(parts[:length]) for length in range(1, len(parts)))
    return list(paths)


def _check_pinned(traced: Traced, applied: Applied) -> None:
    """Refuse to change what the model's own code reads outside of the regions: only these were compared."""
    pinned = traced.regions.pinned if traced.regions is not None else {}
    for name in applied.tensors:
        if name in pinned:
            raise VerifyError(
                f"a pass changed {name}, which the model's own code reads outside of its regions as well, at "
                f"{pinned[name]}: apply the result before that pass; the model is as it was"
            )


def _flatten_weights(model: nn.Module) -> None:
    """Renew the flat lists of weights that recurrent layers keep beside their parameters."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _add_parameters(graph: nn.Module, model: nn.Module, own: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    """Refuse what the model has no place for. A bias that a layer was built without has one: the layer's own slot."""
    for name in list(new):
        if name in own:
            continue
        path, _, key = name.rpartition(".")
        owner = _submodule(model, path)
        if owner is not None and key in owner._parameters:
            continue
        if name not in graph.state_dict():
            del new[name]  # a constant of the graph alone
            continue
        raise InputError(
            f"{name} is in the graph and not in {type(model).__name__}: a pass put another layer there. Apply the "
            "result before that pass, or deploy the graph itself"
        )


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _like(tensor: Tensor, old: Tensor | None) -> Tensor:
    """Return a copy that is a parameter where the old one was, on its device and in its precision."""
    dtype = old.dtype if old is not None else tensor.dtype
    device = old.device if old is not None else tensor.device
    value = tensor.detach().clone().to(device=device, dtype=dtype)
    if old is not None and not isinstance(old, nn.Parameter):
        return value
    return nn.Parameter(value, requires_grad=old is None or old.requires_grad)


def _put(store: dict[str, Any], key: str, old: Tensor | None) -> None:
    store[key] = old


def _fit_sizes(graph: nn.Module, model: nn.Module, changed: list[str], undo: list[Callable[[], None]]) -> None:
    """Set the sizes that layers keep beside their weights: ``in_channels``, ``num_features``, ``groups``.

    They are taken over from the layers of the graph; a subclass, which the graph may have taken apart, has them from
    its weights.
    """
    theirs = dict(graph.named_modules(remove_duplicate=False))
    owners = {name.rpartition(".")[0] for name in changed}
    for path, module in model.named_modules(remove_duplicate=False):
        before, other = dict(vars(module)), theirs.get(path)
        undo.append(lambda module=module, before=before: _restore_sizes(module, before))  # type: ignore[misc]
        if type(other) is type(module):
            for key, value in vars(other).items():
                if _is_size(value) and _is_size(before.get(key)):
                    setattr(module, key, value)
        if path in owners:
            fit_layer(module, None)


def _restore_sizes(module: nn.Module, before: dict[str, Any]) -> None:
    for key, value in before.items():
        if _is_size(value):
            setattr(module, key, value)


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_is_size(part) for part in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _remove(model: nn.Module, names: list[str], undo: list[Callable[[], None]]) -> list[str]:
    """Put an identity in place of norms whose tensors the graph no longer has."""
    paths = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    removed = []
    for path in paths:
        module = model.get_submodule(path)
        if not _is_norm(module):
            continue  # such as an auxiliary head, which the graph in eval mode never had
        parent, _, key = path.rpartition(".")
        holder = model.get_submodule(parent)
        undo.append(lambda holder=holder, key=key, module=module: _put(holder._modules, key, module))  # type: ignore
        holder._modules[key] = nn.Identity().train(module.training)
        removed.append(path)
    return removed


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm; a frozen one has the tensors of a batch norm as buffers, and nothing to train."""
    frozen = not any(True for _ in module.parameters()) and {"running_mean", "running_var"} <= module._buffers.keys()
    return isinstance(module, _NORMS) or frozen


# ---------------------------------------------------------------- the check


def _compare(traced: Traced, model: nn.Module, applied: Applied) -> None:
    args, kwargs = traced.inputs(seed=1)
    with evaluating(traced.module):
        expected = _apart(traced, Runner(traced.module).flat(traced.flat(args, kwargs)))
    tolerance = TOLERANCE
    try:
        found = _run(_doubled(model), traced, *pytree.tree_map(wide, (args, kwargs)))
    except Exception as first:  # the user's code raises whatever it likes
        try:
            found, tolerance, applied.dtype = _run(model, traced, args, kwargs), SINGLE_TOLERANCE, "float32"
        except Exception:
            raise _does_not_run(traced, model, first) from first
    errors = [_error(model, *pair) for pair in zip(found, expected, strict=True)]
    applied.max_relative_error = max(errors, default=0.0)
    if not applied.max_relative_error <= tolerance:
        raise VerifyError(
            f"{type(model).__name__} runs with the new weights and computes something else than the graph (relative "
            f"error {applied.max_relative_error:.1e} in {applied.dtype}, allowed {tolerance:.0e}): a width, a scale or "
            "an order of channels is written into its code. Deploy the graph itself; the model is as it was"
        )


def _error(model: nn.Module, found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest value."""
    if len(found) != len(expected) or any(a.shape != b.shape for a, b in zip(found, expected, strict=False)):
        shapes = [[tuple(value.shape) for value in values] for values in (found, expected)]
        raise VerifyError(f"{type(model).__name__} gives outputs of shapes {shapes[0]}, the graph {shapes[1]}")
    tops = [float(value[value.isfinite()].abs().max()) for value in expected if value.isfinite().any()]
    scale = max(tops, default=1.0) or 1.0
    errors = [_distance(a.to(b), b) for a, b in zip(found, expected, strict=True) if b.numel()]
    return max(errors, default=0.0) / scale


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference; infinite where one has a NaN, which no comparison of numbers would notice."""
    largest = float((found - expected).abs().masked_fill(found == expected, 0.0).max())
    return float("inf") if math.isnan(largest) else largest


def _runs_around_regions(traced: Traced, model: nn.Module) -> None:
    """Run the whole model once: the code around its regions may have a width of their insides written into it."""
    regions = traced.regions
    if regions is None:
        return
    try:
        with evaluating(model):
            record(model, regions.args, regions.kwargs, ())
    except Exception as error:
        raise _does_not_run(traced, model, error) from error


def _does_not_run(traced: Traced, model: nn.Module, error: Exception) -> VerifyError:
    unlike, idle = _unlike_attention(model), _idle(traced, model)
    if unlike:
        return VerifyError(
            f"{type(model).__name__} does not run with the new sizes: {_first_line(error)}, {_place(error)}. {unlike} "
            "is nn.MultiheadAttention, which has one width for its queries, its output and all heads together, and the "
            "cut made them differ. Protect its parameters, or deploy the graph itself; the model is as it was"
        )
    return VerifyError(
        f"{type(model).__name__} does not run with the new sizes: {_first_line(error)}, {_place(error)}. A "
        "width is written into the code there. Take it from a tensor (x.shape) or from the layer, or deploy "
        f"the graph itself; the model is as it was{idle}"
    )


def _idle(traced: Traced, model: nn.Module) -> str:
    """Name layers that no output depends on: they are not in the graph, so that they keep widths that others lost."""
    used = {str(node.target) for node in traced.module.graph.nodes if node.op in ("call_module", "get_attr")}
    owners = {path for path, layer in model.named_modules() if any(True for _ in layer.parameters(recurse=False))}
    idle = sorted(path for path in owners if not any(name == path or name.startswith(f"{path}.") for name in used))
    return f" (no output depends on {', '.join(idle[:3])}, which therefore kept all channels)" if idle else ""


def _unlike_attention(model: nn.Module) -> str:
    """Return the path of an attention layer that lost heads or embedding, which its code cannot; "" if none did."""
    for path, layer in model.named_modules():
        if isinstance(layer, nn.MultiheadAttention) and set(layer.out_proj.weight.shape) != {layer.embed_dim}:
            return str(path)
    return ""


def _doubled(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


@torch.no_grad()
def _run(model: nn.Module, traced: Traced, args: Any, kwargs: Any) -> list[list[Tensor]]:
    """Run the model's own code: all of it, or each of its regions on what the graph is given for it."""
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(0)
        if traced.regions is None:
            return [_tensors(pytree.tree_leaves(model(*args, **kwargs)))]
        found = []
        for call in traced.regions.calls:
            given, named = pytree.tree_unflatten(list(args[call.inputs]), call.nested)
            found.append(_tensors(pytree.tree_leaves(model.get_submodule(call.path)(*given, **named))))
        return found


def _apart(traced: Traced, leaves: list[Any]) -> list[list[Tensor]]:
    """Return the outputs of the graph, those of each region by themselves."""
    if traced.regions is None:
        return [_tensors(leaves)]
    return [_tensors(leaves[call.outputs]) for call in traced.regions.calls]


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())]


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    """Return the innermost line outside of torch: that is where the user's code asked for it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARY)]
    if not own:
        return "inside torch"
    return f"at {own[-1].filename}:{own[-1].lineno} ({(own[-1].line or '').strip()})"
