"""Basis scaling and double pruning in small: which trials there are, their tables, and their picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools._papers_basis_transfer import SCALES, SEEDS, data_for
from tools._papers_basis_trial import FLOAT64, Trial, run_trial
from tools._recovery_tables import difference, paired

__all__ = ["page", "plot", "run_trial", "trials"]

POINT = 0.01  # of accuracy, that may be lost
COMMAND = "python tools/bench_papers.py --experiments basis --markdown docs/papers.md"
NONE = "*not measured*"
# What is compared: method -> what is trained, and its network that is not pruned.
WAYS = {
    "channels": ("all weights", "unpruned"),
    "basis-all": ("all weights", "unpruned"),
    "channels-frozen": ("norms, head", "unpruned-frozen"),
    "channels-scales": ("scales, norms, head", "unpruned-scales"),
    "basis": ("scales, norms, head", "unpruned-scales"),
    "double": ("scales, norms, head", "unpruned-scales"),
    "double-reverse": ("scales, norms, head", "unpruned-scales"),
}
TITLES = {
    "channels": "channels",
    "channels-frozen": "channels",
    "channels-scales": "channels",
    "basis": "basis vectors",
    "basis-all": "basis vectors",
    "double": "channels, then vectors",
    "double-reverse": "vectors, then channels",
}
UNPRUNED = ("unpruned", "unpruned-frozen", "unpruned-scales")
ABLATION = {
    "basis": "squared change of the loss per parameter, summed over the training",
    "basis-layer": "the same, by its share of its layer's",
    "basis-plain": "the same, as it is",
    "basis-last": "per parameter, summed over the last epoch",
    "basis-singular": "squared singular values per parameter",
    "basis-fixed": "per parameter, in eval mode; scales are never trained",
}
ABLATED_AT = 0.95
PAIRS = (
    ("basis", "channels"),
    ("basis", "channels-frozen"),
    ("basis", "channels-scales"),
    ("double", "basis"),
    ("double", "channels-scales"),
    ("double", "channels"),
    ("double-reverse", "double"),
    ("basis-all", "channels"),
)
Records = list[dict[str, Any]]
Cell = dict[int, float]  # seed -> a number


@dataclass(frozen=True)
class Place:
    """One transfer, and what is compared on it.

    Attributes:
        task: ``digits`` or ``shapes``.
        net: ``resnet`` or ``mobilenet``.
        share: Of the new classes' images.
        ratios: Shares of the parameters that go.
        methods: Ways to prune.
    """

    task: str
    net: str
    share: float
    ratios: tuple[float, ...]
    methods: tuple[str, ...]


FEW = ("channels", "channels-frozen", "channels-scales", "basis", "double")
PLACES = (
    Place("digits", "resnet", 1.0, (0.9, 0.95, 0.98), tuple(WAYS)),
    Place("digits", "resnet", 0.1, (0.9, 0.95, 0.98), FEW),
    Place("shapes", "resnet", 1.0, (0.6, 0.8, 0.9), tuple(WAYS)),
    Place("shapes", "resnet", 0.1, (0.6, 0.8, 0.9), FEW),
    Place("digits", "mobilenet", 1.0, (0.5, 0.8), FEW),
)


def trials(scale: str) -> list[Trial]:
    """Return all trials, seed by seed; those of the last place come when all others are done."""
    found = list[Trial]()
    for places in (PLACES[:-1], PLACES[-1:]):
        for seed in SEEDS:
            for place in places:
                where = (scale, place.task, place.net, place.share)
                found += [Trial(*where, 0.0, seed, method) for method in UNPRUNED]
                found += [Trial(*where, ratio, seed, method) for method in place.methods for ratio in place.ratios]
                if place is PLACES[0]:
                    found += [Trial(*where, ABLATED_AT, seed, name) for name in ABLATION if name != "basis"]
    return found


# ---------------------------------------------------------------- what was found


class Found:
    """The records of one place, by method and ratio."""

    def __init__(self, records: Records, scale: str, place: Place) -> None:
        digest = SCALES[scale][place.task].digest
        wanted: dict[str, Any] = {"experiment": "basis", "scale": scale, "settings": digest}
        wanted |= {"task": place.task, "net": place.net, "share": place.share}
        self.records = [record for record in records if wanted.items() <= record.items()]

    def of(self, method: str, ratio: float) -> Records:
        """Return the records of a method at a ratio."""
        return [r for r in self.records if r["method"] == method and r["ratio"] == ratio]

    def accuracy(self, method: str, ratio: float, key: str = "accuracy") -> Cell:
        """Return accuracies by seed; what could not be removed has none."""
        return {r["seed"]: r[key] for r in self.of(method, ratio) if key in r}

    def curve(self, method: str, seed: int) -> list[tuple[float, float]]:
        """Return what is removed and the accuracy that is left, from nothing on."""
        points = [
            (1 - r["params"] / r["dense_params"], r["accuracy"])
            for r in self.records
            if r["seed"] == seed and "accuracy" in r and r["method"] in (method, WAYS[method][1])
        ]
        return sorted(points)

    def reach(self, method: str, reference: str) -> tuple[Cell, bool]:
        """Return the largest removal within a point of a network, by seed, and whether the curve may go on."""
        least, found, open_ended = self.accuracy(reference, 0.0), Cell(), False
        for seed in least:
            points = self.curve(method, seed)
            if len(points) > 1 and points[0][0] == 0:
                found[seed] = crossing(points, least[seed] - POINT)
                open_ended |= found[seed] == points[-1][0]
        return found, open_ended


def crossing(points: list[tuple[float, float]], least: float) -> float:
    """Return where a curve first falls below a number, between points on a straight line; 0 if it begins there."""
    before = points[0]
    if before[1] < least:
        return 0.0
    for point in points[1:]:
        if point[1] < least:
            return before[0] + (point[0] - before[0]) * (before[1] - least) / (before[1] - point[1])
        before = point
    return before[0]


# ---------------------------------------------------------------- tables


def page(records: Records, scale: str) -> str:
    """Return the tables, and what is not measured."""
    lines = [_INTRODUCTION]
    for place in PLACES:
        lines += _place(Found(records, scale, place), place, scale)
    lines += _ablation(Found(records, scale, PLACES[0]))
    return "\n".join([*lines, *_checks(records, scale)]) + "\n"


_INTRODUCTION = """\
Each network is trained on five classes; then it gets a new head and is transferred to the other five. What is removed
is chosen by the squared first-order change of the loss. All ways have the same epochs: half before and half behind the
cut, or a third before, between and behind two cuts. Mean and standard deviation over seeds, in per cent, of images that
are not trained on. "Within a point" is the largest share of the parameters that can go, on straight lines between what
was measured, with at most one point less accuracy than the unpruned network of the same seed: the one with all weights
trained, or the one that was trained as the row is. >=: some curve is still within at its last point.
"""


def _place(found: Found, place: Place, scale: str) -> list[str]:
    share = "all images" if place.share == 1 else f"{place.share:.0%} of the images"
    lines = [f"### {place.task}, {place.net}, {share}\n"]
    if not found.records:
        return [*lines, f"*Not measured*; `{COMMAND}`.\n"]
    params, seeds = found.records[0]["dense_params"], {r["seed"] for r in found.records}
    case = Trial(scale, place.task, place.net, place.share, 0.0, min(seeds), "unpruned").case
    _, train, test = data_for(case)
    lines += [f"{len(train)} images to train on, {len(test)} to test; {params:,} parameters; {len(seeds)} seeds.\n"]
    columns = [f"{ratio:.0%}" for ratio in place.ratios]
    lines += [_row("removed", ["trained", "nothing", *columns, "within a point", "of its own unpruned network"])]
    lines += ["|---" * (len(columns) + 5) + "|"]
    for method in place.methods:
        trained, unpruned = WAYS[method]
        cells = [_mean(found.accuracy(unpruned, 0.0)), *(_cell(found, method, ratio) for ratio in place.ratios)]
        cells += [_reached(*found.reach(method, reference)) for reference in ("unpruned", unpruned)]
        lines.append(_row(TITLES[method], [trained, *cells]))
    return [*lines, "", *_differences(found, place, columns), ""]


def _differences(found: Found, place: Place, columns: list[str]) -> list[str]:
    lines = [_row("difference, points (95 % interval)", [*columns, "within a point"])]
    lines += ["|---" * (len(columns) + 2) + "|"]
    for one, other in PAIRS:
        if {one, other} <= set(place.methods):
            cells = [_said(found.accuracy(one, r), found.accuracy(other, r)) for r in place.ratios]
            cells.append(_said(found.reach(one, "unpruned")[0], found.reach(other, "unpruned")[0]))
            lines.append(_row(f"{_name(one)} - {_name(other)}", cells))
    return lines


def _name(method: str) -> str:
    return f"{TITLES[method]} ({WAYS[method][0]})"


def _ablation(found: Found) -> list[str]:
    place = PLACES[0]
    lines = [f"### What ranks vectors: {place.task}, {place.net}, {ABLATED_AT:.0%} removed\n"]
    lines += ["| | right after the cut | trained on | less the first row, points |", "|---|---|---|---|"]
    first = found.accuracy("basis", ABLATED_AT)
    for method, title in ABLATION.items():
        after, tuned = found.accuracy(method, ABLATED_AT, "cut"), found.accuracy(method, ABLATED_AT)
        lines.append(_row(title, [_mean(after), _mean(tuned), "" if method == "basis" else _said(tuned, first)]))
    return [*lines, ""]


def _checks(records: Records, scale: str) -> list[str]:
    digests = {settings.digest for settings in SCALES[scale].values()}
    mine = [r for r in records if r["experiment"] == "basis" and r["settings"] in digests]
    errors = [r["merge_float64"] for r in mine if "merge_float64" in r]
    if not errors:
        return [f"Merging: {NONE}."]
    return [
        f"In {len(errors)} of {len(errors)} trials with basis vectors the merged network is the one with zeros in its "
        f"scales: the largest relative error in float64 is {max(errors):.1e}, {FLOAT64:.0e} is allowed. {len(mine)} "
        f"trials took {sum(r['cpu_seconds'] for r in mine) / 60:.0f} minutes of CPU time."
    ]


def _row(title: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([title, *cells])} |"


def _cell(found: Found, method: str, ratio: float) -> str:
    refused = [r for r in found.of(method, ratio) if "error" in r]
    return "cannot" if refused else _mean(found.accuracy(method, ratio))


def _mean(cell: Mapping[int, float]) -> str:
    if not cell:
        return NONE
    spread = f" ± {100 * statistics.stdev(cell.values()):.1f}" if len(cell) > 1 else ""
    return f"{100 * statistics.fmean(cell.values()):.1f}{spread}"


def _reached(cell: Mapping[int, float], open_ended: bool) -> str:
    return f"{'>= ' * open_ended}{_mean(cell)}" if cell else NONE


def _said(one: Cell, other: Cell) -> str:
    found = paired(one, other)
    return "" if found is None else str(found)


# ---------------------------------------------------------------- the picture


def plot(records: Records, scale: str, path: Path) -> None:
    """Draw accuracy over the parameters that are left, a panel for each place that was measured."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    colours = {method: f"C{number}" for number, method in enumerate(WAYS)}  # the same in every panel
    places = [(place, found) for place in PLACES if (found := Found(records, scale, place)).records]
    rows, columns = -(-max(len(places), 1) // 3), min(3, max(len(places), 1))
    figure = Figure(figsize=(4.6 * columns + 0.6, 3.8 * rows), layout="constrained")
    for number, (place, found) in enumerate(places, 1):
        axes = figure.add_subplot(rows, columns, number)
        if reference := found.accuracy("unpruned", 0.0):
            level = 100 * (statistics.fmean(reference.values()) - POINT)
            axes.axhline(level, color="0.5", linewidth=1, label="unpruned, all weights, less a point")
        for method in place.methods:
            points = _points(found, method, place.ratios)
            if points:
                left, mean, reach = zip(*points, strict=True)
                style = "s--" if WAYS[method][0] == "all weights" else "o-"
                look: dict[str, Any] = {"capsize": 3, "markersize": 4, "color": colours[method], "label": _name(method)}
                axes.errorbar(left, mean, yerr=reach, fmt=style, **look)
        axes.set_xscale("log")
        axes.set_xticks(sorted({100.0, *(round(100 * (1 - ratio), 1) for ratio in place.ratios)}))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("parameters left, %")
        axes.set_title(f"{place.task}, {place.net}, {place.share:.0%} of the images", fontsize="medium")
        top = axes.get_ylim()[1]
        axes.set_ylim(max(axes.get_ylim()[0], 0), min(top, 101))
        if number % columns == 1:
            axes.set_ylabel("accuracy, % (95 % interval)")
        if number == 1:
            axes.legend(fontsize="x-small")
    figure.savefig(path, format="png", dpi=110)


def _points(found: Found, method: str, ratios: Iterable[float]) -> list[tuple[float, float, float]]:
    """Return what is left, mean accuracy and half an interval, in per cent, for each ratio that was measured twice."""
    points = []
    for name, ratio in [(WAYS[method][1], 0.0), *((method, ratio) for ratio in ratios)]:
        records = [r for r in found.of(name, ratio) if "accuracy" in r]
        spread = difference(r["accuracy"] for r in records)
        if spread is not None:
            left = statistics.fmean(r["params"] / r["dense_params"] for r in records)
            points.append((100 * left, 100 * spread.mean, 100 * (spread.high - spread.mean)))
    return points
