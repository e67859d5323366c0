"""What the trials of recovery say: paired differences over seeds with intervals, as tables and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from tools._recovery_latency import table
from tools._recovery_tasks import NETS, RATIOS, REASONS_AT, SCALES, SEEDS, TASKS, WIDTHS_AT
from tools._recovery_trial import FLOAT32, FLOAT64, MAIN, REASONS, VARIANTS, WIDTHS

TITLES = {
    "calibrate": "BN calibration only", "finetune": "fine-tune", "finetune-2x": "fine-tune, 2x learning rate",
    "finetune-sp": "fine-tune + SP", "lop": "over-parameterised, r = 4", "lop-sp": "over-parameterised, r = 4, + SP",
    "finetune-0.5x": "fine-tune, 0.5x learning rate", "finetune-4x": "fine-tune, 4x learning rate",
    "lop-0.5x": "over-parameterised, 0.5x learning rate", "lop-2x": "over-parameterised, 2x learning rate",
    "finetune-no-decay": "fine-tune, no weight decay", "lop-no-decay": "over-parameterised, no weight decay",
    "lop-sp-0.1x": "over-parameterised + SP, 0.1 gamma", "lop-sp-10x": "over-parameterised + SP, 10 gamma",
    "lop-sp-30x": "over-parameterised + SP, 30 gamma",
    "lop-sp-last": "over-parameterised + SP at the last convolution",
    "finetune-kd": "fine-tune + the teacher's logits", "lop-kd": "over-parameterised + the teacher's logits",
}  # fmt: skip
ALSO = ("finetune-2x", "finetune-sp", "lop-sp")  # what the ablation repeats from the comparison
NOT_MEASURED = "*not measured*"
COMMAND = "python tools/bench_recovery.py --budget-minutes 0 --latency --markdown docs/recovery.md"
Cell = Mapping[int, float]  # seed -> accuracy
Cells = dict[tuple[str, str, float, str], dict[int, float]]


@dataclass(frozen=True)
class Difference:
    """A mean difference over seeds and its 95 % interval by Student's t."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        mark = "**" if self.low > 0 or self.high < 0 else ""
        return f"{mark}{100 * self.mean:+.1f}{mark} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def difference(values: Iterable[float]) -> Difference | None:
    """Return the mean of paired differences and its interval; it takes two at least."""
    values = list(values)
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Difference(mean, mean - reach, mean + reach, len(values))


def paired(one: Cell, other: Cell) -> Difference | None:
    """Return how much better the first is over the seeds that both have."""
    return difference(one[seed] - other[seed] for seed in sorted(set(one) & set(other)))


def current(results: dict[str, Any], scale: str) -> list[dict[str, Any]]:
    """Return the trials that were made with today's settings of a scale."""
    digests = {task: settings.digest for task, settings in SCALES[scale].items()}
    return [
        trial for trial in results["trials"] if trial["scale"] == scale and trial["settings"] == digests[trial["task"]]
    ]


def latencies(results: dict[str, Any], scale: str) -> list[dict[str, Any]]:
    """Return what was measured of latency with today's settings of a scale."""
    return current({"trials": results.get("latency", [])}, scale)


def cells(trials: Iterable[dict[str, Any]]) -> Cells:
    """Return accuracies by task, network, ratio and variant; a training that broke off counts as a guess."""
    found: Cells = {}
    for trial in trials:
        key = trial["task"], trial["net"], trial["ratio"], trial["variant"]
        found.setdefault(key, {})[trial["seed"]] = trial.get("accuracy", 0.1)
    return found


# ---------------------------------------------------------------- tables


def page(results: dict[str, Any], scale: str) -> str:
    """Return all tables as Markdown."""
    trials = current(results, scale)
    found, parts = cells(t for t in trials if t["seed"] in SEEDS), list[str]()
    for task in TASKS:
        for net in NETS:
            parts += _comparison(task, net, scale, found, trials)
    parts += _repeated(trials)
    parts += ["### Width and noise", "", *_ablation(found, WIDTHS_AT, WIDTHS), "", *_spread(found)]
    parts += [
        "",
        "### Why: rate, weight decay, distillation",
        "",
        *_ablation(found, REASONS_AT, {**{name: MAIN[name] for name in ALSO}, **REASONS}),
    ]
    parts += ["", "### After collapse", "", *_collapse(trials)]
    parts += ["", *(table(measured) if (measured := latencies(results, scale)) else [NOT_MEASURED + f"; `{COMMAND}`"])]
    return "\n".join(parts)


def _comparison(task: str, net: str, scale: str, found: Cells, trials: list[dict[str, Any]]) -> list[str]:
    mine = [t for t in trials if (t["task"], t["net"]) == (task, net) and t["seed"] in SEEDS]
    lines = [f"### {task}, {net}", ""]
    if not mine:
        command = f"python tools/bench_recovery.py --scale {scale} --tasks {task} --nets {net}"
        return [*lines, f"{NOT_MEASURED}; `{command}` measures it.", ""]
    dense = {trial["seed"]: trial["dense_accuracy"] for trial in mine}
    lines += [
        f"Dense: {_mean(dense)} %, {mine[0]['dense_macs'] / 1e6:.2f} M MACs; what is left: "
        + "; ".join(f"{ratio:.0%}: {macs / 1e3:.0f} k MACs" for ratio, macs in _macs(mine).items())
        + ".",
        "",
        "Accuracy on the test set in %, mean and standard deviation:",
        "",
        *_head("filters removed"),
    ]
    for variant in MAIN:
        row = [found.get((task, net, ratio, variant), {}) for ratio in RATIOS]
        lines.append(_row(TITLES[variant], [_mean(cell) for cell in row]))
    lines += ["", "Difference from fine-tuning in points, paired by seed, with 95 % intervals:", ""]
    lines += _head("filters removed")
    for variant in [name for name in MAIN if name != "finetune"]:
        pairs = [
            paired(found.get((task, net, ratio, variant), {}), found.get((task, net, ratio, "finetune"), {}))
            for ratio in RATIOS
        ]
        lines.append(_row(TITLES[variant], [_said(pair) for pair in pairs]))
    return [*lines, "", *_growth(task, net, found)]


def _growth(task: str, net: str, found: Cells) -> list[str]:
    """Say whether the gain at the highest ratio is larger than at the lowest, seed by seed."""
    lines = []
    for variant in ("lop", "lop-sp"):
        gains = []
        for ratio in (RATIOS[0], RATIOS[-1]):
            ours, theirs = (found.get((task, net, ratio, name), {}) for name in (variant, "finetune"))
            gains.append({seed: ours[seed] - theirs[seed] for seed in set(ours) & set(theirs)})
        said = _said(paired(gains[1], gains[0]))
        lines.append(f"Gain at {RATIOS[-1]:.0%} less gain at {RATIOS[0]:.0%}, {TITLES[variant]}: {said}.  ")
    return [*lines, ""]


def _repeated(trials: list[dict[str, Any]]) -> list[str]:
    """Return what seeds beyond the usual ones say, alone and together with those."""
    fresh, whole = cells(t for t in trials if t["seed"] not in SEEDS), cells(trials)
    lines = list[str]()
    for task, net, ratio in dict.fromkeys(key[:3] for key in fresh):
        base, double = ((task, net, ratio, name) for name in ("finetune", "finetune-2x"))
        lines += [f"### Further seeds: {task}, {net}, {ratio:.0%} of filters removed", ""]
        lines += ["| | accuracy, % | less fine-tune, points | the same, all seeds | less that at 2x, all seeds |"]
        lines += ["|---|---|---|---|---|"]
        for variant in MAIN:
            key = task, net, ratio, variant
            if key not in fresh:
                continue
            values, seeds = [100 * value for value in fresh[key].values()], len(fresh[key])
            spread = f" ± {statistics.stdev(values):.1f}" if seeds > 1 else ""
            said = []
            for where, other in ((fresh, base), (whole, base), (whole, double)):
                pair = paired(where[key], where.get(other, {}))
                shown = NOT_MEASURED if pair is None else f"{pair} [{pair.seeds} seeds]"
                said.append("" if other == key else shown)
            lines.append(_row(TITLES[variant], [f"{statistics.fmean(values):.1f}{spread} [{seeds} seeds]", *said]))
        lines.append("")
    return lines


def _ablation(found: Cells, ratio: float, variants: Iterable[str]) -> list[str]:
    """Return one row for each variant."""
    lines = [f"digits, resnet, {ratio:.0%} of filters removed.", ""]
    lines += [
        "| | accuracy, % | less fine-tune, points | less over-parameterised, r = 4, points |",
        "|---|---|---|---|",
    ]
    key = "digits", "resnet", ratio
    base, lop = found.get((*key, "finetune"), {}), found.get((*key, "lop"), {})
    shown = ["finetune", *sorted([*variants, "lop"], key=_place)]
    for variant in shown:
        cell = found.get((*key, variant), {})
        differences = [_said(paired(cell, other)) if variant not in same else "" for other, same in (
            (base, ("finetune",)), (lop, ("lop",)),
        )]  # fmt: skip
        lines.append(_row(_title(variant), [_mean(cell), *differences]))
    return lines


def _spread(found: Cells) -> list[str]:
    """Say how much the width changes within a seed, with noise and without."""
    lines = []
    for name, variants in (
        ("Without noise", ("r1-quiet", "r2-quiet", "r4-quiet", "r8-quiet")),
        ("With noise", ("r2", "lop", "r8")),
    ):
        rows = [found.get(("digits", "resnet", WIDTHS_AT, variant), {}) for variant in variants]
        seeds = set.intersection(*map(set, rows))
        values = [statistics.stdev(100 * row[seed] for row in rows) for seed in seeds]
        said = f"{statistics.fmean(values):.1f} points{_few(len(seeds))}" if values else NOT_MEASURED
        rates = ", ".join(str(VARIANTS[variant].rate) for variant in variants)
        lines.append(f"{name}, standard deviation over r = {rates} within a seed, mean over seeds: {said}.  ")
    return lines


def _place(variant: str) -> tuple[Any, ...]:
    settings = VARIANTS[variant]
    if variant in WIDTHS or variant == "lop":
        return 0, settings.noise == 0, settings.rate or 0
    return 1, False, list(VARIANTS).index(variant)


def _title(variant: str) -> str:
    if variant in WIDTHS:
        settings = VARIANTS[variant]
        return f"over-parameterised, r = {settings.rate}{', no noise' if not settings.noise else ''}"
    return TITLES[variant]


def _collapse(trials: list[dict[str, Any]]) -> list[str]:
    done = [trial for trial in trials if "collapse_float64" in trial]
    if not done:
        return [NOT_MEASURED]
    worst = {name: max(trial[name] for trial in done) for name in ("collapse_float64", "collapse_float32")}
    close = sum(trial["collapse_float32"] <= FLOAT32 for trial in done)
    broke = sum("error" in trial for trial in trials)
    return [
        "| over-parameterised trainings | found | allowed |",
        "|---|---|---|",
        f"| collapsed, with the graph, names, shapes and MACs of the pruned net | {len(done)} of {len(done)} | all |",
        f"| largest relative error in float64 | {worst['collapse_float64']:.1e} | {FLOAT64:.0e} |",
        f"| largest relative error in float32 | {worst['collapse_float32']:.1e} | {FLOAT32:.0e} |",
        f"| trainings within that in float32 | {close} of {len(done)} | all |",
        "",
        f"{len(trials)} trials, of which {broke} broke off because the loss was no number any more; "
        f"{sum(trial['cpu_seconds'] for trial in trials) / 60:.0f} minutes of CPU time.",
    ]


def _head(title: str) -> list[str]:
    return [_row(title, [f"{ratio:.0%}" for ratio in RATIOS]), "|---" * (len(RATIOS) + 1) + "|"]


def _row(title: str, values: list[str]) -> str:
    return f"| {' | '.join([title, *values])} |"


def _mean(cell: Cell) -> str:
    if not cell:
        return NOT_MEASURED
    spread = f" ± {100 * statistics.stdev(cell.values()):.1f}" if len(cell) > 1 else ""
    return f"{100 * statistics.fmean(cell.values()):.1f}{spread}{_few(len(cell))}"


def _said(pair: Difference | None) -> str:
    return NOT_MEASURED if pair is None else f"{pair}{_few(pair.seeds)}"


def _few(seeds: int) -> str:
    return "" if seeds >= len(SEEDS) else f" [{seeds} seed{'s' * (seeds > 1)}]"


def _macs(trials: list[dict[str, Any]]) -> dict[float, float]:
    ratios = sorted({trial["ratio"] for trial in trials})
    return {ratio: statistics.fmean(t["macs"] for t in trials if t["ratio"] == ratio) for ratio in ratios}


# ---------------------------------------------------------------- the picture


def plot(results: dict[str, Any], scale: str, path: Path) -> None:
    """Draw the differences from fine-tuning over the ratio, a panel for each task and network that was measured."""
    from matplotlib.figure import Figure

    found = cells(t for t in current(results, scale) if t["seed"] in SEEDS)
    shown = [name for name in MAIN if name not in ("finetune", "calibrate")]
    points = {(task, net, name): _points(found, task, net, name) for task in TASKS for net in NETS for name in shown}
    panels = [(task, net) for task in TASKS for net in NETS if any(points[task, net, name] for name in shown)]
    figure = Figure(figsize=(4.6 * max(len(panels), 1) + 1.2, 4), layout="constrained")
    for number, (task, net) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.axhline(0, color="0.5", linewidth=1)
        for shift, variant in enumerate(shown):
            if points[task, net, variant]:
                place, mean, reach = zip(*points[task, net, variant], strict=True)
                shifted = [one + 0.1 * (shift - 1.5) for one in place]
                axes.errorbar(shifted, mean, yerr=reach, fmt="o-", capsize=3, label=TITLES[variant])
        axes.set_xticks(range(len(RATIOS)), [f"{ratio:.0%}" for ratio in RATIOS])
        axes.set_xlim(-0.5, len(RATIOS) - 0.5)
        axes.set_xlabel("filters removed")
        axes.set_title(f"{task}, {net}", fontsize="medium")
        if number == 1:
            axes.set_ylabel("accuracy less fine-tuning's, points (95 % interval)")
            axes.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=110)


def _points(found: Cells, task: str, net: str, variant: str) -> list[tuple[int, float, float]]:
    """Return place, mean and half an interval for each ratio that has them, in points."""
    pairs = [paired(*(found.get((task, net, ratio, name), {}) for name in (variant, "finetune"))) for ratio in RATIOS]
    return [(i, 100 * pair.mean, 100 * (pair.high - pair.mean)) for i, pair in enumerate(pairs) if pair is not None]
