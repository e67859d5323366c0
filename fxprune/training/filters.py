"""Which filters a regularised pruning will remove: the smallest of each layer, all that goes with them, and a proof.

The proof is that outputs do not move when filters that are zero are removed: it is run on a copy in which they are.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.channels import Groups, find_groups
from fxprune.channels.removal import Removal
from fxprune.errors import InputError
from fxprune.graph_tools import module_of
from fxprune.surgery import Kept, Masked, Widened, relative_error

Ratios = float | Mapping[str, float]
"""The share of filters to remove: one for every layer but the first, or glob patterns over layers, the first match."""

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_EXACT = 1e-9


@dataclass(frozen=True)
class Filters:
    """What goes of one layer.

    Attributes:
        path: Of the layer.
        index: Of the layer among all convolutions and linear layers, in the order of the graph, from 0.
        weight: Name of its weight.
        dim: The dimension of the weight that holds the filters.
        groups: Of the convolution.
        pruned: The filters that go.
        vectors: What stands for a filter besides its weights: names of the layer's bias, and of the scales and shifts
            of the norms that its output reaches in the graph, with the indices that go.
    """

    path: str
    index: int
    weight: str
    dim: int
    groups: int
    pruned: tuple[int, ...]
    vectors: tuple[tuple[str, tuple[int, ...]], ...]

    def rows(self, module: nn.Module) -> Tensor:
        """Return the weight of a module of this graph as one row per filter, a view."""
        return module.get_parameter(self.weight).movedim(self.dim, 0).flatten(1)


@dataclass(frozen=True)
class Selection:
    """All filters that go.

    Attributes:
        classes: Class ids of the units, in increasing order.
        filters: What goes of each layer, in the order of the graph; layers that keep all are left out.
        layers: Number of convolutions and linear layers.
        notes: Which layers keep their filters although a ratio names them, and why.
    """

    classes: tuple[int, ...]
    filters: tuple[Filters, ...]
    layers: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Layer:
    """A layer of the graph with the classes of its filters, and those that it only passes on, group by group."""

    path: str
    index: int
    weight: str
    dim: int
    groups: int
    axis: npt.NDArray[np.int64]
    calls: tuple[fx.Node, ...]
    passed: frozenset[int]


def select_filters(traced: Traced, groups: Groups, ratios: Ratios, *, residual: bool = False) -> Selection:
    """Choose the filters with the smallest weights of each layer, and what goes with them.

    Per layer the score of a filter is its mean absolute weight, and ``min(ceil(r N), int(0.995 N))`` of N go
    (2207.12534, its published code [READ S1]). Units that several layers make, such as the channels of a residual sum,
    are left as they are; with ``residual`` they are chosen by the first of these layers [READ S1] and by its ratio, and
    go from all of them [DESIGN: in the published runs they are not pruned]. Where channels of one layer go different
    ways, each way loses the same share [DESIGN].

    Args:
        traced: The capture.
        groups: Its channel groups.
        ratios: The shares to remove, in [0, 1).
        residual: Whether to remove units that several layers make.

    Raises:
        InputError: A ratio is out of range, a pattern matches no layer, or nothing can be removed.
    """
    layers = list(_layers(traced.module, groups))
    shares = _shares([layer.path for layer in layers], ratios)
    home: dict[int, _Layer] = {}
    makers: dict[int, int] = {}
    for layer in layers:
        for each in map(int, np.unique(layer.axis)):
            home.setdefault(each, layer)
            makers[each] = makers.get(each, 0) + (each not in layer.passed)
    families, notes = [], []
    for members in groups.families:
        first = home.get(int(members[0]))
        if first is None or not shares[first.path]:
            continue
        if makers[int(members[0])] > 1 and not residual:
            notes.append(f"{first.path} keeps channels that other layers make too (residual=True removes them)")
            continue
        gone = _smallest(traced.module, first, members, shares[first.path])
        if len(gone):
            families.append((first.path, gone))
    stuck = _moving(traced, groups, layers, families)
    notes += [
        f"{path} keeps its filters: outputs move when channels of it that are zero are removed (a norm over channels, "
        "or something that makes a number of a zero, comes behind)"
        for path in dict.fromkeys(families[number][0] for number in stuck)
    ]
    classes = [int(each) for number, (_, gone) in enumerate(families) if number not in stuck for each in gone]
    if not classes:
        raise InputError(
            f"no filter can be removed with the ratios {ratios}: "
            + ("; ".join(notes) or "no removable layer has one above 0, or so high that a whole filter goes")
        )
    return rebuild(traced, groups, classes, notes)


def rebuild(traced: Traced, groups: Groups, classes: Iterable[int], notes: Iterable[str] = ()) -> Selection:
    """Return the selection of these classes."""
    layers = list(_layers(traced.module, groups))
    chosen = sorted(classes)
    return Selection(
        tuple(chosen), tuple(_filters(traced.module, groups, layers, chosen)), len(layers), tuple(dict.fromkeys(notes))
    )


def silence(module: nn.Module, filters: Iterable[Filters]) -> None:
    """Set to zero, in place, all that stands for these filters."""
    with torch.no_grad():
        for each in filters:
            module.get_parameter(each.weight).index_fill_(each.dim, _index(module, each), 0.0)
            for name, indices in each.vectors:
                vector = module.get_parameter(name)
                vector[torch.tensor(indices, device=vector.device)] = 0.0


def removal_error(traced: Traced, removed: Removal) -> float:
    """Return how far outputs move when these channels are removed as they are, relative to the largest, in float64.

    The example's inputs are used, in eval mode, on the CPU.
    """
    module = copy.deepcopy(traced.module).cpu().eval()
    for layer in module.modules():
        vars(layer).pop("forward", None)  # a trainer's own, which is bound to the layer that was copied
    groups = find_groups(traced.with_module(module))  # they belong to the nodes of one graph
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.cpu(), (traced.args, traced.kwargs))
    whole = Widened(module).run_flat(args, kwargs)
    masked = Masked(module, Kept(groups, removed)).run_flat(args, kwargs)
    return max((relative_error(a, b) for a, b in zip(masked, whole, strict=True)), default=0.0)


def _index(module: nn.Module, filters: Filters) -> Tensor:
    return torch.tensor(filters.pruned, device=module.get_parameter(filters.weight).device)


def _layers(module: fx.GraphModule, groups: Groups) -> Iterator[_Layer]:
    """Yield convolutions and linear layers in the order in which they are first called."""
    names = {id(tensor): name for name, tensor in module.named_parameters()}
    calls: dict[int, list[fx.Node]] = {}
    for node in module.graph.find_nodes(op="call_module"):
        if isinstance(module_of(module, node), (*_CONVS, *_TRANSPOSED, nn.Linear)):
            calls.setdefault(id(module_of(module, node)), []).append(node)
    for index, nodes in enumerate(calls.values()):
        layer = module_of(module, nodes[0])
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)  # lifted layers have it
        count = getattr(layer, "groups", 1)
        dim = 1 if isinstance(layer, _TRANSPOSED) else 0
        axis = None if dim and count > 1 else groups.axis(names[id(weight)], dim)
        if axis is None:  # its filters stay; it counts all the same
            axis = np.empty(0, np.int64)
        read = groups.of(nodes[0].all_input_nodes[0]) if count > 1 else None
        passed = frozenset(int(each) for labels in read or () if labels is not None for each in labels)
        yield _Layer(str(nodes[0].target), index, names[id(weight)], dim, count, axis, tuple(nodes), passed)


def _shares(paths: list[str], ratios: Ratios) -> dict[str, float]:
    """Return the ratio of each layer."""
    if not isinstance(ratios, Mapping):
        ratios = {**dict.fromkeys(paths[:1], 0.0), "*": ratios}  # the published settings leave the stem whole
    for pattern, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
            raise InputError(
                f"the ratio {ratio!r} of {pattern!r} must be a number from 0 to below 1: the share to remove"
            )
        if not any(fnmatchcase(path, pattern) for path in paths):
            near = ", ".join(paths[:5])
            raise InputError(f"the pattern {pattern!r} matches no convolution or linear layer; there are {near} ...")
    return {
        path: float(next((ratio for pattern, ratio in ratios.items() if fnmatchcase(path, pattern)), 0.0))
        for path in paths
    }


def _smallest(module: nn.Module, layer: _Layer, members: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """Return the classes whose filters in a layer have the smallest mean absolute weight."""
    rows = module.get_parameter(layer.weight).detach().movedim(layer.dim, 0).flatten(1)
    sizes = rows.abs().mean(1).double().cpu().numpy()
    top = int(max(members.max(), layer.axis.max())) + 1
    sums, counts = np.bincount(layer.axis, sizes, top), np.bincount(layer.axis, minlength=top)
    total = len(members)
    count = min(math.ceil(share * total - 1e-9), int(0.995 * total))  # 0.55 * 20 is a little above 11
    return members[np.argsort(sums[members] / counts[members], kind="stable")[:count]]


def _filters(module: fx.GraphModule, groups: Groups, layers: list[_Layer], classes: Sequence[int]) -> Iterator[Filters]:
    """Yield what goes of each layer. What several layers reach belongs to the last of them, which is zeroed last."""
    gone = np.zeros(groups.size, bool)
    gone[list(classes)] = True
    found, claimed = dict[str, Filters](), set[tuple[str, int]]()
    for layer in reversed(layers):
        pruned = np.flatnonzero(gone[layer.axis])
        if not len(pruned):
            continue
        own = np.unique(layer.axis[pruned])
        vectors = []
        for name in _vectors(module, layer):
            axis = groups.axis(name, 0)
            indices = [] if axis is None else [int(i) for i in np.flatnonzero(np.isin(axis, own))]
            indices = [index for index in indices if (name, index) not in claimed]
            claimed |= {(name, index) for index in indices}
            if indices:
                vectors.append((name, tuple(indices)))
        if (same := found.get(layer.weight)) is not None:  # tied weights are one, and go with all that stands for them
            found[layer.weight] = dataclasses.replace(same, vectors=(*vectors, *same.vectors))
            continue
        found[layer.weight] = Filters(
            layer.path, layer.index, layer.weight, layer.dim, layer.groups, tuple(map(int, pruned)), tuple(vectors)
        )
    yield from reversed(found.values())


def _vectors(module: fx.GraphModule, layer: _Layer) -> list[str]:
    """Return the layer's bias, and the scales and shifts of all norms that its output reaches before other layers."""
    names = {id(tensor): name for name, tensor in module.named_parameters()}
    owners = [module_of(module, layer.calls[0])]
    bias = owners[0]._parameters.get("bias")
    found = [] if bias is None else [names[id(bias)]]
    todo, seen = [user for call in layer.calls for user in call.users], set[fx.Node]()
    while todo:
        node = todo.pop(0)
        if node in seen:
            continue
        seen.add(node)
        owner = module_of(module, node) if node.op == "call_module" else None
        if isinstance(owner, _NORMS):
            found += [names[id(tensor)] for tensor in owner.parameters(recurse=False)]
        elif owner is not None and any(tensor.dim() > 1 for tensor in owner.parameters()):
            continue  # makes channels of its own
        todo += node.users
    return list(dict.fromkeys(found))


def _moving(
    traced: Traced, groups: Groups, layers: list[_Layer], families: list[tuple[str, npt.NDArray[np.int64]]]
) -> set[int]:
    """Return the families whose removal moves outputs even where all that stands for them is zero, by bisection."""

    def error(numbers: Sequence[int]) -> float:
        classes = [int(each) for number in numbers for each in families[number][1]]
        module = copy.deepcopy(traced.module)
        silence(module, _filters(traced.module, groups, layers, classes))
        return removal_error(traced.with_module(module), groups.removal(classes))

    stuck = set[int]()
    todo: list[Sequence[int]] = [range(len(families))] if families else []
    while todo:
        numbers = todo.pop()
        if error(numbers) <= _EXACT:
            continue
        if len(numbers) == 1:
            stuck.add(numbers[0])
        else:
            middle = len(numbers) // 2
            todo += [numbers[:middle], numbers[middle:]]
    rest = [number for number in range(len(families)) if number not in stuck]
    if stuck and rest and error(rest) > _EXACT:
        return set(range(len(families)))  # they move outputs only together
    return stuck
