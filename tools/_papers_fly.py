"""Pruning on the fly in small: which trials there are, their tables, and their picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tools._papers_fly_trial import (
    ABLATED_AT,
    ABLATION,
    BINS,
    CURVE,
    MEANS,
    METHODS,
    REACH,
    RECOVERED_AT,
    SCALES,
    TARGETS,
    Trial,
    run_trial,
)
from tools._recovery_tables import Difference, difference

__all__ = ["page", "plot", "run_trial", "trials"]

SEEDS = (0, 1, 2, 3, 4)
PLACES = (("digits", "resnet"), ("digits", "mobilenet"), ("shapes", "resnet"), ("shapes", "mobilenet"))
ABLATED = PLACES[0]
BOUNDS = {0.5: 0.5, 0.7: 3.5}  # points that may be lost: what the abstract reports
CONTROLS = (0.7, 0.9)  # ratios of the control that prunes first
COMMAND = "python tools/bench_papers.py --experiments fly --markdown docs/papers.md"
TITLES = {
    "plain": "plain training",
    "sphere": "sphere alone",
    "fly": "sphere + penalty",
    "prune-first": "magnitude, then training",
    "fly-no-sphere": "penalty without the sphere",
    "fly-near-only": "without the side that keeps the rest away",
    "fly-early": "the penalty rises and the set freezes in about half the time",
    "fly-0.1x": "a tenth of the strength",
    "fly-0.01x": "a hundredth of the strength",
}
FILLED = {"zero": "zeros", "filter": "means of filters", "sign": "signed means"}  # of which files are shown
NONE = "*not measured*"
Records = list[dict[str, Any]]


def trials(scale: str) -> list[Trial]:
    """Return all trials; what there is after a while makes whole tables, of three seeds and then of all."""
    found = list[Trial]()
    for seeds in (SEEDS[:3], SEEDS[3:]):
        for task, net in PLACES:
            for seed in seeds:
                for method in METHODS:
                    ratios = (0.0,) if method in ("plain", "sphere") else TARGETS if method == "fly" else CONTROLS
                    found += [Trial(scale, task, net, ratio, seed, method) for ratio in ratios]
        found += [Trial(scale, *ABLATED, ABLATED_AT, seed, method) for seed in seeds for method in ABLATION]
    return found


# ---------------------------------------------------------------- what was found


def _chosen(records: Records, scale: str) -> Records:
    wanted = {task: settings.digest for task, settings in SCALES[scale].items()}
    return [r for r in records if r["experiment"] == "fly" and r["settings"] == wanted[r["task"]]]


def _of(records: Records, method: str, ratio: float = 0.0) -> Records:
    return [r for r in records if r["method"] == method and r["ratio"] == ratio]


def _mean(records: Records, value: Callable[[dict[str, Any]], float], form: str = ".1f") -> str:
    return format(statistics.fmean(map(value, records)), form) if records else NONE


def _after(ratio: float, fill: str = "zero") -> Callable[[dict[str, Any]], float]:
    """Return what takes the accuracy after pruning from a record, in per cent."""
    return lambda record: 100 * float(record["pruned"][fill][str(ratio)])


def _unpruned(record: dict[str, Any]) -> float:
    return 100 * float(record["unpruned"])


Value = Callable[[dict[str, Any]], float]


def _gap(ours: Records, value: Value, theirs: Records, other: Value) -> Difference | None:
    """Return the mean of the differences seed by seed, over the seeds that both have, in points."""
    mine, yours = {r["seed"]: value(r) for r in ours}, {r["seed"]: other(r) for r in theirs}
    return difference((mine[seed] - yours[seed]) / 100 for seed in sorted(set(mine) & set(yours)))


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(NONE if cell is None else str(cell) for cell in cells) + " |"


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    names = list(head)
    return "\n".join([_row(names), "|" + "---|" * len(names), *map(_row, rows), ""])


# ---------------------------------------------------------------- tables


def page(records: Records, scale: str) -> str:
    """Return the tables, and what is not measured."""
    found, parts = _chosen(records, scale), [_introduction(scale)]
    for task, net in PLACES:
        mine = [r for r in found if (r["task"], r["net"]) == (task, net)]
        parts.append(f"### {task}, {net}\n")
        if not mine:
            parts.append(f"*Not measured*; `{COMMAND}`.\n")
            continue
        seeds = sorted({r["seed"] for r in mine})
        parts.append(f"Seeds: {len(seeds)}; {_mean(mine, lambda r: 100 * r['dense'])} % before the training.\n")
        parts += [_curve(mine), _claims(mine), _recovery(mine), _sides(mine)]
    parts += [f"### What makes it work ({', '.join(ABLATED)})\n", _ablation(found)]
    return "\n".join(parts)


def _introduction(scale: str) -> str:
    digits, shapes = SCALES[scale]["digits"], SCALES[scale]["shapes"]
    return _INTRODUCTION.format(
        digits=digits.epochs, shapes=shapes.epochs, lr=digits.lr, strength=digits.strength, first=TITLES["prune-first"],
        images=digits.calibration, test=digits.test,
    )  # fmt: skip


_INTRODUCTION = """\
The tasks and networks are those of docs/recovery.md. Each network is trained, and then trained again by each method:
{digits} epochs on digits, {shapes} on shapes, at a rate of {lr:g}, with a penalty of strength {strength:g}. Then single
weights are pruned: the set that was driven to zero at the ratio that the penalty was trained for, and else the smallest
of each layer; the first convolution and depthwise ones are left whole. Nothing is trained behind that, except in the
control, "{first}": the smallest weights go first, and the same epochs follow. "+ BN" calibrates batch norms on {images}
training images without their labels. Means over seeds in per cent of {test} test images; differences are paired, with
95 % intervals by Student's t, bold where they exclude 0. "In the gap" are weights between a quarter and three quarters
of the size that the penalty wants kept ones to have; files are compact ones, in kB.
"""


def _curve(mine: Records) -> str:
    """Return accuracies at all ratios; of fewer seeds than there are, how many they are of."""
    seeds = len({record["seed"] for record in mine})
    networks = [(TITLES[name], _of(mine, name)) for name in ("plain", "sphere")]
    networks += [(f"{TITLES['fly']} for {ratio:.0%}", _of(mine, "fly", ratio)) for ratio in TARGETS]
    rows = [
        [title + (" + BN" if bn else "") + _fewer(group, seeds), "" if bn else _mean(group, _unpruned)]
        + [_mean(group, _after(ratio, "zero" + bn)) for ratio in CURVE]
        for title, group in networks
        for bn in ("", " + bn")
    ]
    for bn in ("", " + bn"):
        groups = {ratio: _of(mine, "prune-first", ratio) for ratio in CONTROLS}
        cells = [_mean(groups[r], _after(r, "zero" + bn)) if r in groups else "" for r in CURVE]
        title = TITLES["prune-first"] + (" + BN" if bn else "") + _fewer(min(groups.values(), key=len), seeds)
        rows.append([title, "", *cells])
    return _table(["zeros in their place", "unpruned", *(f"{ratio:.0%}" for ratio in CURVE)], rows)


def _fewer(group: Records, seeds: int) -> str:
    return f" ({len(group)} of {seeds} seeds)" if 0 < len(group) < seeds else ""


def _claims(mine: Records) -> str:
    """Return what is lost at each ratio against plain training without pruning, and who is better."""
    plain, rows = _of(mine, "plain"), []
    for ratio in TARGETS:
        fly, first = _of(mine, "fly", ratio), _of(mine, "prune-first", ratio)
        for bn in ("", " + bn"):
            after = _after(ratio, "zero" + bn)
            lost = _gap(fly, after, plain, _unpruned)
            row = [f"{ratio:.0%}" + (" + BN" if bn else ""), lost, _gap(fly, after, fly, _unpruned)]
            row += [_gap(plain, after, plain, _unpruned), _gap(fly, after, plain, after)]
            row.append(_gap(fly, after, first, after) if ratio in CONTROLS else "")
            rows.append([*row, "" if bn else _verdict(lost, ratio)])
    method = TITLES["fly"]
    head = ["pruned", f"{method}, less plain training unpruned", f"{method}, less itself unpruned"]
    head += [
        "plain training, less itself unpruned",
        f"{method}, less plain training",
        f"{method}, less {TITLES['prune-first']}",
        "loses less than",
    ]
    return _table(head, rows)


def _verdict(lost: Difference | None, ratio: float) -> str:
    """Return whether a bound on what is lost holds, and whether the interval is within it."""
    if ratio not in BOUNDS or lost is None:
        return ""
    mean, whole = (-100 * value < BOUNDS[ratio] for value in (lost.mean, lost.low))
    said = "yes, by its whole interval" if whole else "yes, by its mean" if mean else "no"
    return f"{BOUNDS[ratio]:g}: {said}"


def _recovery(mine: Records) -> str:
    """Return what a mean in place of zeros gives, seed by seed."""
    networks = (
        (TITLES["plain"], _of(mine, "plain")),
        (f"{TITLES['fly']} for {RECOVERED_AT:.0%}", _of(mine, "fly", RECOVERED_AT)),
    )
    rows = [
        [title, f"{ratio:.0%}" + (" + BN" if bn else ""), _mean(group, _after(ratio, "zero" + bn))]
        + [_gap(group, _after(ratio, fill + bn), group, _after(ratio, "zero" + bn)) for fill in MEANS]
        for title, group in networks
        for ratio in TARGETS
        for bn in ("", " + bn")
    ]
    means = {"layer": "mean of the layer", "filter": "mean of the filter", "sign": "mean size of the filter, signed"}
    return _table(["", "pruned", "zeros", *(f"{means[fill]}, less zeros" for fill in MEANS)], rows)


def _sides(mine: Records) -> str:
    """Return how far weights are parted, and the sizes of files."""
    rows = []
    for ratio in TARGETS:
        for name, group in (("plain", _of(mine, "plain")), ("fly", _of(mine, "fly", ratio))):
            sizes = [_mean(group, _size(ratio, fill), ",.1f") for fill in FILLED]
            whole = _mean(group, lambda r: r["bytes"]["dense"] / 1000, ",.1f")
            rows.append([f"{TITLES[name]}, {ratio:.0%}", *_parted(group, ratio), whole, *sizes])
    head = ["", "square norm of what goes", "weights in the gap", "kB unpruned"]
    return _table([*head, *(f"kB, {name}" for name in FILLED.values())], rows)


def _parted(group: Records, ratio: float) -> list[str]:
    def side(name: str) -> str:
        return _mean(group, lambda record: 100 * float(record["sides"][str(ratio)][name]), ".2g")

    return [f"{side(name)} %" if group else NONE for name in ("energy", "band")]


def _size(ratio: float, fill: str) -> Value:
    return lambda record: float(record["bytes"][fill][str(ratio)]) / 1000


def _ablation(found: Records) -> str:
    mine = [r for r in found if (r["task"], r["net"]) == ABLATED]
    whole, rows = _of(mine, "fly", ABLATED_AT), []
    for name in ("fly", *ABLATION):
        group = _of(mine, name, ABLATED_AT)
        row: list[object] = [TITLES[name], len(group) or NONE, _mean(group, _unpruned)]
        for bn in ("", " + bn"):
            after = _after(ABLATED_AT, "zero" + bn)
            row += [_mean(group, after), "" if name == "fly" else _gap(group, after, whole, after)]
        rows.append([*row, *_parted(group, ABLATED_AT)])
    head = ["", "seeds", "unpruned", f"{ABLATED_AT:.0%} pruned", "less the whole method"]
    return _table([*head, "+ BN", "less the whole method", "square norm of what goes", "weights in the gap"], rows)


# ---------------------------------------------------------------- picture


def plot(records: Records, scale: str, path: Path) -> None:
    """Draw accuracy over the ratio for each task and network, and what the weights of one network look like."""
    from matplotlib.figure import Figure

    found = _chosen(records, scale)
    figure = Figure(figsize=(18, 4.2), layout="constrained")
    for number, (task, net) in enumerate(PLACES, 1):
        axes = figure.add_subplot(1, len(PLACES) + 1, number)
        mine = [r for r in found if (r["task"], r["net"]) == (task, net)]
        networks = [(TITLES[name], _of(mine, name)) for name in ("plain", "sphere")]
        networks += [(f"{TITLES['fly']} for {ratio:.0%}", _of(mine, "fly", ratio)) for ratio in TARGETS]
        for color, (title, group) in enumerate(networks):
            for fill, style in (("zero", "o-"), ("zero + bn", "x:")):
                values = [statistics.fmean(map(_after(ratio, fill), group)) for ratio in CURVE] if group else []
                label = title if fill == "zero" else None
                axes.plot(CURVE[: len(values)], values, style, color=f"C{color}", label=label, markersize=4)
        axes.set_title(f"{task}, {net}", fontsize="medium")
        axes.set_xlabel("weights pruned")
        axes.set_ylim(0, 100)
        if number == 1:
            axes.set_ylabel("accuracy, % (dotted: batch norms calibrated)")
            axes.legend(fontsize="small", loc="lower left")
    axes = figure.add_subplot(1, len(PLACES) + 1, len(PLACES) + 1)
    _draw_weights(axes, [r for r in found if (r["task"], r["net"], r["seed"]) == (*ABLATED, SEEDS[0])])
    figure.savefig(path, format="png", dpi=90)


def _draw_weights(axes: Any, mine: Records) -> None:
    width = 2 * REACH / BINS
    edges = [width * number - REACH for number in range(BINS + 1)]
    for name, ratio, title in (
        ("plain", 0.0, TITLES["plain"]),
        ("fly", RECOVERED_AT, f"{TITLES['fly']} for {RECOVERED_AT:.0%}"),
    ):
        for record in _of(mine, name, ratio):
            total = sum(record["histogram"])
            axes.stairs([count / total for count in record["histogram"]], edges, label=title, fill=False)
    axes.set_yscale("log")
    axes.set_xlim(-4, 4)
    axes.set_xlabel("weight, in root mean squares of its filter")
    axes.set_title(f"share of weights, {', '.join(ABLATED)}, one seed", fontsize="medium")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
