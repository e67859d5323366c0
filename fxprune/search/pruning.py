"""What a trial of the search does: prune a little, train a little, and say what is left of the accuracy.

Points along one dimension are collected by iterative pruning: each starts from the weights of the one before
(arXiv 2010.04879 [ABS]; steps and epochs are this project's).
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx

from fxprune.depth import LayerPlan, make_layer_plan
from fxprune.depth.measured import SCORES as LAYER_SCORES_FROM_DATA
from fxprune.depth.scores import check_importance as check_layer_importance
from fxprune.errors import InputError, TrainingError
from fxprune.planning import Plan, make_plan
from fxprune.planning.importance import check_importance
from fxprune.planning.moves import check_allocation
from fxprune.search.network import (
    WEIGHTS,
    Network,
    Subject,
    depth_of,
    load_network,
    macs_of,
    rebuild,
    removable_layers,
)
from fxprune.search.trials import Trial, parent_folder

TrainAndEvaluate = Callable[..., float]
"""``train_and_evaluate(model, resolution, epochs)`` trains the module in place, on images whose shorter side has that
many pixels, and returns its accuracy on validation data, a number in [0, 1]. Where it has a parameter ``folder``, it is
given the folder of the trial, in which it can keep a checkpoint; where it has one ``seed``, the trial's. The model is a
``torch.fx.GraphModule`` with the names
of the original; ``resolution`` is None for models that take no images.
"""


@dataclass(frozen=True)
class Choices:
    """How layers and channels are chosen.

    Attributes:
        importance: Score of channels, as for :func:`fxprune.make_plan`.
        allocation: Of channels.
        round_to: What widths are multiples of.
        protect: Parameters whose channels stay.
        layer_importance: Score of layers, as for :func:`fxprune.depth.make_layer_plan`; one that needs no data.
        level: What counts as one layer.
    """

    importance: str = "l2"
    allocation: str | None = None
    round_to: int | str = "auto"
    protect: tuple[str, ...] = ()
    layer_importance: str = "l1"
    level: Literal["layer", "block"] = "layer"

    def __post_init__(self) -> None:
        """Refuse what every trial would stumble over.

        Raises:
            InputError: A score or an allocation is not known, or needs data, which a search does not hand out.
        """
        check_layer_importance(self.layer_importance)
        if self.layer_importance in LAYER_SCORES_FROM_DATA:
            raise InputError(
                f"layer_importance={self.layer_importance!r} is taken from data, and a search scores layers by their "
                "weights: use l1, bn_scale or random"
            )
        check_importance(self.importance)
        if self.importance == "taylor":
            raise InputError("importance='taylor' is taken from data, and a search scores channels by weights: use l2")
        if self.allocation is not None:
            check_allocation(self.allocation)
        if self.allocation == "latency":
            raise InputError("allocation='latency' is for a single plan; a search takes global, uniform or isomorphic")

    def layers(self, network: Network, count: int) -> LayerPlan:
        """Return a plan by which so many more layers go."""
        here = removable_layers(network.traced, self.level)
        if count >= here:
            raise InputError(f"{count} more layers cannot go: {here} of those that are left could")
        share = (here - count) / here
        return make_layer_plan(network.traced, layers=share, importance=self.layer_importance, level=self.level)

    def channels(self, network: Network, **budget: float) -> Plan:
        """Return a plan by which channels go, under a budget."""
        return make_plan(
            network.traced,
            importance=self.importance,
            allocation=self.allocation,
            round_to=self.round_to,
            protect=self.protect,
            **budget,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class PruneAndTrain:
    """The work of every trial of a search; can be pickled where its parts can.

    Attributes:
        subject: The model.
        train: Trains and evaluates.
        choices: How layers and channels are chosen.
    """

    subject: Subject
    train: TrainAndEvaluate
    choices: Choices = Choices()

    def __call__(self, trial: Trial, folder: Path) -> Mapping[str, Any]:
        """Build the network that a trial describes, train it, and write it into the folder.

        Raises:
            TrainingError: What trains it returned no accuracy.
        """
        network = self._network(trial, folder)
        module, before = network.traced.module, _weights_of(network.traced.module)
        torch.manual_seed(trial.seed)
        accuracy = self._trained(module, network.side, trial, folder)
        _check(module, before, accuracy)
        module.eval()
        network.save(folder)
        return {
            "accuracy": float(accuracy),
            "macs": macs_of(network.traced),
            "params": sum(parameter.numel() for parameter in module.parameters()),
            "resolution": network.side,
            "weights": WEIGHTS,
            "depth": depth_of(network.traced),
            "width": network.width,
            "layers": sum(len(step.layers) for step in network.steps if isinstance(step, LayerPlan)),
        }

    def _network(self, trial: Trial, folder: Path) -> Network:
        asked = trial.options
        parent = parent_folder(trial, folder)
        if asked.get("plans") is not None:
            steps = [read_plan(entry) for entry in asked["plans"]]
            return rebuild(self.subject, steps, asked["side"])
        network = (
            rebuild(self.subject, (), asked["side"])
            if parent is None
            else load_network(self.subject, parent, asked["side"])
        )
        if asked.get("layers"):
            network = network.without(self.choices.layers(network, asked["layers"]))
        if asked.get("channels"):
            network = network.without(self.choices.channels(network, channels=asked["channels"]))
        return network

    def _trained(self, module: fx.GraphModule, side: int | None, trial: Trial, folder: Path) -> Any:
        offered = {"folder": folder, "seed": trial.seed}
        taken = inspect.signature(self.train).parameters
        return self.train(
            module, side, trial.epochs, **{name: value for name, value in offered.items() if name in taken}
        )


def described(steps: tuple[LayerPlan | Plan, ...]) -> list[dict[str, Any]]:
    """Return plans as plain data for a trial's options."""
    return [{"layers": isinstance(step, LayerPlan), "plan": json.loads(step.to_json())} for step in steps]


def read_plan(entry: Mapping[str, Any]) -> LayerPlan | Plan:
    """Return a plan of :func:`described`."""
    return (LayerPlan if entry["layers"] else Plan).from_json(json.dumps(entry["plan"]))


def _check(module: fx.GraphModule, before: set[int], accuracy: Any) -> None:
    """Refuse what is no training of this module: a loop that trains a copy would look as if nothing were learned."""
    try:
        value = float(accuracy)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise TrainingError(
            f"train_and_evaluate returned {accuracy!r}; it has to return the accuracy on validation data, a number "
            "from 0 to 1"
        )
    if _weights_of(module) != before:
        raise TrainingError(
            "train_and_evaluate put other parameters into the model; it has to train those that it is given, in place"
        )
    wrong = [name for name, tensor in module.named_parameters() if not bool(tensor.isfinite().all())]
    if wrong:
        raise TrainingError(f"after train_and_evaluate {wrong[0]} holds values that are no numbers; train more gently")


def _weights_of(module: fx.GraphModule) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}
