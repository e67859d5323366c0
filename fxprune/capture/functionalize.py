"""Make in-place operations functional, so that a value never changes after it was computed.

An in-place operation on a value that nothing else looks at is renamed to its functional twin, and later readers are
pointed at the result. Where a write goes through a view, or a view taken before the write is read after it, torch's own
functionalisation does it instead.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.errors import CaptureError

aten = torch.ops.aten


def is_inplace(node: fx.Node) -> bool:
    """Whether a node changes its first argument."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable and target._schema.name.endswith("_")


def spell_constants(graph: fx.Graph) -> None:
    """Spell the constants of a model's code as copies: ``torch.tensor([1.0])`` comes with a ``detach_`` of its own.

    That changes no value, so that it is no reason to make the whole graph functional, which costs dropout layers.
    """
    for node in graph.nodes:
        if node.target is aten.lift_fresh_copy.default:
            node.target = aten.clone.default
        elif node.target is aten.detach_.default:
            node.target = aten.detach.default
            node.args[0].replace_all_uses_with(node, delete_user_cb=lambda user, node=node: node < user)


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def writes_through_views(graph: fx.Graph) -> bool:
    """Whether some in-place operation writes a memory that another value looks into, so that renaming is not enough."""
    sharing: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        storage = _storage(node)
        if storage is not None:
            sharing.setdefault(storage, []).append(node)
    return any(_reaches_others(node, sharing) for node in graph.nodes if is_inplace(node))


def _reaches_others(write: fx.Node, sharing: dict[int, list[fx.Node]]) -> bool:
    written: Any = write.args[0]
    chain = {written, write}
    while is_inplace(written):  # x.add_(1).relu_(): the results of in-place operations are all the same tensor
        written = written.args[0]
        chain.add(written)
    storage = _storage(written)
    others = (
        [node for node in sharing.get(storage, []) if node not in chain and not _same_tensor(node, chain)]
        if storage
        else []
    )
    earlier = [node for node in others if node < write]
    if earlier and min(earlier) < written:  # what is written is itself a view of something computed before
        return True
    return any(write < user for node in earlier for user in node.users)


def _same_tensor(node: fx.Node, chain: set[fx.Node]) -> bool:
    return is_inplace(node) and node.args[0] in chain


def leave_out_state(graph: fx.Graph) -> list[str]:
    """Leave out what the model writes into its own tensors; return a note for it.

    A captured graph keeps no state. Statistics that only a later call in training mode would read can go unwritten.

    Raises:
        CaptureError: What the model returns depends on a tensor that it writes, and so on how often it was called.
    """
    written: dict[int, fx.Node] = {}
    for node in graph.nodes:
        for place in _written_by(node):
            storage = _storage(place)
            if storage is not None:
                written[storage] = node
    stateful = {node: _storage(node) for node in graph.nodes if node.op == "get_attr" and _storage(node) in written}
    if not stateful:
        return []
    for node in graph.nodes:
        if _updates_statistics(node):  # normalises by the batch, whatever the statistics are
            node.args = (*node.args[:3], None, None, *node.args[5:])
    for node in _ancestors(graph.output_node()):
        storage = _storage(node)
        if storage is not None and storage in stateful.values():
            write = written[storage]
            name = next(str(read.target) for read, place in stateful.items() if place == storage)
            raise CaptureError(
                f"the model writes into {name} at {_place_of(write)} and what it returns depends "
                "on it, so that each call gives something else; a graph keeps no state: pass it as an input and "
                "return what it becomes, or write it in training mode only"
            )
    names = ", ".join(str(node.target) for node in stateful)
    return [f"the model writes into {names}, and the graph does not: nothing that it returns depends on it"]


def notes_of_written_inputs(graph: fx.Graph) -> list[str]:
    """Return notes of the inputs that the model writes into; a graph without in-place operations leaves them alone."""
    inputs = list(graph.find_nodes(op="placeholder"))
    written: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for place in _written_by(node) if is_inplace(node) else []:
            for read in inputs:
                if place is read or (_storage(read) is not None and _storage(place) == _storage(read)):
                    written.setdefault(read, node)
    return [
        f"the model writes into its input {read.target} at {_place_of(write)}, and the graph does not: who reads it "
        "afterwards sees no change"
        for read, write in written.items()
    ]


def _place_of(write: fx.Node) -> str:
    """Return the line of a write, or of what is written: torch's functionalisation writes at the end of its own."""
    sources = [node.meta.get("source") for node in (write, *write.all_input_nodes[1:])]
    return next((str(source) for source in sources if source), write.name)


def _written_by(node: fx.Node) -> list[Any]:
    if _updates_statistics(node):
        return [value for value in node.args[3:5] if isinstance(value, fx.Node)]
    return [node.args[0]] if is_inplace(node) else []


def _updates_statistics(node: fx.Node) -> bool:
    return node.target in (aten.batch_norm.default, aten.instance_norm.default) and node.args[5] is True


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        fresh = [source for source in pending.pop().all_input_nodes if source not in found]
        found.update(fresh)
        pending += fresh
    return found


def functionalize(graph: fx.Graph) -> None:
    """Rename every in-place operation to its functional twin, on a graph that does not write through views.

    Raises:
        CaptureError: An operation has no functional twin.
    """
    newest: dict[fx.Node, fx.Node] = {}

    def latest(node: fx.Node) -> fx.Node:
        while node in newest:
            node = newest[node]
        return node

    for node in graph.nodes:
        node.args = fx.node.map_arg(node.args, latest)
        node.kwargs = fx.node.map_arg(node.kwargs, latest)
        if is_inplace(node):
            written: Any = node.args[0]
            node.target = _functional_twin(node)
            newest[written] = node


def _functional_twin(node: fx.Node) -> Any:
    target: Any = node.target
    namespace, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    twin = getattr(packet, target._schema.overload_name or "default", None) if packet is not None else None
    if twin is None:
        raise CaptureError(
            f"{target} at {node.meta.get('source') or node.name} changes a tensor in place and has no functional twin; "
            "write it without the trailing underscore in the model"
        )
    return twin


def spell_copies(graph: fx.Graph) -> None:
    """Write ``copy(into, source)`` as the source in the shape and type of ``into``, which torch can differentiate."""
    for node in graph.nodes:
        if node.target is not aten.copy.default:
            continue
        into, source = node.args[:2]
        if into.meta["val"].dtype != source.meta["val"].dtype:
            with graph.inserting_before(node):
                cast = graph.call_function(aten.type_as.default, (source, into))
            cast.meta = dict(node.meta)
            source = cast
        node.target, node.args, node.kwargs = aten.expand_as.default, (source, into), {}


def restore_vocabulary(graph: fx.Graph) -> None:
    """Bring back the operations that torch's functionalisation spells differently: batch norm in eval mode."""
    spelled = aten._native_batch_norm_legit_no_training.default
    for node in list(graph.nodes):
        if node.target is not spelled:
            continue
        value, weight, bias, mean, var, momentum, eps = node.args
        node.target = aten.batch_norm.default
        node.args = (value, weight, bias, mean, var, False, momentum, eps, False)
        found = node.meta.get("val")
        node.meta["val"] = found[0] if isinstance(found, (list, tuple)) else found
        for user in list(node.users):
            if user.target is operator.getitem and user.args[1] == 0:
                user.replace_all_uses_with(node)
                graph.erase_node(user)
