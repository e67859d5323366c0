"""The user's own class back: what was done to the graph, written into the eager module that it was captured from.

The forward code stays as it is, and with it everything that the graph left behind: stochastic depth, auxiliary heads,
losses. Whether that code still computes what the graph computes is not assumed but checked (``checks``,
``regions``), and so is whether it still runs in training mode (``training``). Where Python has a width
written into it, or a head for training reads what was removed, the module is left as it was, and the error names the
line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.capture.accepted import accepted
from fxprune.eager.checks import compare
from fxprune.eager.regions import around_regions, compare_around
from fxprune.eager.training import check_training, trains
from fxprune.errors import InputError, VerifyError
from fxprune.surgery.cut import fit_layer

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass
class Applied:
    """What was changed in a module.

    Attributes:
        tensors: Parameters and buffers that got another shape or another value, by name.
        removed: Modules that the graph no longer has and that became ``nn.Identity``: folded norms, removed layers.
        dtype: What the module and the graph were compared in.
        max_relative_error: The largest difference between them, relative to the largest output.
        notes: What could not be checked, in plain words.
    """

    tensors: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    dtype: str = "float64"
    max_relative_error: float = 0.0
    notes: list[str] = field(default_factory=list)


def apply_to(traced: Traced, model: nn.Module, *, training: bool = True) -> Applied:
    """Write the weights and sizes of a pruned capture into the eager model, in place, and check that they agree.

    Args:
        traced: What passes made of the model's capture. Its layers have to be the model's own, by name: apply before
            passes that put other layers in their place.
        model: The model that was captured, or one built the same way; wrappers that ``trace`` looks through
            (``DataParallel``, ``torch.compile``) stay around it. Modes and hooks stay as they are.
        training: Whether to refuse a result with which the model does not run in training mode any more, as that of a
            network whose auxiliary head reads what was removed. False is for models that are not trained afterwards.

    Returns:
        What was changed, and the error of the comparison on the example inputs (eval mode, float64): of the model's
        code with the graph, and, where it was captured by region, also of the whole model with the original whose
        regions the graphs compute.

    Raises:
        InputError: The capture has parameters that the model has not, or lacks some that its code needs.
        VerifyError: The model's own code does not compute what the graph does, or does not run, or does not run in
            training mode as it did; the message names the line where it stopped. The model is as it was.
    """
    model = accepted(model)
    around = around_regions(traced, model)
    before = trains(traced, model) if training else None
    undo: list[Callable[[], None]] = []
    try:
        applied = _write(traced, model, undo)
        _check_pinned(traced, applied)
        found = [compare(traced, model), compare_around(traced, model, around)]
        applied.max_relative_error = max(each.error for each in found)
        applied.dtype = "float32" if any(each.dtype == "float32" for each in found) else "float64"
        applied.notes += [each.note for each in found if each.note]
        if training:
            applied.notes += filter(None, [check_training(traced, model, before)])
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
            f"{name} is in the graph and not in {type(model).__name__}: it is not the model that was captured, or a "
            "pass put another layer there. Give the model that was captured, or one built the same way; apply the "
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
