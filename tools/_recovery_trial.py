"""One trial of recovery: prune a trained network, recover it in one way, collapse it, and check and test the result."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, fx, nn

from fxprune.capture import Traced, trace
from fxprune.errors import TrainingError, VerifyError
from fxprune.passes import CalibrateBatchNorm, OverParameterize, PruneChannels, Reparameterize
from fxprune.pipeline import Pipeline
from fxprune.planning import count, make_plan
from fxprune.training import Distillation, Recipe, evaluate, finetune
from fxprune.training.checkpoint import save_weights
from tools._recovery_tasks import SCALES, Settings, build, data_for

FLOAT64, FLOAT32 = 1e-9, 1e-5  # what collapsing may change, of the largest output


@dataclass(frozen=True)
class Variant:
    """A way to recover.

    Attributes:
        rate: Expansion rate; None: the network is trained as it is.
        noise: Scale of the random numbers that the product of the layers does not see.
        lr: Multiple of the task's learning rate.
        gamma: Weight of the similarities, as a multiple of the task's; 0: without a teacher.
        layers: Where similarities are compared: "all" convolutions and linear layers, or the "last" convolution.
        logits: Weight of the teacher's logits.
        decay: Multiple of the task's weight decay.
        train: Whether there is any training, or only batch norms are calibrated.
    """

    rate: int | None = None
    noise: float = 1.0
    lr: float = 1.0
    gamma: float = 0.0
    layers: str = "all"
    logits: float = 0.0
    decay: float = 1.0
    train: bool = True


MAIN = {
    "calibrate": Variant(train=False),
    "finetune": Variant(),
    "finetune-2x": Variant(lr=2),
    "finetune-sp": Variant(gamma=1),
    "lop": Variant(rate=4),
    "lop-sp": Variant(rate=4, gamma=1),
}
WIDTHS = {
    "r1": Variant(rate=1),
    "r2": Variant(rate=2),
    "r8": Variant(rate=8),
    "r1-quiet": Variant(rate=1, noise=0),
    "r2-quiet": Variant(rate=2, noise=0),
    "r4-quiet": Variant(rate=4, noise=0),
    "r8-quiet": Variant(rate=8, noise=0),
}
REASONS = {
    "finetune-0.5x": Variant(lr=0.5),
    "finetune-4x": Variant(lr=4),
    "lop-0.5x": Variant(rate=4, lr=0.5),
    "lop-2x": Variant(rate=4, lr=2),
    "finetune-no-decay": Variant(decay=0),
    "lop-no-decay": Variant(rate=4, decay=0),
    "lop-sp-0.1x": Variant(rate=4, gamma=0.1),
    "lop-sp-10x": Variant(rate=4, gamma=10),
    "lop-sp-30x": Variant(rate=4, gamma=30),
    "lop-sp-last": Variant(rate=4, gamma=1, layers="last"),
    "finetune-kd": Variant(logits=1),
    "lop-kd": Variant(rate=4, logits=1),
}
VARIANTS = MAIN | WIDTHS | REASONS


@dataclass(frozen=True)
class Trial:
    """Which trial; all of it but the scale's settings."""

    scale: str
    task: str
    net: str
    ratio: float
    seed: int
    variant: str

    @property
    def settings(self) -> Settings:
        """The numbers of its scale."""
        return SCALES[self.scale][self.task]


def run_trial(trial: Trial, cache: Path, *, cpu: bool = False) -> dict[str, Any]:
    """Carry one trial out.

    Args:
        trial: Which.
        cache: Folder for the weights of networks before pruning.
        cpu: Train on the CPU also where there is a GPU.

    Raises:
        VerifyError: Collapsing left another graph, other costs, or other outputs than it should.
    """
    wall, cpu_seconds = time.perf_counter(), time.process_time()
    settings, variant = trial.settings, VARIANTS[trial.variant]
    _, test = data_for(trial.task, settings, trial.seed)
    dense, dense_accuracy = dense_network(trial.task, trial.net, settings, trial.seed, cache, cpu)
    pruned = _pruned(trial.task, trial.net, settings, trial.seed, trial.ratio, cache, cpu)
    record: dict[str, Any] = {
        **vars(trial), "settings": settings.digest, "dense_accuracy": dense_accuracy,
        "dense_macs": count(dense).macs, "macs": count(pruned).macs, "params": count(pruned).params,
    }  # fmt: skip
    try:
        recovered = _recover(trial, variant, dense, pruned, cpu, record)
    except TrainingError as error:
        record["error"] = str(error)
    else:
        record |= evaluate(recovered.module, test)
    record["seconds"] = round(time.perf_counter() - wall, 2)
    record["cpu_seconds"] = round(time.process_time() - cpu_seconds, 2)
    return record


def run_pair(trial: Trial, cache: Path, *, cpu: bool = False) -> tuple[Traced, Traced]:
    """Carry out a trial that expands, and return the pruned network and the one that is deployed."""
    dense, _ = dense_network(trial.task, trial.net, trial.settings, trial.seed, cache, cpu)
    pruned = _pruned(trial.task, trial.net, trial.settings, trial.seed, trial.ratio, cache, cpu)
    return pruned, _recover(trial, VARIANTS[trial.variant], dense, pruned, cpu, {})


@functools.lru_cache(maxsize=2)
def dense_network(task: str, net: str, settings: Settings, seed: int, cache: Path, cpu: bool) -> tuple[Traced, float]:
    """Return a trained network and its accuracy on the test set; it is trained once and then kept on disk."""
    train, test = data_for(task, settings, seed)
    traced = trace(build(net, task, settings, seed).eval(), train.images[:2])
    path = cache / f"{task}-{net}-{seed}-{settings.digest}.safetensors"
    if path.is_file():
        traced.module.load_state_dict(load_file(path))
    else:
        recipe = Recipe(
            epochs=settings.dense_epochs, lr=settings.dense_lr, batch=settings.batch,
            weight_decay=settings.weight_decay, seed=seed,
        )  # fmt: skip
        traced.module.load_state_dict(finetune(traced, train, recipe=recipe, cpu=cpu).module.state_dict())
        cache.mkdir(parents=True, exist_ok=True)
        save_weights(path, traced.module.state_dict())
    return traced, evaluate(traced.module, test)["accuracy"]


def dense_weights(task: str, net: str, settings: Settings, seed: int, cache: Path) -> Path:
    """Return the file with the weights of a trained network."""
    dense_network(task, net, settings, seed, cache, False)
    return cache / f"{task}-{net}-{seed}-{settings.digest}.safetensors"


@functools.lru_cache(maxsize=4)
def _pruned(task: str, net: str, settings: Settings, seed: int, ratio: float, cache: Path, cpu: bool) -> Traced:
    dense, _ = dense_network(task, net, settings, seed, cache, cpu)
    plan = make_plan(dense, channels=1 - ratio, importance="l1", allocation="uniform", round_to=1)
    return Pipeline([PruneChannels(plan, allow_constant=True)])(dense).traced


def _recover(
    trial: Trial, variant: Variant, dense: Traced, pruned: Traced, cpu: bool, record: dict[str, Any]
) -> Traced:
    """Return what is deployed; how it was checked goes into the record."""
    settings, seed = trial.settings, trial.seed
    train, _ = data_for(trial.task, settings, seed)
    if not variant.train:
        batches = [train.images[start : start + 50] for start in range(0, len(train) - 49, 50)]
        return CalibrateBatchNorm(batches)(pruned).traced
    start = pruned
    if variant.rate is not None:
        start = Pipeline([OverParameterize(rate=variant.rate, noise=variant.noise, seed=seed)])(pruned).traced
    recipe = Recipe(
        epochs=settings.epochs, lr=settings.lr * variant.lr, batch=settings.batch, seed=seed,
        weight_decay=settings.weight_decay * variant.decay,
    )  # fmt: skip
    objectives = [_teacher(variant, settings, dense, pruned)] if variant.gamma or variant.logits else []
    trained = finetune(start, train, recipe=recipe, objectives=objectives, cpu=cpu)
    assert trained.traced is not None  # a capture was given
    if variant.rate is None:
        return trained.traced
    collapsed = Reparameterize(only_blocks=True)(trained.traced).traced
    record |= check_collapse(trained.traced, collapsed, pruned, train.images[:100])
    return collapsed


def _teacher(variant: Variant, settings: Settings, dense: Traced, pruned: Traced) -> Any:
    """Return what makes the distillation: the same layers are compared, expanded or not."""
    teacher = copy.deepcopy(dense.module)
    layers = [name for name, layer in pruned.module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    where: Any = "last" if variant.layers == "last" else {name: name for name in layers}
    gamma = variant.gamma * settings.gamma

    def make(student: nn.Module) -> Distillation:
        return Distillation(student, teacher, layers=where, gamma=gamma, logits=variant.logits)

    return make


# ---------------------------------------------------------------- what collapsing must not change


def check_collapse(expanded: Traced, collapsed: Traced, pruned: Traced, images: Tensor) -> dict[str, float]:
    """Return by how much collapsing changed outputs in both precisions, relative to the largest.

    What float32 leaves depends on how far a network magnifies the rounding of its weights, so it is recorded, and the
    tables count how often it is within its bound.

    Raises:
        VerifyError: It changed them in float64 by more than it may, or the graph is not the one that was pruned.
    """
    if _structure(collapsed.module) != _structure(pruned.module):
        raise VerifyError("the collapsed graph is not the pruned one: its calls, names or shapes differ")
    if count(collapsed) != count(pruned):
        raise VerifyError(f"the collapsed net costs {count(collapsed)}, the pruned one {count(pruned)}")
    double = expanded.with_module(copy.deepcopy(expanded.module).double())
    double = dataclasses.replace(double, args=tuple(arg.double() for arg in expanded.args))
    found = {
        "collapse_float64": _distance(double, Reparameterize(only_blocks=True)(double).traced, images.double()),
        "collapse_float32": _distance(expanded, collapsed, images),
    }
    if not found["collapse_float64"] <= FLOAT64:
        raise VerifyError(f"collapsing changed outputs by {found['collapse_float64']:.1e}; {FLOAT64:.0e} is allowed")
    return found


def _structure(module: fx.GraphModule) -> Any:
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    calls = [
        (node.op, str(node.target), repr(fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{order[n]}")))
        for node in module.graph.nodes
    ]
    return calls, {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _distance(before: Traced, after: Traced, images: Tensor) -> float:
    (was,), (now,) = (traced.run((images,)) for traced in (before, after))
    return float((was - now).abs().max() / was.abs().max())
