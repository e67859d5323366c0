"""Collapse linear chains and parallel branches into one layer.

A region of the graph that is linear from one value to another becomes a single convolution or linear layer:

* chains without an activation: convolutions, linear layers, batch norms in eval mode, scales and shifts by constants,
  padding;
* sums of branches that read the same value: such chains, the value itself, average pooling (RepVGG, MobileOne, ACNet,
  RepViT, RepGhost, FastViT...);
* what :class:`~fxprune.passes.OverParameterize` made.

It is matched on the graph, whatever the classes are called. The algebra [READ: RepVGG, ExpandNets; DER], with ``s`` the
stride, ``p`` the padding and ``d`` the dilation of two layers in a row::

    W[o, i, s1 d2 b + d1 a] = sum over m of W2[o, m, b] W1[m, i, a]        s = s1 s2
    bias[o] = bias2[o] + sum over m, b of W2[o, m, b] bias1[m]             p = p1 + s1 p2

It is exact at the borders where the second layer does not pad, or pads with zeros what the first, continued beyond its
ends, would give there too: then the first has no bias and sees nothing but its own padding. Branches are aligned at
their first cells and added, tap by tap; groups are those that all have in common. A norm or dropout at either end of a
region is left to :class:`~fxprune.passes.FuseBatchNorm` and :class:`~fxprune.passes.RemoveIdentity`, and padding in
front of it stays as it is written.

A region stays as it is where one layer would cost more multiply-accumulates, as for a low-rank pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from fxprune.capture import Traced
from fxprune.graph_tools import drop_unused, module_of, place_of, shape_of, tensors_of
from fxprune.linear.blocks import blocks_of, with_blocks
from fxprune.linear.forms import Form, NotOneLayer, affine, layer_of, padding_of
from fxprune.linear.layers import COMPUTED, FUNCTIONAL, LAYERS, TRANSPOSED
from fxprune.linear.operations import Frame, Operation, Operations
from fxprune.linear.regions import Region, regions_before
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip

# New weights are float64 until they have been checked, and other layers of the model are not.
_ROUNDED_TO: WeakKeyDictionary[nn.Module, set[torch.dtype]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Reparameterize(Pass):
    """Collapse each linear chain, and each sum of linear branches, into one layer where that costs no more.

    Where the merged layers are all that is in a container at path ``X``, the new layer takes the path ``X``: what
    ``OverParameterize`` expanded has its old state_dict keys and shapes again. Otherwise it takes the path of the
    merged layer with the largest kernel.

    Attributes:
        even_if_larger: Collapse also where one layer costs more.
        only_blocks: Collapse nothing but what ``OverParameterize`` made, so that no key changes that was there before.
    """

    name: ClassVar[str] = "reparameterize"
    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    even_if_larger: bool = False
    only_blocks: bool = False

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Collapse what was expanded; then, from the end on, the smallest region that pays, until none does."""
        module, changed = traced.module, set[fx.Node]()
        skips = dict[str, str]()
        for path, last in blocks_of(module).items():
            collapsed = self._collapse_block(module, path, last)
            if isinstance(collapsed, str):
                skips[path] = collapsed
            else:
                changed.add(collapsed[0])
                yield collapsed[1]
        while not self.only_blocks:
            skips, round_changes = {}, []
            for done in self._round(module, skips, changed):
                round_changes.append(done)
                yield done
            if not round_changes:
                break
        yield from (Skip(place, reason) for place, reason in skips.items())

    def _collapse_block(self, module: fx.GraphModule, path: str, last: str) -> tuple[fx.Node, Change] | str:
        """Collapse the layers of one block, and nothing around them; return why not otherwise."""
        inside = {n for n in module.graph.find_nodes(op="call_module") if str(n.target).startswith(f"{path}.")}
        end = next((node for node in inside if str(node.target) == last), None)
        if end is None:
            return f"its last layer, {last}, is not called any more"
        operations = Operations(module)
        found, why = regions_before(operations, end)
        region = next((region for region in found if set(region.nodes) == inside), None)
        if region is None:
            return f"its layers are no chain any more: {why}"
        return self._collapse(module, operations, region)

    def _round(self, module: fx.GraphModule, skips: dict[str, str], changed: set[fx.Node]) -> Iterator[Change]:
        """Look at every end once, the last first; what is collapsed is looked at again."""
        operations = Operations(module)
        pending = list(module.graph.nodes)
        gone = set[fx.Node]()
        while pending:
            node = pending.pop()
            if node in gone:
                continue
            done = self._look_at(module, operations, node)
            if isinstance(done, tuple):
                changed.add(done[0])
                pending.append(done[0])
                gone.update(set(pending).difference(module.graph.nodes))
                operations = Operations(module)
                yield done[1]
            elif done and node not in changed:
                skips[place_of(node)] = done

    def _look_at(self, module: fx.GraphModule, operations: Operations, node: fx.Node) -> tuple[fx.Node, Change] | str:
        """Collapse the smallest region that ends here and pays; return why none does, "" where nobody would ask."""
        if node.op == "call_function" and node.target in FUNCTIONAL:
            return COMPUTED
        if node.op == "call_module" and isinstance(module_of(module, node), TRANSPOSED):
            return "transposed convolutions are not collapsed"
        operation = operations[node]
        if isinstance(operation, str):
            is_layer = node.op == "call_module" and isinstance(module_of(module, node), LAYERS)
            return f"it {operation}" if is_layer else ""
        if operation.kind not in ("layer", "sum", "constant"):
            return ""
        found, why = regions_before(operations, node)
        reasons = []
        for region in found:
            if _is_worth_a_look(operations, region):
                done = self._collapse(module, operations, region)
                if isinstance(done, tuple):
                    return done
                reasons.append(done)
        if operation.kind == "layer" or any(_comes_from_layer(operations, source) for source in operation.sources):
            return reasons[0] if reasons else why
        return ""

    def _collapse(self, module: fx.GraphModule, operations: Operations, region: Region) -> tuple[fx.Node, Change] | str:
        """Put one layer in the place of a region; return its call and the change, or why it is not done."""
        try:
            form = _form_of(module, operations, region)
            layers: list[Any] = [module_of(module, n) for n in region.nodes if _kind(operations, n) == "layer"]
            spelled = [layer.padding for layer in layers if isinstance(getattr(layer, "padding", None), str)]
            padding_of(form, spelled)  # before anything is multiplied out
            _check_precision(module, operations, region)
        except NotOneLayer as reason:
            return f"it is no single layer together with {_others(region)}: {reason}"
        before, after = _macs(operations, region, form)
        if after > before and not self.even_if_larger:
            return (
                f"one layer in place of it and {_others(region)} would cost {after:,} multiply-accumulates per sample, "
                f"and they cost {before:,}"
            )
        trainable = any(layer.weight.requires_grad for layer in layers)
        layer = layer_of(form, spelled=spelled, trainable=trainable)
        _ROUNDED_TO[layer] = {dtype for old in layers for dtype in _dtypes(old)}
        merged = [place_of(node) for node in reversed(region.nodes)]
        node = _replace(module, operations, region, layer)
        what = f"{', '.join(merged)} became {layer}: {before:,} -> {after:,} multiply-accumulates per sample"
        return node, Change(place_of(node), what)


# ---------------------------------------------------------------- what a region computes


def _kind(operations: Operations, node: fx.Node) -> str:
    operation = operations[node]
    return operation if isinstance(operation, str) else operation.kind


def _others(region: Region) -> str:
    """Return the names of all but the last call of a region."""
    return ", ".join(place_of(node) for node in reversed(region.nodes[1:]))


def _is_worth_a_look(operations: Operations, region: Region) -> bool:
    """Whether a region has a layer in it and something to merge with it that is no other pass's to remove."""
    kinds = [_kind(operations, node) for node in region.nodes]
    readers = [kind for node, kind in zip(region.nodes, kinds, strict=True) if region.source in node.all_input_nodes]
    left_to_others = len(readers) == 1 and readers[0] in ("norm", "same", "pad")
    return len(kinds) > 1 and "layer" in kinds and not left_to_others


def _comes_from_layer(operations: Operations, node: fx.Node) -> bool:
    """Whether a value is a layer's, but for norms and constants behind it."""
    operation = operations[node]
    while isinstance(operation, Operation) and operation.kind in ("norm", "constant", "same"):
        operation = operations[operation.sources[0]]
    return isinstance(operation, Operation) and operation.kind == "layer"


def _form_of(module: fx.GraphModule, operations: Operations, region: Region) -> Form:
    """Return what a region computes from its source."""
    head = next(node for node in reversed(region.nodes) if _kind(operations, node) == "layer")
    shape = shape_of(region.source)
    frame = Frame.of(module_of(module, head), shape_of(head))
    if frame is None or shape is None or len(shape) != frame.rank:
        raise NotOneLayer(f"{place_of(region.source)} before it has no dimension for the channels of all of them")
    forms = {region.source: affine(None, None, shape[frame.axis], frame.dims)}
    for node in reversed(region.nodes):
        operation = operations[node]
        assert isinstance(operation, Operation)
        forms[node] = operation.apply(frame, [forms[source] for source in operation.sources])
    return forms[region.end]


def _check_precision(module: fx.GraphModule, operations: Operations, region: Region) -> None:
    """Refuse to merge layers of different dtypes: what one layer would be rounded to is not what all of them were."""
    layers = [module_of(module, node) for node in region.nodes if _kind(operations, node) in ("layer", "norm")]
    dtypes = {dtype for layer in layers for dtype in _dtypes(layer)}
    if len(dtypes) > 1:
        raise NotOneLayer(f"their weights are {', '.join(sorted(map(str, dtypes)))}")


def _dtypes(layer: nn.Module) -> set[torch.dtype]:
    """Return the precisions of a layer; of one that was merged a moment ago, those that it will be rounded to."""
    return _ROUNDED_TO.get(layer) or {tensor.dtype for tensor in tensors_of(layer) if tensor.is_floating_point()}


def _macs(operations: Operations, region: Region, form: Form) -> tuple[int, int]:
    """Return the multiply-accumulates per sample of a region, and those of one layer in its place."""
    before = 0
    for node in region.nodes:
        operation = operations[node]
        assert isinstance(operation, Operation)
        before += operation.macs_per_output * prod((shape_of(node) or (1,))[1:])
    return before, form.macs_per_output * prod((shape_of(region.end) or (1,))[1:])


# ---------------------------------------------------------------- the graph


def _replace(module: fx.GraphModule, operations: Operations, region: Region, layer: nn.Module) -> fx.Node:
    """Call the new layer in place of a region, and remove what nothing reads any more."""
    called = [node for node in region.nodes if node.op == "call_module"]
    old = {str(node.target): module_of(module, node) for node in called}
    constants = operations.behind(c for n in region.nodes for c in _constants(operations, n))
    path = _path_for(module, region, constants)
    with_blocks(module, _blocks_left(module, set(old)))
    parent, _, name = path.rpartition(".")
    module.get_submodule(parent)._modules[name] = layer.train(module_of(module, called[0]).training)
    with module.graph.inserting_before(region.end):
        node = module.graph.call_module(path, (region.source,))
    node.meta = dict(region.end.meta)
    region.end.replace_all_uses_with(node)
    for gone in (*region.nodes, *sorted(constants, reverse=True)):
        module.graph.erase_node(gone)
    for target, child in old.items():
        if target != path:
            drop_unused(module, child)
    for constant in constants:
        if constant.op == "get_attr":
            _drop_tensor(module, str(constant.target))
    return node


def _constants(operations: Operations, node: fx.Node) -> tuple[fx.Node, ...]:
    operation = operations[node]
    return () if isinstance(operation, str) else operation.constants


def _path_for(module: fx.GraphModule, region: Region, constants: set[fx.Node]) -> str:
    """Return the path of the innermost container that holds the region and nothing else, or of its main layer."""
    inside = {*region.nodes, *constants}
    targets = [str(node.target) for node in inside if node.op in ("call_module", "get_attr")]
    shared = _common_prefix(targets)
    called = [node for node in region.nodes if isinstance(_module_or_none(module, node), LAYERS)]
    main = max(reversed(called), key=lambda node: prod(getattr(module_of(module, node), "kernel_size", ())))
    if not shared:
        return str(main.target)
    for node in module.graph.nodes:
        if node.op in ("call_module", "get_attr") and node not in inside and _is_in(str(node.target), shared):
            return str(main.target)
    # What the graph never read is not to be removed, and goes with the container.
    container = module.get_submodule(shared)
    owned = {f"{shared}.{key}" for key in container.state_dict()}
    known = {key for key in owned if any(_is_in(key, target) for target in targets)}
    return shared if owned == known else str(main.target)


def _module_or_none(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return module_of(module, node) if node.op == "call_module" else None


def _is_in(path: str, container: str) -> bool:
    return path == container or path.startswith(f"{container}.")


def _common_prefix(paths: list[str]) -> str:
    """Return the path of the innermost container that all of these are in; a path alone is in its own container."""
    split = [path.split(".") for path in paths]
    if len(split) == 1:
        return paths[0]
    shared = []
    for parts in zip(*(path[:-1] for path in split), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _blocks_left(module: fx.GraphModule, gone: set[str]) -> dict[str, str]:
    """Return the record without the blocks that lose a layer."""
    blocks = blocks_of(module)
    return {path: last for path, last in blocks.items() if not any(_is_in(target, path) for target in gone)}


def _drop_tensor(module: fx.GraphModule, target: str) -> None:
    """Remove a parameter or buffer that nothing reads, where it was not removed with its container."""
    owner, _, name = target.rpartition(".")
    holder: Any = module
    for part in owner.split(".") if owner else ():
        holder = holder._modules.get(part)
        if holder is None:
            return
    holder._parameters.pop(name, None)
    holder._buffers.pop(name, None)
    holder._non_persistent_buffers_set.discard(name)
