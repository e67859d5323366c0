"""Turn operations on a model's parameters back into calls of modules under the model's own names."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture.modules import DROPOUTS, RECIPES, RECURRENT, arguments, recurrent, same_settings
from fxprune.errors import CaptureError

aten = torch.ops.aten


def module_path(node: fx.Node) -> str:
    """Return the dotted path of the innermost module that a node came from."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(next(reversed(stack.values()))[0])
    path = re.sub(r"@\d+", "", path)
    return "" if path.startswith("_empty_nn_module_stack") else path


class Lifter:
    """Builds the new module tree of one model and points the graph's nodes at it."""

    def __init__(self, model: nn.Module, graph_module: fx.GraphModule) -> None:
        self.model = model
        self.source = graph_module
        self.graph = graph_module.graph
        self.names = {id(t): n for n, t in [*model.named_buffers(), *model.named_parameters()]}
        self.owners: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self.lifted: dict[int, nn.Module] = {}  # id of the original module -> what stands for it
        self.extra: dict[str, nn.Module] = {}  # stateless modules that the model does not have, by path

    def run(self, class_name: str) -> fx.GraphModule:
        """Return the lifted graph module."""
        for node in list(self.graph.nodes):
            if node.op == "call_function":
                self._lift(node)
        root = self._build(self.model, {})
        for path, module in self.extra.items():
            _attach(root, path, module)
        self._keep_constants(root)
        self._canonical_targets()
        self._relax_views()
        module = fx.GraphModule(root, self.graph, class_name)
        # GraphModule copies only what the graph reaches; parameters that the graph does not use belong to the
        # state_dict too.
        for name, child in root.named_children():
            if not hasattr(module, name) or getattr(module, name) is not child:
                setattr(module, name, child)
        for name, parameter in root.named_parameters(recurse=False):
            module.register_parameter(name, parameter)
        persistent = root.state_dict()
        for name, buffer in root.named_buffers(recurse=False):
            module.register_buffer(name, buffer, persistent=name in persistent)
        module.graph.eliminate_dead_code()
        return module

    # nodes -> modules

    def _lift(self, node: fx.Node) -> None:
        if node.target in DROPOUTS:
            self._lift_dropout(node)
        elif node.target in RECIPES:
            self._lift_layer(node)
        elif node.target in RECURRENT:
            self._lift_recurrent(node)

    def _tensor(self, value: Any) -> Tensor | None:
        """Return the model's tensor that an argument reads directly, or None."""
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        found: Any = self.source
        for atom in str(value.target).split("."):
            found = getattr(found, atom, None)
        return found if isinstance(found, Tensor) and id(found) in self.names else None

    def _owner(self, node: fx.Node, tensors: dict[str, Tensor]) -> tuple[str, nn.Module] | None:
        """Find the module with exactly these tensors under these names: the one called, or the one of their names."""
        first = next(iter(tensors.values()))
        for path in (node.meta["path"], self.names[id(first)].rpartition(".")[0]):
            owner = self.owners.get(path)
            if (
                owner is not None
                and path
                and all(getattr(owner, slot, None) is tensor for slot, tensor in tensors.items())
            ):
                return path, owner
        return None

    def _lift_layer(self, node: fx.Node) -> None:
        recipe = RECIPES[node.target]
        a = arguments(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        tensors = {recipe.slots[key]: self._tensor(a[key]) for key in recipe.slots if a.get(key) is not None}
        if not tensors or any(tensor is None for tensor in tensors.values()):
            return
        found = self._owner(node, tensors)  # type: ignore[arg-type]
        if found is None or _holds_more(found[1], set(recipe.slots.values()) - set(tensors)):
            return
        values = {key: value.meta.get("val") if isinstance(value, fx.Node) else value for key, value in a.items()}
        module = recipe.build(values)
        if module is not None and self._claim(found[1], module, tensors):  # type: ignore[arg-type]
            self._call(node, found[0], tuple(a[key] for key in recipe.inputs))

    def _lift_recurrent(self, node: fx.Node) -> None:
        a = arguments(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        weights = [self._tensor(weight) for weight in a["params"]]
        if any(weight is None for weight in weights):
            return
        module = recurrent(node.target, a, weights)  # type: ignore[arg-type]
        slots = [name for cell in module.all_weights for name in _names_in(module, cell)]
        tensors = dict(zip(slots, weights, strict=True))
        found = self._owner(node, tensors)  # type: ignore[arg-type]
        if found is None or not self._claim(found[1], module, tensors):  # type: ignore[arg-type]
            return
        state = a["hx"]
        state = tuple(state) if isinstance(state, (list, tuple)) else state
        self._pack_recurrent(node, found[0], a["input"], state)

    def _pack_recurrent(self, node: fx.Node, path: str, value: Any, state: Any) -> None:
        """An LSTM operation gives (output, h, c), the module (output, (h, c)): reroute the readers."""
        lstm = node.target is aten.lstm.input
        self._call(node, path, (value, state))
        if not lstm:
            return
        for user in list(node.users):
            if user.target is operator.getitem and user.args[1] in (1, 2):
                with self.graph.inserting_before(user):
                    pair = self.graph.call_function(operator.getitem, (node, 1))
                pair.meta = dict(user.meta)
                user.args = (pair, user.args[1] - 1)  # type: ignore[operator]

    def _claim(self, owner: nn.Module, module: nn.Module, tensors: dict[str, Tensor]) -> bool:
        """Let ``module`` stand for ``owner``; False where another call of the same owner needs different settings."""
        standing = self.lifted.get(id(owner))
        if standing is not None:
            return same_settings(standing, module)
        for slot, tensor in tensors.items():
            (module._parameters if slot in module._parameters else module._buffers)[slot] = tensor  # type: ignore[assignment]
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            counter = getattr(owner, "num_batches_tracked", None)
            module.num_batches_tracked = counter if isinstance(counter, Tensor) else None
        self.lifted[id(owner)] = module.eval()
        return True

    def _lift_dropout(self, node: fx.Node) -> None:
        value, p, active = node.args
        if active is not False:  # the model drops in eval mode too: that is part of what it computes
            return
        path = node.meta["path"]
        owner = self.owners.get(path)
        kind = type(owner) if isinstance(owner, nn.modules.dropout._DropoutNd) else DROPOUTS[node.target]
        module = kind(float(p)).eval()  # type: ignore[arg-type]
        if isinstance(owner, nn.modules.dropout._DropoutNd) and self._claim(owner, module, {}):
            self._call(node, path, (value,))
            return
        stem = f"{path}.{node.name}" if path else node.name
        self.extra[stem] = module
        self._call(node, stem, (value,))

    def _call(self, node: fx.Node, path: str, args: tuple[Any, ...]) -> None:
        node.op, node.target, node.args, node.kwargs = "call_module", path, args, {}

    # the module tree

    def _build(self, original: nn.Module, memo: dict[int, nn.Module]) -> nn.Module:
        """Mirror the model: lifted modules where there are some, plain containers elsewhere, all tensors in place."""
        if id(original) in memo:
            return memo[id(original)]
        module = self.lifted.get(id(original))
        new = module if module is not None else nn.Module()
        new.training = False
        memo[id(original)] = new
        kept = original.state_dict(keep_vars=True).keys()
        for name, parameter in original._parameters.items():
            if name not in new._parameters and parameter is not None:
                new.register_parameter(name, parameter)
        for name, buffer in original._buffers.items():
            if name not in new._buffers and buffer is not None:
                new.register_buffer(name, buffer, persistent=name in kept)
        for name, child in original._modules.items():
            if child is not None:
                new._modules[name] = self._build(child, memo)
        return new

    def _keep_constants(self, root: nn.Module) -> None:
        """Carry over tensors that the capture made (constants in the model's code) as buffers not in the state_dict."""
        names: dict[str, str] = {}
        for node in self.graph.nodes:
            if node.op != "get_attr" or self._tensor(node) is not None:
                continue
            found: Any = self.source
            for atom in str(node.target).split("."):
                found = getattr(found, atom)
            if isinstance(found, fx.GraphModule):
                user = next(iter(node.users), node)
                raise CaptureError(
                    f"{user.target} at {user.meta.get('source') or user.name} chooses or repeats a part of the model "
                    "while it runs, which one graph of layers cannot hold; capture the sub-modules around it"
                )
            if isinstance(found, Tensor):
                if node.target not in names:
                    name = re.sub(r"\W", "_", str(node.target))
                    while hasattr(root, name):  # a child, a tensor of the model, or another constant spelled alike
                        name += "_"
                    root.register_buffer(name, found.detach(), persistent=False)
                    names[node.target] = name
                node.target = names[node.target]

    def _canonical_targets(self) -> None:
        for node in self.graph.nodes:
            if node.op == "get_attr" and (tensor := self._tensor(node)) is not None:
                node.target = self.names[id(tensor)]

    def _relax_views(self) -> None:
        """Let every view copy where it has to, as ``reshape`` does.

        What ``torch.export`` writes down as a view was often a reshape, or had a ``contiguous`` before it that the
        kernel of that moment made unnecessary: another width or device has another kernel, and its strides.
        """
        for node in self.graph.find_nodes(op="call_function", target=aten.view.default):
            node.target = aten.reshape.default


def _holds_more(owner: nn.Module, slots: Iterable[str]) -> bool:
    """Whether a module has tensors that this operation does not use: a layer without them would lose them."""
    return any(isinstance(getattr(owner, slot, None), Tensor) for slot in slots)


def _names_in(module: nn.Module, tensors: Iterable[Tensor]) -> list[str]:
    names = {id(tensor): name for name, tensor in module.named_parameters()}
    return [names[id(tensor)] for tensor in tensors]


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for atom in parents:
        if atom not in root._modules:
            root.add_module(atom, nn.Module())
        root = root._modules[atom]  # type: ignore[assignment]
    root.add_module(last, module)
