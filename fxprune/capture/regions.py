"""A model that is captured by region: which of its sub-modules one graph holds side by side, and how they are called.

The graph is the disjoint union of the sub-modules' graphs: what each is given is an input of the whole, what it returns
an output. So channels on a border stay, and whatever works on one graph works on all of them together.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.fitting import same_kind, same_sizes
from fxprune.errors import InputError

if TYPE_CHECKING:
    from fxprune.capture.traced import Traced


def first_size(leaves: Iterable[Any]) -> int:
    """Return the batch of some inputs: the first size of the first tensor that has one, else 1."""
    return next((int(leaf.shape[0]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), 1)


@dataclass(frozen=True, eq=False)
class Call:
    """How a region's sub-module is called: with inputs of these sizes, as part of the one graph.

    Attributes:
        path: Dotted path of the sub-module.
        variant: Number of the capture among those of the path. Calls with the same one differ in sizes that may vary.
        names: What the inputs are called.
        inputs: Which of the graph's inputs are this call's.
        outputs: Which of its outputs.
        free: For each input, the dimensions that may have any size.
        nested: How the inputs, taken one by one, are nested as positional and keyword arguments.
        returned: How the outputs are.
        times: How many calls of this size one forward of the model amounts to: how often it is called, and with how
            many samples against the example's.
    """

    path: str
    variant: int
    names: tuple[str, ...]
    inputs: slice
    outputs: slice
    free: tuple[tuple[int, ...], ...]
    nested: pytree.TreeSpec
    returned: pytree.TreeSpec
    times: float

    @property
    def name(self) -> str:
        """What a file or a line of a report calls it."""
        return self.path if self.variant == 0 else f"{self.path}-{self.variant + 1}"


@dataclass(frozen=True, eq=False)
class Regions:
    """Which parts of a model its graph holds.

    Attributes:
        calls: The calls, in the order of the graph's inputs.
        args: Example inputs of the whole model.
        kwargs: Its example keyword inputs.
        left: Path of each module that could not be captured whole, "" for the model -> why.
        pinned: Parameters and buffers that are read outside of the regions as well, and stay -> where.
    """

    calls: tuple[Call, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    left: Mapping[str, str]
    pinned: Mapping[str, str]

    @property
    def paths(self) -> list[str]:
        """The sub-modules, each once."""
        return list(dict.fromkeys(call.path for call in self.calls))

    def variants(self) -> list[Call]:
        """Return the first call of each capture."""
        return list({(call.path, call.variant): call for call in reversed(self.calls)}.values())[::-1]

    def batches(self, leaves: Sequence[Any]) -> list[int]:
        """Return the batch of the call that each of the graph's inputs belongs to."""
        return [first_size(leaves[call.inputs]) for call in self.calls for _ in leaves[call.inputs]]

    def of_nodes(self, graph: fx.Graph) -> dict[fx.Node, Call]:
        """Return the call of every node that some input reaches."""
        given = iter([call for call in self.calls for _ in call.names])
        found: dict[fx.Node, Call] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                found[node] = next(given)
            elif node.op != "output":
                call = next((found[source] for source in node.all_input_nodes if source in found), None)
                if call is not None:
                    found[node] = call
        return found

    def others(self, graph: fx.Graph, call: Call) -> dict[fx.Node, None]:
        """Return the nodes of all other calls: what an interpreter can leave out that wants this one's outputs."""
        return {node: None for node, owner in self.of_nodes(graph).items() if owner is not call}


def require_whole(traced: Traced, what: str, instead: str) -> None:
    """Refuse what needs a model's own inputs or outputs where there are only those of its regions.

    Raises:
        InputError: The model was captured by region.
    """
    if traced.regions is not None:
        raise InputError(
            f"{what} needs {traced.name} captured whole, and it was captured by region "
            f"({', '.join(traced.regions.paths)}): {instead}"
        )


def part(traced: Traced, call: Call) -> Traced:
    """Return one region of a model as a captured model of its own, which shares all layers and tensors.

    It takes the tensors that the sub-module does and returns what that does, one by one instead of nested. What else
    the sub-module is called with, such as a number, is part of the graph.
    """
    whole = traced.module.graph
    leaves = tuple(whole.output_node().args[0])[call.outputs]  # type: ignore[arg-type]
    given = traced.args[call.inputs]
    graph, copies = fx.Graph(), dict[fx.Node, Any]()
    for node, name, leaf in zip(list(whole.find_nodes(op="placeholder"))[call.inputs], call.names, given, strict=True):
        if isinstance(leaf, Tensor):
            copies[node] = graph.placeholder(name)
            copies[node].meta = dict(node.meta)
        else:
            copies[node] = leaf
    needed = _needed(leaves)
    for node in whole.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(fx.node.map_arg(leaves, lambda n: copies[n]))
    module = fx.GraphModule(traced.module, graph, type(traced.module).__name__)
    module.training = traced.module.training
    tensors = [k for k, leaf in enumerate(given) if isinstance(leaf, Tensor)]
    shapes = traced.dynamic_shapes[call.inputs] if any(call.free) else None
    return dataclasses.replace(
        traced,
        module=module,
        args=tuple(given[k] for k in tensors),
        dynamic_shapes=tuple(shapes[k] for k in tensors) if shapes is not None else None,
        name=f"{traced.name}.{call.path}",
        notes=(),
        regions=None,
    )


def _needed(leaves: Sequence[Any]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


Run = Callable[[Call, list[Any]], Sequence[Any]]
"""Computes what a region returns from what it is given, both one by one instead of nested."""


@contextlib.contextmanager
def hosted(model: nn.Module, traced: Traced, run: Run) -> Iterator[None]:
    """Let something else compute the regions of a model for a while: their graphs, or sessions of exported files.

    Args:
        model: The model that was captured by region, or one built the same way. All that is around the regions is its
            own code.
        traced: The capture.
        run: What computes a region.

    Raises:
        InputError: While the model runs, a region is called with inputs that it was not captured for.
    """
    regions = traced.regions
    if regions is None:
        raise InputError(f"{traced.name} was captured whole: there are no regions; call traced.run instead")
    modules = [(model.get_submodule(path), [c for c in regions.calls if c.path == path]) for path in regions.paths]
    were = [(module, vars(module).get("forward")) for module, _ in modules]
    try:
        for module, calls in modules:
            module.forward = _stand_in(calls, traced.args, run)
        yield
    finally:
        for module, before in were:
            del module.forward
            if before is not None:
                module.forward = before


def _stand_in(calls: Sequence[Call], examples: tuple[Any, ...], run: Run) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        leaves, nested = pytree.tree_flatten((args, kwargs))
        fitting = [c for c in calls if c.nested == nested and all(map(_fits, leaves, examples[c.inputs], c.free))]
        if fitting:
            call = max(fitting, key=lambda c: sum(map(_same_dtype, leaves, examples[c.inputs])))
            return pytree.tree_unflatten(list(run(call, leaves)), call.returned)
        given = [f"{x.dtype} of {list(x.shape)}" if isinstance(x, Tensor) else repr(x) for x in leaves]
        raise InputError(
            f"{calls[0].path} was not captured for inputs {', '.join(given)}; capture the model on such inputs"
        )

    return forward


def _fits(given: Any, example: Any, free: tuple[int, ...]) -> bool:
    if not isinstance(given, Tensor) or not isinstance(example, Tensor):
        return type(given) is type(example) and bool(given == example)
    return same_kind(given, example) and same_sizes(given, example, free)


def _same_dtype(given: Any, example: Any) -> bool:
    return isinstance(given, Tensor) and isinstance(example, Tensor) and given.dtype == example.dtype
