"""Networks of a search: what was taken from a model, and the size of its images, as data that any worker can rebuild.

A network is the dense model at a resolution, and a list of plans (of layers and of channels) that are carried out on it
in order. Plans name layers and indices, so that they hold at every resolution; whether one fits the graph there is
checked when it is carried out. Order and units are those of the paper as far as is known: depth, then width, then
resolution (arXiv 2010.04879; reconstruction).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced, trace
from fxprune.capture.resolution import at_resolution, fit_weights, side_of
from fxprune.channels import find_groups
from fxprune.deploy.constants import (
    CONSTANTS,
    constants_of,
    put_constants,
    read_constants,
    read_tensors,
    unlike,
    write_constants,
)
from fxprune.deploy.files import atomic_write, write_safetensors
from fxprune.depth import LayerPlan, find_layers
from fxprune.depth.layers import Level
from fxprune.errors import InputError
from fxprune.passes import PruneChannels, RemoveLayers
from fxprune.pipeline import Pass, Pipeline
from fxprune.planning import Plan, count
from fxprune.planning.cost import products

Build = nn.Module | str | Callable[..., nn.Module]
PLANS, WEIGHTS = "plans.json", "weights.safetensors"
Step = LayerPlan | Plan


@dataclass(frozen=True)
class Subject:
    """The model that is searched, and what it is called with. It can be pickled where ``build`` can.

    Attributes:
        build: A function that builds it, ``"package.module:function"``, or the module itself. One that takes the side
            of the images in pixels is for models that are made for one size (``by_side``).
        inputs: Example inputs at the whole resolution, as :func:`fxprune.trace` takes them.
        weights: safetensors file of its trained weights; None: those that it is built with.
        by_side: Whether the function is called with the side.
    """

    build: Build
    inputs: Any
    weights: Path | None = None
    by_side: bool = False

    @property
    def side(self) -> int:
        """The shorter side of the example's images, in pixels."""
        return side_of(self.inputs)

    def at(self, side: int | None = None, *, dynamic_size: bool = False) -> Traced:
        """Capture the dense model at a resolution.

        Args:
            side: Of its images in pixels; None for an input that is no image, and the whole one.
            dynamic_size: As for :func:`fxprune.trace`.

        Raises:
            InputError: It cannot be built, or does not run at this size.
            CaptureError: It cannot be captured.
        """
        state = read_tensors(self.weights) if self.weights is not None else None
        if side is None:
            return trace(self._built(None, state), self.inputs, dynamic_size=dynamic_size)
        model = functools.partial(self._built, state=state) if self.by_side else self._built(side, state)
        return at_resolution(model, self.inputs, side, dynamic_size=dynamic_size)

    def _built(self, side: int | None, state: dict[str, Tensor] | None) -> nn.Module:
        build = _found(self.build) if isinstance(self.build, str) else self.build
        torch.manual_seed(0)  # weights that are not loaded are the same on every worker
        given = build if isinstance(build, nn.Module) else build(side) if self.by_side else build()
        model = copy.deepcopy(given)  # what is built is trained, and the caller's model stays as it is
        if not isinstance(model, nn.Module):
            raise InputError(f"{self.build!r} gives a {type(model).__name__}; it has to give a torch.nn.Module")
        if state is not None:
            fit_weights(model, state)
        return model.eval()


@dataclass(frozen=True)
class Network:
    """A network as it stands.

    Attributes:
        traced: Its capture at its resolution.
        steps: What was taken from the dense model, in order.
        side: Of its images in pixels; None where the model takes none.
        width: Share of the removable channels that each plan of channels left, multiplied.
    """

    traced: Traced
    steps: tuple[Step, ...] = ()
    side: int | None = None
    width: float = 1.0

    def without(self, plan: Step) -> Network:
        """Return the network with a plan carried out, and proved, on it."""
        single: Pass = RemoveLayers(plan) if isinstance(plan, LayerPlan) else PruneChannels(plan, allow_constant=True)
        width = self.width if isinstance(plan, LayerPlan) else self.width * width_of(self.traced, plan)
        return Network(Pipeline([single])(self.traced).traced, (*self.steps, plan), self.side, width)

    def save(self, folder: Path, weights: str = WEIGHTS) -> None:
        """Write plans, weights, and what else the graph computes with (:mod:`fxprune.deploy.constants`).

        Each file is written in one step.

        Args:
            folder: Exists.
            weights: Name of their file.

        Raises:
            InputError: They cannot be written.
        """
        plans = [{"kind": _kind(step), "plan": json.loads(step.to_json())} for step in self.steps]
        text = json.dumps({"schema": 1, "side": self.side, "plans": plans}, indent=1)
        atomic_write(folder / PLANS, lambda path: _put(path, text))
        write_constants(folder, self.traced.module)
        write_safetensors(folder / weights, _state(self.traced.module))


def load_network(
    subject: Subject, folder: Path, side: int | None = None, *, weights: str = WEIGHTS, dynamic_size: bool = False
) -> Network:
    """Rebuild a network from its folder.

    Args:
        subject: The dense model.
        folder: What :meth:`Network.save` wrote to.
        side: Of its images in pixels; None: its own.
        weights: Name of the file with its weights.
        dynamic_size: As for :func:`fxprune.trace`.

    Raises:
        InputError: A file is missing or damaged, or the factory makes other constants than it did.
        PlanError: The plans are of another model.
    """
    try:
        saved = json.loads((folder / PLANS).read_text(encoding="utf-8"))
        own, plans = saved["side"], [(entry["kind"], json.dumps(entry["plan"])) for entry in saved["plans"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder} holds no network of a search that can be read: {error}") from error
    tensors = read_tensors(folder / weights)
    steps = [(LayerPlan if kind == "layers" else Plan).from_json(text) for kind, text in plans]
    network = rebuild(subject, steps, own if side is None else side, dynamic_size=dynamic_size)
    state = _state(network.traced.module)
    if set(state) != set(tensors):
        odd = sorted(set(state) ^ set(tensors))
        raise InputError(f"the weights in {folder} are of another network: {', '.join(odd[:3])}")
    module = network.traced.module
    fit_weights(module, _spread(module, tensors))
    _take_constants(network, subject, folder, own)
    return network


def _take_constants(network: Network, subject: Subject, folder: Path, own: int | None) -> None:
    """Hold a factory to the constants that a network was written with, and take these over to the last bit.

    At another size, or with sizes left open, a graph has constants of its own. Then the network is built as it was
    written, too, and only shows that the factory makes what it made then.
    """
    if not constants_of(network.traced.module) and not (folder / CONSTANTS).exists():
        return
    as_written = network.side == own and network.traced.another_size is None
    made = network if as_written else rebuild(subject, network.steps, own)
    found = read_constants(folder, made.traced.module)
    _require_same(unlike(found, constants_of(made.traced.module)), f"were written to {folder / CONSTANTS}")
    if as_written:
        put_constants(network.traced.module, found)


def require_constants(subject: Subject, network: Network) -> None:
    """Refuse a model whose factory makes other constants whenever it is called: each worker would have another model.

    Raises:
        InputError: It does; names them.
    """
    made = constants_of(network.traced.module)
    if made:
        again = rebuild(subject, network.steps, network.side)
        _require_same(unlike(constants_of(again.traced.module), made), "were made just before")


def _require_same(others: list[str], before: str) -> None:
    if others:
        raise InputError(
            f"the factory makes other values of {', '.join(others[:3])}{' and others' if len(others) > 3 else ''} than "
            f"{before}: tensors that the model computes with and its state_dict does not have. A search builds its "
            "model anew for every trial, so that they have to be the same each time. Draw them with a seed of their "
            "own, or register them as persistent buffers and search with weights that hold them"
        )


def rebuild(
    subject: Subject, steps: list[Step] | tuple[Step, ...], side: int | None, *, dynamic_size: bool = False
) -> Network:
    """Carry plans out on the dense model at a resolution; each is proved against the masked reference there.

    A plan is bound to the graph that it was made for by a fingerprint, which holds sizes of images too. Here the graph
    may be one of another size, so each plan is bound to it anew: that its names and indices exist there, and that what
    goes is closed, is checked as for any plan.
    """
    network = Network(subject.at(side, dynamic_size=dynamic_size), (), side)
    for step in steps:
        network = network.without(dataclasses.replace(step, fingerprint=network.traced.fingerprint()))
    return network


def _kind(step: Step) -> str:
    return "layers" if isinstance(step, LayerPlan) else "channels"


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict with each tensor under its first name; safetensors holds no tensor twice."""
    state = module.state_dict(keep_vars=True)
    first = _first_names(state)
    return {name: tensor.detach().contiguous() for name, tensor in state.items() if first[id(tensor)] == name}


def _spread(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give every name of a shared tensor its value."""
    state = module.state_dict(keep_vars=True)
    first = _first_names(state)
    return {name: tensors[first[id(tensor)]] for name, tensor in state.items()}


def _first_names(state: dict[str, Tensor]) -> dict[int, str]:
    return {id(tensor): name for name, tensor in reversed(state.items())}


def _found(spec: str) -> Any:
    place, _, name = spec.partition(":")
    try:
        found: Any = importlib.import_module(place)
        for atom in name.split("."):
            found = getattr(found, atom)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{spec!r} names no function that builds a model ({error}); write package.module:name"
        ) from error
    return found


# ---------------------------------------------------------------- how deep, how wide


def depth_of(traced: Traced) -> int:
    """Return how many layers with weights lie on the longest way through a graph: convolutions, linear and the like."""
    weighted = {product.node for product in products(traced)}
    longest: dict[fx.Node, int] = {}
    for node in traced.module.graph.nodes:
        before = max((longest[source] for source in node.all_input_nodes), default=0)
        longest[node] = before + (node in weighted)
    return max(longest.values(), default=0)


def removable_layers(traced: Traced, level: Level = "layer") -> int:
    """Return how many layers could go, of one kind of what counts as one."""
    return len(find_layers(traced, level))


def width_of(traced: Traced, plan: Plan) -> float:
    """Return the share of the removable channels that a plan keeps."""
    groups = find_groups(traced)
    units = int(groups.live.sum())
    return 1.0 - int(plan.classes(groups).sum()) / units if units else 1.0


def macs_of(traced: Traced) -> int:
    """Return the multiply-accumulates of one sample."""
    return count(traced).macs
