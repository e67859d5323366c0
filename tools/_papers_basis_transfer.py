"""Transfer from five classes to five others: the data, the network before it, and the training of it.

Never single weights means: norms, the new head, and the scales of decomposed layers where there are some.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from fxprune.capture import Traced, trace
from fxprune.linear.basis_budget import Ranking
from fxprune.passes import DecomposeBasis
from fxprune.pipeline import Pipeline
from fxprune.training import BasisScaling, Recipe, finetune
from fxprune.training.checkpoint import save_weights
from tools import _recovery_tasks as tasks
from tools._papers_trials import Numbers
from tools._recovery_tasks import Tensors

SEEDS = (0, 1, 2, 3, 4)
CHANNELS = 0.7  # double pruning to a share k: channels keep k ** this of the parameters, vectors the rest
HALF, THIRD = 1 / 2, 1 / 3  # of the epochs
OLD, NEW = range(5), range(5, 10)  # classes before the transfer, and after it


@dataclass(frozen=True)
class Settings(Numbers):
    """One task at one scale; every number that a trial depends on besides what it is called.

    Attributes:
        nets: Data, networks, and how these are trained before the transfer.
        epochs: Of the transfer, with all images of the new classes.
        few_epochs: Of the transfer with a part of the images.
        batch: Images per step, with all images.
        few_batch: Images per step with a part of them.
        lr: The highest rate where all weights are trained.
        frozen_lr: The highest rate where single weights are not.
        channels: See ``CHANNELS``.
        ranking: How basis vectors of different layers are compared.
    """

    nets: tasks.Settings
    epochs: int
    few_epochs: int
    batch: int = 32
    few_batch: int = 16
    lr: float = 0.2
    frozen_lr: float = 0.4
    channels: float = CHANNELS
    ranking: Ranking = "cost"


SCALES: dict[str, dict[str, Settings]] = {
    "small": {
        "digits": Settings(tasks.Settings(16, 900, 0, 0.0, 20, 0.1, 0, 0.0), 18, 72),
        "shapes": Settings(tasks.Settings(12, 2400, 2000, 0.2, 20, 0.1, 0, 0.0, stem_stride=2), 6, 24),
    },
    "test": {
        "digits": Settings(tasks.Settings(8, 200, 0, 0.0, 1, 0.05, 0, 0.0), 2, 2),
        "shapes": Settings(tasks.Settings(8, 60, 40, 0.0, 1, 0.05, 0, 0.0, stem_stride=2), 2, 2),
    },
}


@dataclass(frozen=True)
class Case:
    """What is transferred to what.

    Attributes:
        scale: Of all sizes.
        task: ``digits`` or ``shapes``.
        net: ``resnet`` or ``mobilenet``.
        share: Of the new classes' images, that are trained on.
        seed: Of everything random.
    """

    scale: str
    task: str
    net: str
    share: float
    seed: int

    @property
    def settings(self) -> Settings:
        """The numbers of its scale."""
        return SCALES[self.scale][self.task]


# ---------------------------------------------------------------- data, and the network before the transfer


@functools.lru_cache(maxsize=8)
def data_for(case: Case) -> tuple[Tensors, Tensors, Tensors]:
    """Return the images of the old classes, those of the new ones to train on, and those to test on."""
    train, test = tasks.data_for(case.task, case.settings.nets, case.seed)
    return _part(train, OLD), _part(train, NEW, case.share), _part(test, NEW)


def _part(images: Tensors, classes: range, share: float = 1.0) -> Tensors:
    """Return the first images of each of some classes, which are counted from 0."""
    labels = np.asarray(images.targets)
    of_class = [np.flatnonzero(labels == label) for label in classes]
    chosen = np.sort(np.concatenate([each[: max(1, round(share * len(each)))] for each in of_class]))
    return Tensors(images.images[torch.from_numpy(chosen)], labels[chosen] - classes.start)


@functools.lru_cache(maxsize=2)
def start(case: Case, cache: Path) -> Traced:
    """Return the pre-trained network with a new head."""
    model = _build(case)
    model.load_state_dict(load_file(_pretrained(case, cache)))
    torch.manual_seed(case.seed + 1000)
    model.head = nn.Linear(model.head.in_features, len(NEW))
    return trace(model.eval(), data_for(case)[1].images[:2])


def _build(case: Case) -> Any:
    model: Any = tasks.build(case.net, case.task, case.settings.nets, case.seed)
    model.head = nn.Linear(model.head.in_features, len(OLD))
    return model


def _pretrained(case: Case, cache: Path) -> Path:
    """Return the file with the weights of the old classes, which are trained once."""
    nets = case.settings.nets
    path = cache / f"basis-{case.task}-{case.net}-{case.seed}-{nets.digest}.safetensors"
    if not path.is_file():
        recipe = Recipe(
            nets.dense_epochs, nets.batch, lr=nets.dense_lr, weight_decay=nets.weight_decay, seed=case.seed
        )  # fmt: skip
        trained = finetune(_build(case).eval(), data_for(case)[0], None, recipe, cpu=True).module
        cache.mkdir(parents=True, exist_ok=True)
        save_weights(path, trained.state_dict())
    return path


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Tuned:
    """A trained network.

    Attributes:
        traced: The capture.
        scores: Importances of basis vectors over all of the training; empty where it has none.
        last: The same over its last epoch.
    """

    traced: Traced
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    last: Mapping[str, Tensor] = field(default_factory=dict)


def tune(case: Case, traced: Traced, way: str, part: float, dropped: Mapping[str, list[int]] | None = None) -> Tuned:
    """Train on the new classes.

    Args:
        case: Where.
        traced: The capture; it stays as it is.
        way: What is trained: ``all``, ``frozen`` (norms and head), or ``scales`` (these too).
        part: Of the epochs of the transfer.
        dropped: Basis vectors whose scales stay zero.
    """
    settings, train, batch = case.settings, data_for(case)[1], _batch(case)
    epochs = max(1, round(part * (settings.epochs if case.share == 1 else settings.few_epochs)))
    model = copy.deepcopy(traced.module)
    for name, weight in model.named_parameters():
        weight.requires_grad_(way == "all" or weight.ndim < 2 or name.startswith("head."))
    traced = traced.with_module(model)
    rate = settings.lr if way == "all" else settings.frozen_lr
    recipe = Recipe(
        epochs, batch, lr=rate, weight_decay=settings.nets.weight_decay, seed=case.seed, save_every=0
    )  # fmt: skip
    made = list[_Accumulating]()

    def objective(copied: nn.Module) -> BasisScaling:
        assert isinstance(copied, fx.GraphModule)  # a copy of the capture's
        made.append(_Accumulating(traced.with_module(copied), last=(epochs - 1) * math.ceil(len(train) / batch)))
        if dropped is not None:
            made[0].load_state_dict({**made[0].state_dict(), "dropped": dict(dropped)})
        return made[0]

    found = finetune(traced, train, None, recipe, objectives=[objective] * (way == "scales"), cpu=True).traced
    assert found is not None  # a capture was given
    if not made:
        return Tuned(found)
    (scaling,) = made
    last = {path: values - scaling.earlier[path] for path, values in scaling.scores.items()}
    return Tuned(found, scaling.scores, last)


class _Accumulating(BasisScaling):
    """Basis scaling that also remembers its importances when the last epoch began."""

    def __init__(self, traced: Traced, last: int) -> None:
        super().__init__(traced)
        self.begins, self.earlier = last, {path: values.clone() for path, values in self.scores.items()}

    def after_step(self) -> None:
        super().after_step()
        if self.steps == self.begins:
            self.earlier = {path: values.clone() for path, values in self.scores.items()}


def _batch(case: Case) -> int:
    return case.settings.batch if case.share == 1 else case.settings.few_batch


def batches(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Return the images to train on, and their labels, in batches."""
    train, size = data_for(case)[1], _batch(case)
    labels = torch.tensor(train.targets)
    return list(zip(torch.split(train.images, size), torch.split(labels, size), strict=True))


@functools.lru_cache(maxsize=8)
def adapted(case: Case, way: str, part: float, cache: Path) -> Tuned:
    """Return the network after the epochs before the first cut; all ways to prune that train alike begin with it."""
    traced = start(case, cache)
    return tune(case, decomposed(traced) if way == "scales" else traced, way, part)


def decomposed(traced: Traced) -> Traced:
    """Return the network with a basis and scales in each layer but the head, also where one had lost either."""
    return Pipeline([DecomposeBasis(exclude=["head"], reorthonormalize=True)])(traced).traced
