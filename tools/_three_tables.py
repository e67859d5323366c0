"""What the searches over three dimensions say: tables over seeds, and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fxprune.search.predictor import Point, Predictor, fit_full, fit_specialised
from tools._recovery_tables import difference, paired
from tools._recovery_tasks import NETS, SCALES, TASKS

COMMAND = "python tools/bench_three_dimensions.py --markdown docs/three_dimensions.md"
WAYS = ("three dimensions", "depth only", "width only", "resolution only", "uniform")
SINGLE = WAYS[1:4]
HELD_OUT = 6  # of the networks between the axes, which are only predicted
Records = list[dict[str, Any]]


def page(records: Records, scale: str) -> str:
    """Return all tables."""
    digests = {task: settings.digest for task, settings in SCALES[scale].items()}
    mine = [r for r in records if r["scale"] == scale and r["settings"] == digests[r["task"]]]
    if not mine:
        return f"*Not measured*; `{COMMAND}`.\n"
    return "\n".join([*_accuracy(mine), *_shares(mine), *_prediction(mine), *_costs(mine)]) + "\n"


# ---------------------------------------------------------------- final accuracy


def _accuracy(records: Records) -> list[str]:
    lines = ["### Accuracy of the final network", ""]
    lines += [
        "Per cent of test images that neither trained nor chose anything; means over seeds. All five have the same "
        "budget, start from the same dense network and are fine-tuned alike. *best single* is the one dimension that "
        "is best on average in that row, with hindsight, of those that every seed can reach; differences are paired, "
        "in points, with 95 % intervals.",
        "",
        f"| MACs | task, network | seeds | dense | {' | '.join(WAYS)} | less best single | less uniform |",
        "|---" * (len(WAYS) + 6) + "|",
    ]
    every: dict[str, list[float]] = {}
    for budget in sorted({b for r in records for b in r["budgets"]}, reverse=True):
        for task, net, cells in _places(records):
            found = {way: _tests(cells, budget, way) for way in WAYS}
            everywhere = [w for w in SINGLE if set(found[w]) == set(found[WAYS[0]])]  # means of the same seeds
            best = max(everywhere, key=lambda w: statistics.fmean(found[w].values()), default="")
            whole = found[WAYS[0]]
            row = [_mean(found[way], _why(cells, budget, way)) for way in WAYS]
            less = [f"{best}: {_said(whole, found[best])}" if best else "", _said(whole, found["uniform"])]
            dense = _mean({r["seed"]: r["dense"] for r in cells})
            lines.append(f"| {float(budget):.0%} | {task}, {net} | {len(cells)} | {' | '.join([dense, *row, *less])} |")
            if best:
                shared = sorted(set(whole) & set(found[best]))
                every.setdefault(budget, []).extend(whole[s] - found[best][s] for s in shared)
    lines.append("")
    for budget, values in every.items():
        lines.append(
            f"- At {float(budget):.0%} of the MACs, over all tasks, networks and seeds: three dimensions less the best "
            f"single one {difference(values)} points ({len(values)} pairs)."
        )
    return [*lines, ""]


def _places(records: Records) -> list[tuple[str, str, Records]]:
    found = []
    for task in TASKS:
        for net in NETS:
            cells = [r for r in records if (r["task"], r["net"]) == (task, net)]
            if cells:
                found.append((task, net, cells))
    return found


def _tests(cells: Records, budget: str, way: str) -> dict[int, float]:
    rows = {r["seed"]: r["budgets"][budget]["rows"].get(way, {}) for r in cells if budget in r["budgets"]}
    return {seed: row["test"] for seed, row in rows.items() if "test" in row}


def _why(cells: Records, budget: str, way: str) -> str:
    rows = [r["budgets"][budget]["rows"].get(way, {"why": "not there"}) for r in cells if budget in r["budgets"]]
    return next((row["why"] for row in rows if "why" in row), "")


def _mean(values: dict[int, float], why: str = "") -> str:
    if not values:
        return "cannot be reached" if "reachable" in why else f"none: {why[:60]}" if why else ""
    spread = f" ± {100 * statistics.stdev(values.values()):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values.values()):.1f}{spread}"


def _said(one: dict[int, float], other: dict[int, float]) -> str:
    if not set(one) & set(other):
        return ""
    found = paired(one, other)
    return str(found) if found else f"{100 * statistics.fmean(one[s] - other[s] for s in set(one) & set(other)):+.1f}"


# ---------------------------------------------------------------- what was chosen


def _shares(records: Records) -> list[str]:
    lines = ["### What was chosen", ""]
    lines += [
        "Depth, width and resolution of the network that was built, and of the optimum before it was snapped to what "
        "can be built, with the standard deviation when every accuracy has noise of half a point; counted MACs, which "
        "must not be above the budget; what was predicted of it, and what it reached on the images that chose it.",
        "",
        "| MACs | task, network, seed | built (d, w, r) | optimum (d, w, r) | counted | predicted | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for budget in sorted({b for r in records for b in r["budgets"]}, reverse=True):
        for task, net, cells in _places(records):
            for cell in cells:
                one = cell["budgets"][budget]
                row = one["rows"][WAYS[0]]
                if "shares" not in row:
                    continue
                optimum = ", ".join(f"{s:.2f} ± {e:.2f}" for s, e in zip(one["optimum"], one["spread"], strict=True))
                built = ", ".join(f"{share:.2f}" for share in row["shares"])
                lines.append(
                    f"| {float(budget):.0%} | {task}, {net}, {cell['seed']} | {built} | {optimum} "
                    f"| {row['cost']:.1%} | {one['predicted']:.1%} | {row['chosen_by']:.1%} |"
                )
    return [*lines, ""]


# ---------------------------------------------------------------- how well accuracies are predicted

Fit = Callable[[Sequence[Point]], Predictor]


def _prediction(records: Records) -> list[str]:
    inside = [r for r in records if r.get("inside")]
    lines = ["### How well few networks predict others", ""]
    if not inside:
        return [*lines, f"*Not measured*; `{COMMAND}`.", ""]
    tasks = ", ".join(sorted({f"{r['task']} {r['net']}" for r in inside}))
    lines += [
        f"Root mean square error, in points, on {HELD_OUT} networks between the axes that nothing was fitted to; mean "
        f"and standard deviation over {len(inside)} seeds ({tasks}). Ten networks lie on the axes; the others, up to "
        "twenty, between them. Polynomials have degree 3 in each variable.",
        "",
        "| fitted to | specialised (rank 1) | full | constant |",
        "|---|---|---|---|",
    ]
    for count in (10, 13, 20):
        cells = [_errors(record, count) for record in inside]
        cells = [cell for cell in cells if cell is not None]
        if cells:
            columns = [f"{100 * statistics.fmean(c):.1f}{_spread(c)}" for c in zip(*cells, strict=True)]
            lines.append(f"| {count} | {' | '.join(columns)} |")
    return [*lines, ""]


def _spread(values: Sequence[float]) -> str:
    return f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""


def _errors(record: dict[str, Any], count: int) -> tuple[float, ...] | None:
    axes = [_point(entry) for entry in record["points"]]
    between = [_point(entry) for entry in record["inside"]]
    judged, more = between[-HELD_OUT:], between[:-HELD_OUT]
    if len(axes) + len(more) < count or len(judged) < HELD_OUT:
        return None
    given = [*axes, *more][:count]
    flat = statistics.fmean(point.accuracy for point in given)
    fits: list[Callable[[float, float, float], float]] = [
        fit_specialised(given), fit_full(given), lambda d, w, r: flat,
    ]  # fmt: skip
    return tuple(
        statistics.fmean((fit(*point.shares) - point.accuracy) ** 2 for point in judged) ** 0.5 for fit in fits
    )


def _point(entry: dict[str, Any]) -> Point:
    depth, width, resolution = entry["shares"]
    return Point(depth, width, resolution, entry["accuracy"])


def _costs(records: Records) -> list[str]:
    lines = ["### How costs follow the dimensions", ""]
    lines += ["| task, network | exponents of d, w, r | largest error of a network |", "|---|---|---|"]
    for task, net, cells in _places(records):
        one = next(iter(cells[0]["budgets"].values()))
        exponents = ", ".join(f"{value:.2f}" for value in one["law"])
        lines.append(f"| {task}, {net} | {exponents} | {one['law_error']:.1%} |")
    return [*lines, ""]


# ---------------------------------------------------------------- the picture


def plot(records: Records, path: Path) -> None:
    """Draw accuracy along each dimension, with what is fitted, for every task and network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    places = _places(records)
    figure, axes = plt.subplots(len(places), 3, figsize=(10, 2.6 * len(places)), squeeze=False, sharey="row")
    for row, (task, net, cells) in zip(axes, places, strict=True):
        for d, (axis, name) in enumerate(zip(row, ("depth", "width", "resolution"), strict=True)):
            for number, cell in enumerate(cells):
                points = [_point(entry) for entry in cell["points"]]
                mine = [p for p in points if all(s == 1.0 for e, s in enumerate(p.shares) if e != d)]
                axis.plot([p.shares[d] for p in mine], [100 * p.accuracy for p in mine], "o", ms=4, color=f"C{number}")
                low = min(p.shares[d] for p in mine)
                grid = np.ones((60, 3))
                grid[:, d] = np.linspace(low, 1.0, 60)
                fitted = fit_specialised(points, next(iter(cell["budgets"].values()))["degree"])
                axis.plot(
                    grid[:, d], 100 * fitted.at(grid), "-", lw=1, color=f"C{number}", label=f"seed {cell['seed']}"
                )
            axis.set_xlabel(name)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"{task}, {net}\naccuracy, %")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)
