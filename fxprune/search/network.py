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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from fxprune.capture import Traced, trace
from fxprune.capture.resolution import at_resolution, fit_weights, side_of
from fxprune.channels import find_groups
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
        state = _tensors(self.weights) if self.weights is not None else None
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
        """Write plans and weights, each in one step.

        Args:
            folder: Exists.
            weights: Name of their file.

        Raises:
            InputError: They cannot be written.
        """
        plans = [{"kind": _kind(step), "plan": json.loads(step.to_json())} for step in self.steps]
        text = json.dumps({"schema": 1, "side": self.side, "plans": plans}, indent=1)
        atomic_write(folder / PLANS, lambda path: _put(path, text))
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
        InputError: A file is missing or damaged.
        PlanError: The plans are of another model.
    """
    try:
        saved = json.loads((folder / PLANS).read_text(encoding="utf-8"))
        own, plans = saved["side"], [(entry["kind"], json.dumps(entry["plan"])) for entry in saved["plans"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder} holds no network of a search that can be read: {error}") from error
    tensors = _tensors(folder / weights)
    steps = [(LayerPlan if kind == "layers" else Plan).from_json(text) for kind, text in plans]
    network = rebuild(subject, steps, own if side is None else side, dynamic_size=dynamic_size)
    state = _state(network.traced.module)
    if set(state) != set(tensors):
        odd = sorted(set(state) ^ set(tensors))
        raise InputError(f"the weights in {folder} are of another network: {', '.join(odd[:3])}")
    module = network.traced.module
    fit_weights(module, {**module.state_dict(), **_spread(module, tensors)})
    return network


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


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error


def _kind(step: Step) -> str:
    return "layers" if isinstance(step, LayerPlan) else "channels"


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers under their first names; safetensors holds no tensor twice."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach().contiguous() for name, tensor in named}


def _spread(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give every name of a shared tensor its value."""
    first = {id(tensor): name for name, tensor in _live(module, duplicates=False)}
    return {name: tensors[first[id(tensor)]] for name, tensor in _live(module, duplicates=True) if id(tensor) in first}


def _live(module: nn.Module, *, duplicates: bool) -> list[tuple[str, Tensor]]:
    return [
        *module.named_parameters(remove_duplicate=not duplicates),
        *module.named_buffers(remove_duplicate=not duplicates),
    ]


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
