"""Trainability-preserving pruning in small: one trial, and the tables over many."""

from __future__ import annotations

import functools
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import fx, nn
from torch.utils.data import TensorDataset

from fxprune import passes
from fxprune.capture import Traced, trace
from fxprune.pipeline import Pipeline
from fxprune.planning import Plan
from fxprune.training import TPP, GrowingL2, Growth, PlainL1, Recipe, evaluate, finetune, load_data, trainability
from fxprune.training.growing import SCHEDULES
from tools._papers_trials import Keyed, Numbers

METHODS = ("l1", "l1-long", "growing-l2", "tpp", "tpp-no-norms")
RATIOS = (0.9, 0.95, 0.5)
SEEDS = (0, 1, 2, 3, 4)
RATES = (1e-2, 1e-3)  # of fine-tuning: the published ones
COMMAND = "python tools/bench_papers.py --experiments tpp --markdown docs/papers.md"


@dataclass(frozen=True)
class Settings(Numbers):
    """Everything that a trial depends on besides its method, ratio and seed.

    Attributes:
        widths: Channels of the six convolutions; the third and the fifth have stride 2.
        train: Images to train on, at most.
        batch: Images per step.
        dense_epochs: Of the network before it is pruned.
        epochs: Of fine-tuning.
        growth: The schedule of the penalties.
    """

    widths: tuple[int, ...] = (24, 24, 32, 32, 48, 48)
    train: int = 1262
    batch: int = 32
    dense_epochs: int = 30
    epochs: int = 15
    growth: Growth = SCHEDULES["short"]

    @property
    def growth_epochs(self) -> int:
        """Epochs that the schedule takes."""
        return epochs_of(self.growth, self.train, self.batch)


SCALES = {"small": Settings(), "test": Settings((4, 4, 8, 8, 8, 8), 64, 32, 1, 1, Growth(1, 0.1, 1.0, 15, 2))}


@dataclass(frozen=True)
class Trial(Keyed):
    """One network, pruned in one way and fine-tuned at each rate."""

    experiment = "tpp"

    scale: str
    ratio: float
    seed: int
    method: str

    @property
    def settings(self) -> Settings:
        """The numbers of its scale."""
        return SCALES[self.scale]


def trials(scale: str) -> list[Trial]:
    """Return all trials; what there is after a while makes whole rows."""
    return [Trial(scale, ratio, seed, method) for ratio in RATIOS for seed in SEEDS for method in METHODS]


def run_trial(trial: Trial, cache: Path) -> dict[str, Any]:
    """Prune and fine-tune, and return what was found."""
    settings, start = trial.settings, time.perf_counter()
    data, test = images(settings)
    dense = dense_network(settings, trial.seed, cache)
    regular = Recipe(
        settings.growth_epochs, settings.batch, lr=1e-3, schedule="constant", seed=trial.seed, save_every=0
    )
    if trial.method.startswith("l1"):
        before, plan = dense, PlainL1.begin(dense, trial.ratio).finish()
    else:
        trained = finetune(dense, data, None, regular, objectives=[lambda model: _begin(trial, dense, model)], cpu=True)
        assert trained.traced is not None
        before, (plan,) = trained.traced, trained.finished
    smaller = Pipeline([passes.PruneChannels(plan, allow_constant=True)])(before).traced
    record = {
        **trial.key,
        "params": plan.after.params,
        "dense_params": plan.before.params,
        "dense": evaluate(dense.module, test)["accuracy"],
        "before": evaluate(before.module, test)["accuracy"],
        "after": evaluate(smaller.module, test)["accuracy"],
        "singular": asdict(trainability(smaller.module.eval(), test.tensors[0][:128])),
    }
    record["singular"]["condition"] = min(record["singular"]["condition"], 1e30)  # JSON has no infinity
    epochs = settings.epochs + (settings.growth_epochs if trial.method == "l1-long" else 0)
    for rate in RATES:
        recipe = Recipe(epochs, settings.batch, lr=rate, schedule="step", seed=trial.seed, save_every=0)
        tuned = finetune(smaller, data, None, recipe, cpu=True).module
        record[f"tuned_{rate:g}"] = evaluate(tuned, test)["accuracy"]
    record["seconds"] = round(time.perf_counter() - start, 1)
    return record


def epochs_of(growth: Growth, images: int, batch: int) -> int:
    """Return how many epochs a schedule takes."""
    return math.ceil(growth.steps / math.ceil(images / batch))


def pulled(
    dense: Traced, data: Any, ratio: float, growth: Growth, batch: int, seed: int, out: Path | None = None
) -> tuple[Traced, Plan]:
    """Pull filters to zero by trainability-preserving pruning, residual sums included; return network and plan."""

    def begin(model: nn.Module) -> TPP:
        assert isinstance(model, fx.GraphModule)  # a copy of the capture's
        return TPP.begin(dense.with_module(model), {"*": ratio}, schedule=growth, residual=True)

    epochs = epochs_of(growth, len(data), batch)
    recipe = Recipe(epochs, batch, lr=1e-3, schedule="constant", seed=seed, save_every=0)
    trained = finetune(dense, data, None, recipe, objectives=[begin], out=out, cpu=True)
    assert trained.traced is not None
    (plan,) = trained.finished
    return trained.traced, plan


def _begin(trial: Trial, dense: Traced, model: nn.Module) -> GrowingL2:
    assert isinstance(model, fx.GraphModule)  # a copy of the capture's
    traced = dense.with_module(model)
    growth = SCALES[trial.scale].growth
    if trial.method == "growing-l2":
        return GrowingL2.begin(traced, trial.ratio, schedule=growth)
    return TPP.begin(traced, trial.ratio, schedule=growth, batchnorm=trial.method == "tpp")


@functools.lru_cache(maxsize=2)
def images(settings: Settings) -> tuple[TensorDataset, TensorDataset]:
    """Return the digits to train on, and all others."""
    parts = load_data("digits")

    def stacked(*sets: Any) -> TensorDataset:
        pairs = [each[index] for each in sets for index in range(len(each))]
        return TensorDataset(torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs]))

    train, test = stacked(parts.train), stacked(parts.validation, parts.test)
    return TensorDataset(*(tensor[: settings.train] for tensor in train.tensors)), test


def dense_network(settings: Settings, seed: int, cache: Path) -> Traced:
    """Return the trained network of a seed, from the cache where it is there."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    before = 1
    for number, width in enumerate(settings.widths):
        stride = 2 if number in (2, 4) else 1
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))
    recipe = Recipe(settings.dense_epochs, settings.batch, lr=0.05, seed=seed, save_every=0)
    folder = cache / f"tpp-{settings.digest}-{seed}"
    trained = finetune(model.eval(), images(settings)[0], None, recipe, out=folder, cpu=True).module
    return trace(trained.eval(), torch.randn(2, 1, 8, 8))


# ---------------------------------------------------------------- tables


def page(results: list[dict[str, Any]], scale: str) -> str:
    """Return the tables, and what is not measured."""
    settings = SCALES[scale]
    found = [r for r in results if r["experiment"] == "tpp" and r["settings"] == settings.digest]
    parts = [_INTRODUCTION.format(steps=settings.growth.steps, epochs=settings.epochs)]
    for ratio in RATIOS:
        rows = [r for r in found if r["ratio"] == ratio]
        parts.append(f"### {ratio:.0%} of the filters removed\n")
        if not rows:
            parts.append(f"*Not measured*; `{COMMAND}`.\n")
            continue
        parts.append(_HEAD)
        for method in METHODS:
            parts.append(_row(method, [r for r in rows if r["method"] == method]))
        parts.append("\n" + "\n".join([*_gaps(rows), *_sensitivity(rows), *_mechanism(rows)]) + "\n")
    return "\n".join(parts)


_INTRODUCTION = """\
Digits (8 x 8), six 3 x 3 convolutions with batch norm, about 57 thousand parameters. The share of filters goes from
every convolution but the first. The penalties take {steps} steps at a rate of 1e-3 (the short schedule); then filters
are removed, and the network is fine-tuned for {epochs} epochs at two rates. `l1` removes the same filters at once and
is fine-tuned alike; `l1-long` is fine-tuned for as many epochs more as the penalties take. Mean and standard deviation
over seeds; singular values are those of the Jacobian right after the cut, in eval mode.
"""
_HEAD = """\
| method | seeds | parameters | before the cut | after the cut | mean singular value | tuned at 1e-2 | tuned at 1e-3 |
|---|---|---|---|---|---|---|---|"""


def _row(method: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return f"| {method} | *not measured* | | | | | | |"
    cells = [spread([100 * r[key] for r in rows]) + " %" for key in ("before", "after")]
    cells.append(spread([r["singular"]["mean"] for r in rows], 3))
    cells += [spread([100 * r[f"tuned_{rate:g}"] for r in rows]) + " %" for rate in RATES]
    return f"| {method} | {len(rows)} | {rows[0]['params']:,} | " + " | ".join(cells) + " |"


def spread(values: list[float], digits: int = 1) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _gaps(rows: list[dict[str, Any]]) -> list[str]:
    """Return the differences of the method to the others, seed by seed, with 95 % intervals."""
    lines = []
    for other in METHODS:
        for rate in RATES:
            key = f"tuned_{rate:g}"
            ours, theirs = ({r["seed"]: 100 * r[key] for r in rows if r["method"] == name} for name in ("tpp", other))
            gaps = [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]
            if other != "tpp" and len(gaps) > 1:
                lines.append(f"- `tpp` - `{other}` at {rate:g}: {in_words(gaps)}")
    return lines


def _sensitivity(rows: list[dict[str, Any]]) -> list[str]:
    """Return by how much less the method loses than plain L1 when it is fine-tuned at the lower rate."""
    high, low = (f"tuned_{rate:g}" for rate in RATES)
    ours, theirs = (
        {r["seed"]: 100 * (r[high] - r[low]) for r in rows if r["method"] == name} for name in ("tpp", "l1")
    )
    seeds = sorted(set(ours) & set(theirs))
    if len(seeds) < 2:
        return []
    means = [statistics.fmean(each[seed] for seed in seeds) for each in (theirs, ours)]
    return [
        f"- What the lower rate costs: {means[0]:.1f} points for `l1`, {means[1]:.1f} for `tpp`; the difference: "
        + in_words([theirs[seed] - ours[seed] for seed in seeds])
    ]


def _mechanism(rows: list[dict[str, Any]]) -> list[str]:
    """Return by how much the cut alone moves accuracy where filters were pulled to zero."""
    moved = [100 * abs(r["before"] - r["after"]) for r in rows if not r["method"].startswith("l1")]
    if not moved:
        return []
    return [f"- The cut moves accuracy by at most {max(moved):.1f} points where filters were pulled to zero"]


def in_words(gaps: list[float]) -> str:
    low, high = interval(gaps)
    word = "excludes" if low > 0 or high < 0 else "includes"
    return (
        f"{statistics.fmean(gaps):+.1f} points, 95 % interval [{low:+.1f}, {high:+.1f}], which {word} 0 "
        f"({len(gaps)} seeds)"
    )


def interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by Student's t."""
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half
