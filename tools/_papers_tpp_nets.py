"""Trainability-preserving pruning on the tasks and networks of recovery: one trial, and the tables over many.

Residual sums and depthwise convolutions are pruned too. Where ``_papers_tpp`` compares more methods on one small chain,
this compares two on networks that chains say little about.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxprune.capture import Traced
from fxprune.passes import PruneChannels
from fxprune.pipeline import Pipeline
from fxprune.planning import Plan
from fxprune.training import Growth, PlainL1, Recipe, evaluate, finetune, trainability
from fxprune.training.growing import SCHEDULES
from tools._papers_tpp import epochs_of, in_words, pulled, spread
from tools._papers_trials import Numbers, OfNetwork
from tools._recovery_tasks import NETS, data_for
from tools._recovery_tasks import SCALES as TASKS
from tools._recovery_tasks import Settings as Task
from tools._recovery_trial import dense_network

METHODS = ("l1", "tpp")
RATIOS = (0.9, 0.5, 0.95)
SEEDS = (0, 1, 2, 3, 4)
SLOWER = 0.2  # of the task's rate of fine-tuning: the published one behind tpp
PAIRS = tuple((task, net) for task in ("digits", "shapes") for net in NETS)
COMMAND = "python tools/bench_papers.py --experiments tpp-nets --markdown docs/papers.md"


@dataclass(frozen=True)
class Settings(Numbers):
    """Everything that a trial depends on besides its network, method, ratio and seed."""

    task: Task
    growth: Growth = SCHEDULES["short"]

    @property
    def told(self) -> dict[str, Any]:
        """What the digest is made of."""
        return {"task": self.task.digest, "growth": asdict(self.growth), "slower": SLOWER}

    @property
    def growth_epochs(self) -> int:
        """Epochs that the schedule takes."""
        return epochs_of(self.growth, self.task.train, self.task.batch)


SCALES = {
    "small": {task: Settings(TASKS["small"][task]) for task in ("digits", "shapes")},
    "test": {"digits": Settings(TASKS["test"]["digits"], Growth(1, 0.1, 1.0, 30, 1))},
}


@dataclass(frozen=True)
class Trial(OfNetwork):
    """One network, pruned in one way and fine-tuned at each rate."""

    experiment = "tpp-nets"

    @property
    def settings(self) -> Settings:
        """What it depends on besides."""
        return SCALES[self.scale][self.task]


def trials(scale: str) -> list[Trial]:
    """Return all trials; what there is after a while makes whole tables."""
    pairs = [pair for pair in PAIRS if pair[0] in SCALES[scale]]
    return [
        Trial(scale, task, net, ratio, seed, method)
        for task, net in pairs
        for ratio in RATIOS
        for seed in SEEDS
        for method in METHODS
    ]


def run_trial(trial: Trial, cache: Path) -> dict[str, Any]:
    """Prune and fine-tune, and return what was found."""
    settings, start = trial.settings, time.perf_counter()
    task = settings.task
    train, test = data_for(trial.task, task, trial.seed)
    dense, accuracy = dense_network(trial.task, trial.net, task, trial.seed, cache, True)
    before, plan = _planned(trial, dense)
    smaller = Pipeline([PruneChannels(plan, allow_constant=True)])(before).traced
    record = {
        **trial.key,
        "params": plan.after.params,
        "macs": plan.after.macs,
        "dense_macs": plan.before.macs,
        "dense": accuracy,
        "before": evaluate(before.module, test)["accuracy"],
        "after": evaluate(smaller.module, test)["accuracy"],
        "singular": trainability(smaller.module.eval(), test.images[:64]).mean,
    }
    for name, rate in (("tuned", task.lr), ("slower", task.lr * SLOWER)):
        recipe = Recipe(task.epochs, task.batch, lr=rate, weight_decay=task.weight_decay, seed=trial.seed, save_every=0)
        tuned = finetune(smaller, train, None, recipe, cpu=True).module
        record[name] = evaluate(tuned, test)["accuracy"]
    return {**record, "seconds": round(time.perf_counter() - start, 1)}


def _planned(trial: Trial, dense: Traced) -> tuple[Traced, Plan]:
    """Return the network before the cut, and the plan."""
    if trial.method == "l1":
        return dense, PlainL1.begin(dense, {"*": trial.ratio}, residual=True).finish()
    settings = trial.settings
    train, _ = data_for(trial.task, settings.task, trial.seed)
    return pulled(dense, train, trial.ratio, settings.growth, settings.task.batch, trial.seed)


# ---------------------------------------------------------------- tables


def page(results: list[dict[str, Any]], scale: str) -> str:
    """Return the tables, and what is not measured."""
    parts = [_INTRODUCTION.format(steps=SCHEDULES["short"].steps)]
    for task, net in PAIRS:
        if task not in SCALES[scale]:
            continue
        found = _found(results, scale, task, net)
        parts.append(f"### {_NAMES[net]} on {task}\n")
        if not found:
            parts.append(f"*Not measured*; `{COMMAND}`.\n")
            continue
        settings = SCALES[scale][task]
        parts.append(_tuning(settings.task, settings.growth_epochs))
        parts.append(_HEAD)
        for ratio in sorted(RATIOS):
            parts += [_row(method, ratio, found) for method in METHODS]
        lines = [line for ratio in sorted(RATIOS) for line in _gaps(ratio, [r for r in found if r["ratio"] == ratio])]
        parts.append("\n" + "\n".join([*lines, *_mechanism(found)]) + "\n")
    return "\n".join(parts)


def _found(results: list[dict[str, Any]], scale: str, task: str, net: str) -> list[dict[str, Any]]:
    digest = SCALES[scale][task].digest
    return [r for r in results if r["experiment"] == "tpp-nets" and (r["settings"], r["net"]) == (digest, net)]


_NAMES = {"resnet": "ResNet-20", "mobilenet": "MobileNet"}
_INTRODUCTION = """\
The same on the tasks and networks of recovery, whose residual sums and depthwise convolutions are pruned too. `l1`
removes the same filters at once; `tpp` pulls them to zero first, in {steps} steps at a rate of 1e-3. Both are then
fine-tuned alike, at the task's rate and at a fifth of it. Mean and standard deviation over seeds.
"""
_HEAD = """\
| removed | method | seeds | MACs left | before the cut | after the cut | mean singular value | tuned | tuned, slower |
|---|---|---|---|---|---|---|---|---|"""


def _tuning(task: Task, growth: int) -> str:
    return (
        f"{task.train} images to train on; {growth} epochs of penalties, {task.epochs} of fine-tuning at "
        f"{task.lr:g} or {task.lr * SLOWER:g} (slower).\n"
    )


def _row(method: str, ratio: float, found: list[dict[str, Any]]) -> str:
    rows = [r for r in found if r["method"] == method and r["ratio"] == ratio]
    if not rows:
        return f"| {ratio:.0%} | {method} | *not measured* | | | | | | |"
    cells = [spread([100 * r[key] for r in rows]) + " %" for key in ("before", "after")]
    cells.append(spread([r["singular"] for r in rows], 3))
    cells += [spread([100 * r[key] for r in rows]) + " %" for key in ("tuned", "slower")]
    left = f"{rows[0]['macs'] / rows[0]['dense_macs']:.1%}"
    return f"| {ratio:.0%} | {method} | {len(rows)} | {left} | " + " | ".join(cells) + " |"


def _gaps(ratio: float, rows: list[dict[str, Any]]) -> list[str]:
    """Return the differences of the two, seed by seed, with 95 % intervals, and what the slower rate costs each."""
    of = {(r["method"], r["seed"]): r for r in rows}
    seeds = [seed for seed in SEEDS if all((method, seed) in of for method in METHODS)]
    if len(seeds) < 2:
        return []
    lines = []
    for name, said in (("tuned", ""), ("slower", ", slower")):
        gaps = [100 * (of["tpp", seed][name] - of["l1", seed][name]) for seed in seeds]
        lines.append(f"- {ratio:.0%}: `tpp` - `l1`{said}: {in_words(gaps)}")
    best = {
        m: max(("tuned", "slower"), key=lambda name: statistics.fmean(of[m, seed][name] for seed in seeds))
        for m in METHODS
    }
    gaps = [100 * (of["tpp", seed][best["tpp"]] - of["l1", seed][best["l1"]]) for seed in seeds]
    lines.append(f"- {ratio:.0%}: `tpp` - `l1`, each at its better rate: {in_words(gaps)}")
    costs = {m: [100 * (of[m, seed]["tuned"] - of[m, seed]["slower"]) for seed in seeds] for m in METHODS}
    means = {method: statistics.fmean(values) for method, values in costs.items()}
    less = [theirs - ours for theirs, ours in zip(costs["l1"], costs["tpp"], strict=True)]
    lines.append(
        f"- {ratio:.0%}: what the lower rate costs: {means['l1']:.1f} points for `l1`, {means['tpp']:.1f} for `tpp`; "
        f"the difference: {in_words(less)}"
    )
    return lines


def _mechanism(rows: list[dict[str, Any]]) -> list[str]:
    moved = [100 * abs(r["before"] - r["after"]) for r in rows if r["method"] == "tpp"]
    if not moved:
        return []
    return [f"- The cut moves accuracy by at most {max(moved):.2f} points where filters were pulled to zero"]


# ---------------------------------------------------------------- picture


def plot(results: list[dict[str, Any]], scale: str, path: Path) -> None:
    """Draw accuracy over what is removed, for each network, method and rate, with standard deviations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.8), layout="constrained")
    for number, (task, net) in enumerate(PAIRS, 1):
        axes = figure.add_subplot(1, len(PAIRS), number)
        found = [] if task not in SCALES[scale] else _found(results, scale, task, net)
        for color, method in enumerate(METHODS):
            for name, said, style in (("tuned", "the higher rate", "o-"), ("slower", "the lower rate", "x:")):
                groups = [
                    (ratio, [100 * r[name] for r in found if (r["method"], r["ratio"]) == (method, ratio)])
                    for ratio in sorted(RATIOS)
                ]
                points = [(100 * ratio, statistics.fmean(g), _deviation(g)) for ratio, g in groups if g]
                x, y, error = zip(*points, strict=True) if points else ((), (), ())
                axes.errorbar(x, y, error, fmt=style, color=f"C{color}", label=f"{method}, {said}", capsize=3)
        axes.set_title(f"{_NAMES[net]} on {task}", fontsize="medium")
        axes.set_xlabel("filters removed, %")
        axes.set_ylim(0, 100)
        if number == 1:
            axes.set_ylabel("accuracy, %")
            axes.legend(fontsize="small", loc="lower left")
    figure.savefig(path, format="png", dpi=90)


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
