"""Pruning on the fly in small: one trial is one training, which is then pruned at many ratios in many ways."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture import Traced
from fxprune.deploy.compact import save_compact
from fxprune.linear.shares import shares_of
from fxprune.linear.sparsity import Fill, smallest
from fxprune.passes import CalibrateBatchNorm, PruneWeights
from fxprune.training import Hyperspherical, KeepPruned, Recipe, TwoSided, finetune
from fxprune.training.spheres import unit
from tools._papers_trials import Numbers, OfNetwork
from tools._recovery_tasks import SCALES as TASKS
from tools._recovery_tasks import Settings as Task
from tools._recovery_tasks import Tensors, data_for
from tools._recovery_trial import dense_network

CURVE = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # ratios at which every network is pruned
TARGETS = (0.5, 0.7, 0.9)  # ratios that the penalty is trained for, and at which fills are compared
RECOVERED_AT = 0.7  # the ratio that the penalty was trained for where fills are compared
ABLATED_AT = 0.9
MEANS: tuple[Fill, ...] = ("layer", "filter", "sign")
BINS, REACH = 96, 6.0  # of the histogram: from -REACH to REACH, in root mean squares of a filter's weights


@dataclass(frozen=True)
class Method:
    """How a network is trained before its weights go.

    Attributes:
        penalty: Weight of the penalty, as a multiple of the settings'; None: plain training.
        sphere: Whether the penalised layers are hyperspherical.
        far: Whether the penalty has its second side, which keeps the rest away from zero.
        early: Whether the penalty has risen after a quarter of the training and the set is frozen after 40 %, and not
            after half of it and after 70 %.
        first: The weights go by magnitude before the training, and are kept at zero in it.
        whole: Whether it is pruned at all ratios in all ways, or only at its own.
    """

    penalty: float | None = None
    sphere: bool = True
    far: bool = True
    early: bool = False
    first: bool = False
    whole: bool = True


METHODS = {
    "plain": Method(),
    "sphere": Method(penalty=0),
    "fly": Method(penalty=1),
    "prune-first": Method(first=True, whole=False),
}
ABLATION = {
    "fly-no-sphere": Method(penalty=1, sphere=False, whole=False),
    "fly-near-only": Method(penalty=1, far=False, whole=False),
    "fly-early": Method(penalty=1, early=True, whole=False),
    "fly-0.1x": Method(penalty=0.1, whole=False),
    "fly-0.01x": Method(penalty=0.01, whole=False),
}


@dataclass(frozen=True)
class Settings(Numbers):
    """One task at one scale; every number that the outcome of a trial depends on, besides its method, ratio and seed.

    Attributes:
        task: The data, and how the network is trained that the trial begins with.
        epochs: Of the trial's own training, the same for all methods.
        test: Images to test on, at most.
        lr: Its highest rate.
        strength: Largest weight of the penalty.
        calibration: Training images, without labels, that batch norms are calibrated on.
    """

    task: Task
    epochs: int
    test: int
    lr: float = 0.05
    strength: float = 100.0
    calibration: int = 250


SCALES = {
    "small": {
        "digits": Settings(TASKS["small"]["digits"], 30, 1000),
        "shapes": Settings(TASKS["small"]["shapes"], 5, 1000),
    },
    "test": {
        "digits": Settings(TASKS["test"]["digits"], 1, 100, calibration=50),
        "shapes": Settings(TASKS["test"]["shapes"], 1, 40, calibration=50),
    },
}


@dataclass(frozen=True)
class Trial(OfNetwork):
    """One training; ``ratio`` is the share of weights that it is made for, 0 where it knows of none."""

    experiment = "fly"

    @property
    def settings(self) -> Settings:
        """The numbers of its scale."""
        return SCALES[self.scale][self.task]

    @property
    def how(self) -> Method:
        """What its method is."""
        return (METHODS | ABLATION)[self.method]

    @property
    def compares(self) -> bool:
        """Whether means are tried in place of zeros."""
        return self.method == "plain" or (self.method == "fly" and self.ratio == RECOVERED_AT)


def run_trial(trial: Trial, cache: Path) -> dict[str, Any]:
    """Train, prune in every way, and return what was found."""
    settings, how, start = trial.settings, trial.how, time.process_time()
    train, test = data_for(trial.task, settings.task, trial.seed)
    dense, _ = dense_network(trial.task, trial.net, settings.task, trial.seed, cache, cpu=True)
    right = functools.partial(accuracy, images=test.images[: settings.test], labels=test.targets[: settings.test])
    trained = _train(trial, dense, train)
    record: dict[str, Any] = {**trial.key, "dense": right(dense), "unpruned": right(trained), "pruned": {}}
    record["bytes"] = {"dense": file_bytes(dense)}
    batches = torch.split(train.images[: settings.calibration], 50)
    targets = TARGETS if how.whole else (trial.ratio,)
    for fill in ("zero",) if how.first else ("zero", *MEANS):  # the control's are zeros already
        for ratio in CURVE if how.whole and fill == "zero" else targets:
            pruned, name = prune(trial, trained, ratio, fill), str(ratio)
            if ratio in targets:
                record["bytes"].setdefault(fill, {})[name] = file_bytes(pruned)
            if fill == "zero" or trial.compares:
                record["pruned"].setdefault(fill, {})[name] = right(pruned)
                calibrated = CalibrateBatchNorm(batches)(pruned).traced
                record["pruned"].setdefault(f"{fill} + bn", {})[name] = right(calibrated)
    record["sides"] = {str(ratio): sides(trained, ratio) for ratio in targets}
    record["histogram"] = histogram(trained)
    record["cpu_seconds"] = round(time.process_time() - start, 1)
    return record


def _train(trial: Trial, dense: Traced, train: Tensors) -> Traced:
    settings, how = trial.settings, trial.how
    recipe = Recipe(
        settings.epochs, settings.task.batch, lr=settings.lr, weight_decay=settings.task.weight_decay, seed=trial.seed,
        save_every=0,
    )  # fmt: skip
    start, objectives = dense, list[Callable[[nn.Module], Any]]()
    if how.first:
        start = PruneWeights(amount=trial.ratio, fill="zero")(dense).traced
        objectives = [lambda model: KeepPruned.begin(_around(start, model))]
    elif how.penalty is not None:
        strength = how.penalty * settings.strength
        penalty = TwoSided() if how.far else TwoSided(far_weight=0)
        schedule = {"warmup": 0.25, "freeze": 0.4} if how.early else {}
        objectives = [
            lambda model: Hyperspherical.begin(
                _around(dense, model),
                trial.ratio or 0.5,  # without a penalty nothing depends on it
                strength=strength,
                penalty=penalty,
                sphere=how.sphere,
                **schedule,
            )
        ]
    found = finetune(start, train, recipe=recipe, objectives=objectives, cpu=True).traced
    assert found is not None  # a capture was given
    return found


def _around(traced: Traced, model: Any) -> Traced:
    return traced.with_module(model)  # finetune gives a copy of the capture's module


def prune(trial: Trial, trained: Traced, ratio: float, fill: Fill) -> Traced:
    """Prune what training drove near zero, where that is the ratio, and else the smallest weights of each layer."""
    if trial.how.penalty and ratio == trial.ratio:
        return PruneWeights(criterion="trained", fill=fill)(trained).traced
    return PruneWeights(amount=ratio, fill=fill)(trained).traced


def accuracy(traced: Traced, images: Tensor, labels: list[int]) -> float:
    """Return the share of images that are told right."""
    with torch.no_grad():
        found = torch.cat([traced.run((batch,))[0].argmax(1) for batch in torch.split(images, 256)])
    return float((found == torch.tensor(labels)).double().mean())


# ---------------------------------------------------------------- what the weights look like


def directions(traced: Traced) -> list[Tensor]:
    """Return the filters of each layer that is pruned: (filters, weights), in root mean squares of each filter."""
    chosen = shares_of("fly", traced.module, 0.5)
    weights = (traced.module.get_parameter(f"{path}.weight").detach().flatten(1) for path in chosen.nodes)
    return [unit(weight.double()) * weight.shape[1] ** 0.5 for weight in weights]


def sides(traced: Traced, ratio: float) -> dict[str, float]:
    """Return how far weights are parted at a ratio, as means over layers.

    Returns:
        ``energy``: the share of a filter's square norm that is in the smallest weights of its layer; ``band``: the
        share of weights between a quarter and three quarters of the size that the penalty wants kept weights to have.
    """
    edge, energy, band = TwoSided().edge(ratio, 1), list[float](), list[float]()
    for rows in directions(traced):
        mask = smallest(rows, round(ratio * rows.numel()))
        energy.append(float((rows.square() * mask).mean()))
        band.append(float(((rows.abs() > edge / 4) & (rows.abs() < 3 * edge / 4)).double().mean()))
    return {"energy": sum(energy) / len(energy), "band": sum(band) / len(band)}


def histogram(traced: Traced) -> list[int]:
    """Return how many weights of all pruned layers are in each of ``BINS`` bins; what is beyond is in the last ones."""
    values = torch.cat([rows.flatten() for rows in directions(traced)]).clamp(-REACH, REACH)
    return [int(count) for count in torch.histc(values, BINS, -REACH, REACH)]


def file_bytes(traced: Traced) -> int:
    """Return the size of the compact file."""
    with tempfile.TemporaryDirectory() as folder:
        return save_compact(Path(folder) / "weights.safetensors", traced.module).bytes
