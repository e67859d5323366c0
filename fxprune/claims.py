"""Is it true what a pass says of itself? Checks of a graph after a pass against the graph before it.

Each raises a ``VerifyError`` that reads on after the name of the pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.capture.propagate import flat_inputs
from fxprune.distance import differing, distance, relative, top
from fxprune.errors import VerifyError
from fxprune.graph_tools import module_of, tensors_of
from fxprune.runner import Runner

TOLERANCE_DOUBLE = 1e-9
TOLERANCE_SINGLE = 1e-5


@dataclass(frozen=True)
class Witness:
    """What a graph gave before a pass, on which inputs, and whether in float64."""

    inputs: list[Any]
    leaves: list[Any]
    double: bool

    @property
    def tolerance(self) -> float:
        """The relative error that may be put down to rounding."""
        return TOLERANCE_DOUBLE if self.double else TOLERANCE_SINGLE

    @property
    def precision(self) -> str:
        """What the numbers were computed in, in words."""
        return "float64" if self.double else "the model's own precision"


def witness(traced: Traced, *, double: bool = True) -> Witness:
    """Run a graph on its example inputs, in float64 where it can be run so."""
    inputs = _telling_inputs(traced)
    if double:
        try:
            return Witness(inputs, Runner(traced.module).flat(inputs), True)
        except Exception:  # an operation without a float64 kernel may raise anything
            pass
    return Witness(inputs, Runner(traced.module, double=False).flat(inputs), False)


def _telling_inputs(traced: Traced) -> list[Any]:
    """Return inputs like the example's, but for floats that are zero everywhere, which would hide weights."""
    if traced.another_size is not None:  # what a pass took for granted at the example's size shows at another
        return flat_inputs(*traced.inputs(seed=0, scale=traced.another_size))
    fresh = flat_inputs(*traced.inputs(seed=0))
    pairs = zip(flat_inputs(traced.args, traced.kwargs), fresh, strict=True)
    return [new if _is_float(old) and not old.any() else old for old, new in pairs]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _proves_nothing(output: Tensor) -> bool:
    """Whether an output is the same number everywhere, or has NaN."""
    if not output.numel():
        return True
    first = output.flatten()[0]
    if output.numel() == 1:
        return bool(output.isnan().any() or not first)
    return bool(output.isnan().any() or (output == first).all())


def check_outputs(before: Traced, after: Traced, was: Witness, *, changed: bool) -> bool:
    """Hold the outputs to those of the witness.

    Returns:
        False where the graph after the pass does not run in float64, as the witness did: nothing was compared.

    Raises:
        VerifyError: An output differs, or the pass changed something and nothing could have differed.
    """
    try:
        leaves = Runner(after.module, double=was.double).flat(was.inputs)
    except Exception as error:
        if was.double:
            return False
        raise VerifyError(f"left a graph that does not run: {error}") from error
    if len(leaves) != len(was.leaves):
        raise VerifyError(f"says it keeps the outputs, but gives {len(leaves)} in place of {len(was.leaves)}")
    largest = max((top(leaf) for leaf in was.leaves if _is_float(leaf)), default=0.0)
    for position, (new, old) in enumerate(zip(leaves, was.leaves, strict=True)):
        problem = _difference(new, old, was.tolerance, largest)
        if problem:
            where = _first_difference(before, after, was)
            raise VerifyError(f"says it keeps the outputs, but output {position} {problem} (in {was.precision}){where}")
    floats = [leaf for leaf in was.leaves if _is_float(leaf)]
    if changed and floats and all(_proves_nothing(leaf) for leaf in floats):
        raise VerifyError(
            "cannot be checked: every output of the model is a constant or has NaN, so that agreement proves nothing. "
            "An untrained head of zeros does this: give it weights first, or build the Pipeline with verify=False"
        )
    return True


def _difference(new: Any, old: Any, tolerance: float, largest: float) -> str:
    """Return how two outputs differ, in words; empty where they agree.

    Floats are relative to the largest value of their own output, and NaN may be where it was; all else has to be equal.
    An output that is zero everywhere has no size that rounding could be compared with: ``largest``, that of all
    outputs, takes its place, or 1 where all are zero (which proves nothing, and is refused for that).
    """
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return "" if type(new) is type(old) and new == old else f"is {new!r:.80} in place of {old!r:.80}"
    if new.shape != old.shape or new.dtype != old.dtype:
        return f"is {new.dtype}{list(new.shape)} in place of {old.dtype}{list(old.shape)}"
    if not old.is_floating_point() and not old.is_complex():
        wrong = differing(new, old)
        return f"differs in {wrong} of {old.numel()} values" if wrong else ""
    gap = distance(new, old, same_nan=True)
    if math.isinf(gap):
        return "is not finite where it was, or the other way round, or infinite with another sign"
    error = relative(gap, top(old) or largest or 1.0)
    if error <= tolerance:
        return ""
    return f"differs by {error:.3g} of its largest value" if top(old) else f"differs by {gap:.3g} from zero"


def _first_difference(before: Traced, after: Traced, was: Witness) -> str:
    """Return where the difference begins, as the end of a sentence.

    Values inside may differ rightly (a layer that took over the norm behind it), so the search goes back from the
    output, and only through nodes that differ.
    """
    prints: dict[str, list[Any]] = {}
    differing: set[fx.Node] = set()

    def note(node: fx.Node, value: Any) -> None:
        prints[node.name] = _fingerprints(value)

    def compare(node: fx.Node, value: Any) -> None:
        if not _alike(_fingerprints(value), prints.get(node.name), 1e-11 if was.double else 1e-6):
            differing.add(node)

    Runner(before.module, double=was.double, seen=note).flat(was.inputs)
    Runner(after.module, double=was.double, seen=compare).flat(was.inputs)
    guilty: set[fx.Node] = set()
    pending = [after.module.graph.output_node()]
    while pending:
        sources = [source for source in pending.pop().all_input_nodes if source in differing and source not in guilty]
        guilty.update(sources)
        pending += sources
    ordered = [node for node in after.module.graph.nodes if node in guilty]
    known = [node for node in ordered if node.name in prints]
    if not ordered:
        return ""
    node = (known or ordered)[0]
    source = node.meta.get("source")
    place = f"{node.name} ({', '.join(str(part) for part in (node.target, source) if part)})"
    return f"; the first node that differs is {place}"


def _fingerprints(value: Any) -> list[Any]:
    """Return a few numbers per tensor in place of its values: two graphs are compared without keeping both."""
    result: list[Any] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            flat = leaf.detach().flatten().to(torch.float64 if not leaf.is_complex() else torch.complex128).abs()
            signed = leaf.detach().flatten().double() if not leaf.is_complex() else flat
            weights = torch.cos(torch.arange(flat.numel(), device=flat.device, dtype=torch.float64))
            result.append((tuple(leaf.shape), float(flat.sum()), float((signed * weights).sum())))
        else:
            result.append(leaf)
    return result


def _alike(new: list[Any], old: list[Any] | None, tolerance: float) -> bool:
    if old is None or len(new) != len(old):
        return False
    for mine, theirs in zip(new, old, strict=True):
        if not isinstance(mine, tuple) or not isinstance(theirs, tuple):
            if mine is not theirs and mine != theirs:
                return False
        elif mine[0] != theirs[0] or any(
            abs(a - b) > tolerance * theirs[1] for a, b in zip(mine[1:], theirs[1:], strict=True)
        ):
            return False
    return True


def check_signature(before: Traced, after: Traced) -> None:
    """Hold number, dtypes and shapes of the outputs to what they were; both graphs have their shapes propagated."""
    was, now = _signature(before), _signature(after)
    if len(was) != len(now):
        raise VerifyError(f"says it keeps the outputs' signature, but gives {len(now)} outputs in place of {len(was)}")
    for position, (new, old) in enumerate(zip(now, was, strict=True)):
        if new != old:
            raise VerifyError(f"says it keeps the outputs' signature, but output {position} is {new} in place of {old}")


def _signature(traced: Traced) -> list[str]:
    def describe(leaf: Any) -> str:
        value = leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf
        return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else repr(value)

    return [describe(leaf) for leaf in pytree.tree_leaves(traced.module.graph.output_node().args[0])]


def versions(module: fx.GraphModule) -> dict[Tensor, int]:
    """Return how often each parameter and buffer was written to so far."""
    return {tensor: tensor._version for tensor in tensors_of(module) if not tensor.is_inference()}


def check_nothing_written(were: Mapping[Tensor, int]) -> None:
    """Refuse a pass that wrote into tensors that it shares with the user's model."""
    written = sum(tensor._version != version for tensor, version in were.items())
    if written:
        raise VerifyError(
            f"wrote into {written} parameters or buffers of the model that it was given; it has to assign new ones"
        )


def check_state(before: fx.GraphModule, after: fx.GraphModule) -> None:
    """Hold the state_dict to what a pass may do to it: drop what the graph no longer reads, add what it reads now."""
    was, now = before.state_dict(keep_vars=True), after.state_dict(keep_vars=True)
    read_before, read_after = _read(before), _read(after)
    lost = [key for key in was if key not in now and id(was[key]) not in read_before]
    if lost:
        raise VerifyError(
            f"removed {_listed(lost)} from the state_dict, which the graph never read: that is not the pass's to remove"
        )
    strange = [key for key in now if key not in was and id(now[key]) not in read_after]
    if strange:
        raise VerifyError(f"added {_listed(strange)} to the state_dict, which the graph does not read")


def _read(module: fx.GraphModule) -> set[int]:
    """Return the ids of all tensors that the graph reads, by itself or through the modules that it calls."""
    layers = {module_of(module, node) for node in module.graph.find_nodes(op="call_module")}
    ids = {id(tensor) for layer in layers for tensor in tensors_of(layer)}
    for node in module.graph.find_nodes(op="get_attr"):
        owner, _, name = str(node.target).rpartition(".")
        ids.add(id(getattr(module.get_submodule(owner), name)))
    return ids


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
