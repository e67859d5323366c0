"""What a graph has to compute after a pass, made without the library's own verification.

Each reference is a copy of the graph in front of the pass, changed by hand as the pass's documentation says: weights
filled in by numpy, activations mixed, summands taken as zero. It is run by the code that ``torch.fx`` generates.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.depth import find_layers
from fxprune.passes import CalibrateBatchNorm, LinearizeActivations, PruneChannels, PruneWeights, RemoveLayers
from fxprune.pipeline import Keeps, Pass
from fxprune.report import PassReport

aten = torch.ops.aten
Array = NDArray[Any]


class BrokenPromise(Exception):
    """A pass did something else than it promises, other than a wrong number."""


def require(holds: bool, what: str) -> None:
    """Raise ``BrokenPromise`` where something does not hold."""
    if not holds:
        raise BrokenPromise(what)


def plain(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy in float64 that shares nothing with the module."""
    twin = copy.deepcopy(module)
    twin.recompile()
    return twin.double()


def run(module: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    """Run a module as plain Python; inputs are widened."""
    with torch.no_grad():
        outputs = module(*(arg.double().clone() if arg.is_floating_point() else arg.clone() for arg in args))
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def reference(pass_: Pass, before: Traced, after: Traced, report: PassReport, reads: bool) -> fx.GraphModule | None:
    """Return a module that computes what a graph has to compute after a pass; None where there is none.

    Args:
        pass_: The pass.
        before: What it was given.
        after: What it gave.
        report: What it says that it did.
        reads: Whether what is left of a value depends on all channels of it, so that zeros are no absence.
    """
    if pass_.keeps is Keeps.OUTPUTS or not report.changes:
        return plain(before.module)
    if isinstance(pass_, PruneChannels):
        return _zeroed(pass_, before, after, reads)
    return _MADE[type(pass_)](pass_, before, after, report)


# ---------------------------------------------------------------- channels


def _zeroed(pass_: PruneChannels, before: Traced, after: Traced, reads: bool) -> fx.GraphModule | None:
    """Set every slice of the plan to zero, in what makes a channel and in what reads it."""
    was, now = before.module.state_dict(), after.module.state_dict()
    for name, dims in pass_.plan.removed.items():
        left = was[name]
        for dim, indices in dims.items():
            kept = [i for i in range(left.shape[dim]) if i not in set(indices)]
            left = left.index_select(dim, torch.tensor(kept))
        require(now[name].shape == left.shape, f"{name} is {tuple(now[name].shape)}, and {tuple(left.shape)} is left")
        if not (pass_.plan.compensate and name.endswith(("bias", "running_mean"))):  # they take up a constant
            require(torch.equal(now[name], left), f"{name} has other values than those that are left")
    if reads or pass_.plan.compensate:
        return None
    module = plain(before.module)
    state = module.state_dict()
    with torch.no_grad():
        for name, dims in pass_.plan.removed.items():
            for dim, indices in dims.items():
                if state[name].is_floating_point():
                    state[name].index_fill_(dim, torch.tensor(indices), 0.0)
    return module


# ---------------------------------------------------------------- layers and activations


def _without_layers(pass_: RemoveLayers, before: Traced, after: Traced, report: PassReport) -> fx.GraphModule:
    """Multiply branches by zero, and read the input of a sequence or block in place of its output."""
    module, gone = plain(before.module), {change.place for change in report.changes}
    nodes = {node.name: node for node in module.graph.nodes}
    chosen = [layer for layer in find_layers(before, pass_.level) if layer.name in gone]
    require(len(chosen) == len(gone), f"of {sorted(gone)} only {[layer.name for layer in chosen]} are layers")
    order = {name: number for number, name in enumerate(nodes)}
    for layer in sorted(chosen, key=lambda layer: -order[layer.output]):
        end = nodes[layer.output]
        if layer.kind == "branch":
            summand = nodes[layer.summand]
            with module.graph.inserting_after(summand):
                nothing = module.graph.call_function(aten.zeros_like.default, (summand,))
            end.replace_input_with(summand, nothing)
        else:
            end.replace_all_uses_with(nodes[layer.source])
    module.recompile()
    return module


def _mixed(pass_: LinearizeActivations, before: Traced, after: Traced, report: PassReport) -> fx.GraphModule:
    """Mix the activations by their formula; where there is a mixture already, set its share."""
    module, changed = plain(before.module), [change.place for change in report.changes]
    said = {change.place: change.what for change in report.changes}
    for layer in changed:
        holder = dict(module.named_modules()).get(f"{layer}_activation")
        if holder is not None and "share" in holder._buffers:
            holder.get_buffer("share").fill_(pass_.share)
            continue
        name = next(
            word for number, word in enumerate(said[layer].split()) if said[layer].split()[number - 1] == "activation"
        )
        node = next(each for each in module.graph.nodes if each.name == name)
        source = node.all_input_nodes[0]
        with module.graph.inserting_after(node):
            first = module.graph.call_function(aten.mul.Tensor, (node, 1.0 - pass_.share))
        with module.graph.inserting_after(first):
            second = module.graph.call_function(aten.mul.Tensor, (source, pass_.share * pass_.slope))
        with module.graph.inserting_after(second):
            total = module.graph.call_function(aten.add.Tensor, (first, second))
        node.replace_all_uses_with(total, delete_user_cb=lambda user, first=first: user is not first)
    module.recompile()
    return module


# ---------------------------------------------------------------- statistics


def _calibrated(pass_: CalibrateBatchNorm, before: Traced, after: Traced, report: PassReport) -> fx.GraphModule:
    """Let torch itself collect the statistics, in training mode and with the momentum of an average."""
    module = plain(before.module)
    wanted = [change.place for change in report.changes]
    wanted += [skip.place for skip in report.skips if "already" in skip.why]
    norms: list[Any] = [module.get_submodule(path) for path in wanted]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in itertools.islice(pass_.batches, pass_.max_batches):
        run(module, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
    return module


# ---------------------------------------------------------------- single weights


def _weights_filled(pass_: PruneWeights, before: Traced, after: Traced, report: PassReport) -> fx.GraphModule:
    """Fill in by numpy what is pruned, in the dense form, and hold the choice of entries to its definition."""
    module = plain(before.module)
    said = {change.place: change.what for change in report.changes}
    reasons = {skip.place: skip.why for skip in report.skips}
    masks: dict[str, Array] = {path: m.numpy() for path, m in after.module.meta["fxprune.pruned"].items()}
    old: dict[str, Array] = {path: m.numpy() for path, m in before.module.meta.get("fxprune.pruned", {}).items()}
    layers = dict(_weights(module))
    looked = [p for p in layers if p in said or reasons.get(p, "").startswith(("it was pruned", "none of its"))]
    old = {
        p: m for p, m in old.items() if p in looked and m.shape == layers[p].shape and "dropped" not in said.get(p, "")
    }
    counts = {path: int(masks[path].sum()) if path in masks else 0 for path in looked}
    _check_chosen(pass_, {p: layers[p] for p in looked}, masks, old)
    _check_counts(pass_, {p: layers[p] for p in looked}, counts, old)
    for path, what in said.items():
        filled = _filled(layers[path], masks[path], pass_.fill) if " weights (" in what else layers[path]
        _set(module, path, filled)
        _check_stored(after.module, path, masks[path], cheap="written as a sparse" in what)
    return module


def _weights(module: fx.GraphModule) -> Iterator[tuple[str, Array]]:
    """Return the whole weight of each layer; one that was split has its value in the pruned entries added."""
    for path, layer in module.named_modules():
        parts = dict(layer.named_children())
        if {"sparse", "fill"} <= set(parts):
            fill: Any = parts["fill"].weight
            weight: Any = parts["sparse"].weight
            yield path, (weight + fill.reshape(-1, *[1] * (weight.ndim - 1))).detach().numpy()
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            yield path, layer.weight.detach().numpy()


def _set(module: fx.GraphModule, path: str, value: Array) -> None:
    layer: Any = module.get_submodule(path)
    with torch.no_grad():
        if hasattr(layer, "sparse"):
            layer.sparse.weight.copy_(torch.from_numpy(value))
            layer.fill.weight.zero_()
        else:
            layer.weight.copy_(torch.from_numpy(value))


def _filled(weight: Array, mask: Array, fill: str) -> Array:
    """Return the weight with a mean in the place of what is pruned, one filter after the other."""
    result = weight.copy()
    for row, held, where in zip(result, weight, mask, strict=True):
        values = weight[mask] if fill == "layer" else held[where]
        if fill == "zero" or not where.any():
            row[where] = 0.0
        elif fill == "sign":
            row[where] = np.where(held[where] < 0, -1.0, 1.0) * np.abs(values).mean()
        else:
            row[where] = values.mean()
    return result


def _check_chosen(
    pass_: PruneWeights, weights: dict[str, Array], masks: dict[str, Array], old: dict[str, Array]
) -> None:
    """Nothing that stays is smaller than what goes now, in a layer or, where they compete, in all of them."""
    largest, smallest = [], []
    for path, weight in weights.items():
        mask = masks.get(path, np.zeros(weight.shape, bool))
        gone = old.get(path, np.zeros(weight.shape, bool))
        require(bool((mask >= gone).all()), f"{path} forgets what was pruned before")
        new, stays = mask & ~gone, ~mask
        size = np.abs(weight)
        if new.any() and stays.any():
            require(size[new].max() <= size[stays].min(), f"{path} keeps a smaller weight than one that goes")
        score = _lamp(weight, gone) if pass_.criterion == "lamp" else size
        if new.any():
            largest.append(float(score[new].max()))
        if stays.sum() > 1:  # one stays in each layer, whatever it is
            smallest.append(float(score[stays].min()))
    if pass_.scope == "global" and largest and smallest:
        require(
            max(largest) <= min(smallest) * (1 + 1e-9), "a layer keeps what counts for less than what another loses"
        )


def _lamp(weight: Array, gone: Array) -> Array:
    """Return each square over the sum of all that are not smaller; of equal ones the first counts as the smaller."""
    squares = np.where(gone, 0.0, weight**2).flatten()
    scores = np.zeros_like(squares)
    rest = 0.0
    for position in np.argsort(squares, kind="stable")[::-1]:
        rest += squares[position]
        scores[position] = squares[position] / rest if rest else 0.0
    return scores.reshape(weight.shape)


def _check_counts(
    pass_: PruneWeights, weights: dict[str, Array], counts: dict[str, int], old: dict[str, Array]
) -> None:
    known = {path: int(old[path].sum()) if path in old else 0 for path in weights}
    amount: Any = pass_.amount
    if pass_.scope == "local":
        for path, weight in weights.items():
            share = amount
            if not isinstance(amount, float):
                share = next(part for pattern, part in amount.items() if fnmatchcase(path, pattern))
            wanted = max(min(round(share * weight.size), weight.size - 1), known[path])
            require(counts[path] == wanted, f"{path} has {counts[path]} pruned weights, and {wanted} are asked for")
        return
    total = sum(weight.size for weight in weights.values())
    wanted = max(total - round((1 - amount) * total), sum(known.values()))
    full = any(counts[path] == weight.size - 1 for path, weight in weights.items())
    found = sum(counts.values())
    require(found == wanted or (full and found < wanted), f"{found} weights are pruned, and {wanted} are asked for")


def _check_stored(module: fx.GraphModule, path: str, mask: Array, *, cheap: bool) -> None:
    layer: Any = module.get_submodule(path)
    require(not cheap or hasattr(layer, "sparse"), f"{path} is said to be split, and is not")
    if hasattr(layer, "sparse"):
        require(not layer.sparse.weight.detach().numpy()[mask].any(), f"{path}.sparse holds what is pruned")


_MADE: dict[type[Pass], Callable[..., fx.GraphModule]] = {
    RemoveLayers: _without_layers,
    LinearizeActivations: _mixed,
    CalibrateBatchNorm: _calibrated,
    PruneWeights: _weights_filled,
}
