"""The facts of a search's ``report.json`` in the order and the words in which a person reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxprune.cli.report.facts import PARITY_TOLERANCE, Pair, Ratio, Report, milliseconds
from fxprune.cli.report.facts import ratios as _ratios
from fxprune.cli.search.report import AXES
from fxprune.cli.shared.console import share, thousands

CHOSEN = "three dimensions"
WORDS = {"macs": "MACs", "latency": "latency"}
_TITLES = {
    "network": "The network",
    "alternatives": "One dimension alone",
    "curves": "The curves",
    "surface": "The fitted surface",
    "fit": "The fit",
    "points": "The networks that were trained",
    "failed": "Trials that failed",
    "checks": "Checks and notes",
    "made": "How it was made",
}
PROOF = (
    "Each cut was compared with the masked original in float64 when it was made (error at most 1e-9), again when the "
    "final network was rebuilt, and so were the folded batch norms."
)


@dataclass(frozen=True)
class Row:
    """A network that meets the budget, or why there is none.

    Attributes:
        name: What it is.
        shares: Depth, width and side of images, in words.
        cost: Share of the budget's metric; None where there is no network.
        accuracy: On the validation set, in [0, 1]; None where it was not trained.
        test: On the test set.
        reason: Why there are no figures; "" where there are.
        chosen: Whether it is the one that is exported.
    """

    name: str
    shares: tuple[str, str, str]
    cost: float | None
    accuracy: float | None
    test: float | None
    reason: str
    chosen: bool = False


def metric(report: Report) -> str:
    """Return what the budget counts, in words."""
    return WORDS[_metric(report)]


def _metric(report: Report) -> str:
    return str(next(iter(report["asked"]["budget"])))


def budget(report: Report) -> float:
    """Return the share to keep."""
    return float(report["asked"]["budget"][_metric(report)])


def asked(report: Report) -> str:
    """Return what was asked for in one line."""
    axes = report["asked"]["dimensions"]
    over = " and ".join([", ".join(axes[:-1]), axes[-1]] if len(axes) > 1 else axes)
    return f"Asked to keep at most {100 * budget(report):g}% of the {metric(report)}, over {over}"


def percent(value: float | None) -> str:
    """Return an accuracy in per cent; a dash where there is none."""
    return "-" if value is None else f"{value:.1%}"


def sections(report: Report) -> list[Pair]:
    """Return (key, title) of what the report has to say, in order."""
    left_out = {"failed": not report["failed"], "surface": not {"depth", "resolution"} & set(used(report))}
    return [(key, title) for key, title in _TITLES.items() if not left_out.get(key)]


def used(report: Report) -> tuple[str, ...]:
    """Return the dimensions along which a smaller network was trained."""
    return tuple(axis for axis in AXES if any(each[axis] < 1 for each in report["points"]))


def shares(each: dict[str, Any]) -> tuple[str, str, str]:
    """Return depth, width and side of a network in words."""
    gone = f", {each['layers']} removed" if each.get("layers") else ""
    side = f" ({each['side']} px)" if each.get("side") else ""
    return f"{each['depth']:.1%}{gone}", f"{each['width']:.1%}", f"{each['resolution']:.1%}{side}"


def network(report: Report) -> list[tuple[str, str, str, str]]:
    """Return (what, dense, chosen, share) of the dense model and the chosen network."""
    before, after, chosen, space = report["before"], report["after"], report["chosen"], report["space"]
    rows = [
        (label, f"{thousands(before[key])}{unit}", f"{thousands(after[key])}{unit}", share(after[key], before[key]))
        for key, label, unit in (("macs", "MACs", ""), ("params", "parameters", ""), ("bytes", "their size", "B"))
    ]
    deep, whole = chosen["depth_layers"], space["depth"]
    rows.append(("layers on the longest way", str(whole), str(deep), share(deep, whole)))
    rows.append(("removable channels of these layers", "all", percent(chosen["width"]), percent(chosen["width"])))
    if space["side"]:
        side = chosen["side"]
        rows.append(("side of the images", f"{space['side']} px", f"{side} px", share(side, space["side"])))
    latency = report.get("latency")
    if latency:
        times = [f"{milliseconds(latency[key])} ms" for key in ("dense_ms", "pruned_ms")]
        rows.append(("latency, each at its own size", times[0], times[1], f"{latency['ratio']:.1%}"))
    return rows


def accuracies(report: Report) -> list[tuple[str, str, str]]:
    """Return (network, accuracy on the validation set, on the test set) of what the result is held against."""
    found, first = report.get("accuracy") or {}, report["points"][0]
    rows = [("the dense model, as it was given", "-", percent(found.get("dense")))] if found else []
    epochs = f"{first['epochs']} epoch{'' if first['epochs'] == 1 else 's'}"
    rows.append((f"the dense model after {epochs} more", percent(first["accuracy"]), percent(found.get("whole"))))
    chosen = report["chosen"]
    rows.append(
        (f"the chosen network after {chosen['epochs']}", percent(chosen["accuracy"]), percent(found.get("after")))
    )
    rows.append(("what was predicted of it, from short trainings", percent(chosen["predicted"]["accuracy"]), "-"))
    return rows


def others(report: Report) -> list[Row]:
    """Return the chosen network, then the alternatives."""
    return [_row(CHOSEN, report["chosen"], chosen=True), *(_row(*each) for each in report["alternatives"].items())]


def _row(name: str, each: dict[str, Any], chosen: bool = False) -> Row:
    if "reason" in each:
        return Row(name, ("-", "-", "-"), None, None, None, each["reason"])
    why = ""
    if each["accuracy"] is None:
        why = f"failed: {each['error']}" if each.get("error") else "not trained"
    return Row(name, shares(each), each["cost"], each["accuracy"], each.get("test"), why, chosen)


def points(report: Report) -> list[tuple[str, ...]]:
    """Return a row for each trained network of the fit (:data:`POINTS_HEAD`)."""
    return [
        (
            *shares(each), percent(each["accuracy"]), percent(each["predicted"]), f"{each['cost']:.1%}",
            thousands(each["macs"]), f"{each['seconds']:.1f} s", each["worker"],
        )
        for each in report["points"]
    ]  # fmt: skip


POINTS_HEAD = ("depth", "width", "resolution", "accuracy", "as fitted", "cost", "MACs", "time", "worker")


def failed(report: Report) -> list[tuple[str, str, str]]:
    """Return (network, attempts, reason) of the trials that failed."""
    return [
        (" · ".join(f"{axis} {each[axis]:.1%}" for axis in AXES), str(each["attempts"]), each["error"])
        for each in report["failed"]
    ]


def fit(report: Report) -> list[Pair]:
    """Return what the points say, as names and values."""
    found = report["fitted"]
    optimum, steady = found["optimum"], found["stability"]
    errors = found["errors"]
    powers = " ".join(f"{axis}^{found['exponents'][axis]:.2f}" for axis in AXES)
    moved = ", ".join(f"{axis} {optimum[axis]:.1%} ± {100 * steady['std'][axis]:.1f}" for axis in AXES)
    return [
        ("predictor of accuracy", f"D(depth) W(width) R(resolution), each of degree {found['degree']} at most"),
        ("its leave-one-out error", _error(errors[str(found["degree"])])),
        ("of other degrees", ", ".join(f"{k}: {_error(v)}" for k, v in errors.items() if k.isdigit())),
        ("of the full polynomial", _error(errors.get("full"))),
        (f"{metric(report)} as a share", f"{powers}, off by {found['exponents_error']:.1%} at most"),
        ("optimum before it is built", f"{moved}; predicted accuracy {optimum['accuracy']:.1%}"),
        ("what ± stands for", f"accuracies that scatter by {100 * steady['noise']:.1f} points"),
    ]


def _error(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} points"


def formulas(report: Report) -> list[Pair]:
    """Return the three fitted factors, in what is removed of each dimension."""
    names = {"depth": "D", "width": "W", "resolution": "R"}
    rows = []
    for axis in AXES:
        terms = [
            f"{c:.4f}" if not power else f"{c:+.4f} x^{power}"
            for power, c in enumerate(report["fitted"]["factors"][axis])
        ]
        rows.append((f"{names[axis]}, with x = 1 - {axis}", " ".join(terms).replace("x^1", "x")))
    return rows


def checks(report: Report) -> list[tuple[str, str, str, bool]]:
    """Return (what, found, allowed, passed) of every check."""
    most, latency, onnx = budget(report), report.get("latency"), report.get("onnx")
    if _metric(report) == "macs":
        kept = report["after"]["macs"] / report["before"]["macs"]
        rows = [("MACs kept, counted", f"{kept:.2%}", f"{most:.2%}", report["met"])]
    else:
        kept = report["chosen"]["cost"]
        rows = [("latency kept, when it was chosen", f"{kept:.1%}", f"{most:.1%}", report["met"])]
        if latency:
            ends = f"{latency['ratio']:.1%} [{latency['ratio_low']:.1%}, {latency['ratio_high']:.1%}]"
            rows.append(("latency kept, of the final file", ends, f"{most:.1%}", latency["ratio_low"] <= most))
    if onnx:
        batches = ", ".join(map(str, onnx["batches"]))
        what = f"ONNX file against the graph, batches {batches}{', two sizes' if onnx['open_sizes'] else ''}"
        rows.append((what, f"{onnx['max_relative_error']:.1e}", f"{PARITY_TOLERANCE:.0e}", onnx["ok"]))
    return rows


def ratios(report: Report) -> list[Ratio]:
    """Return the measured ratios to the dense model's time."""
    return _ratios(report)


def made(report: Report) -> list[Pair]:
    """Return how the search was made."""
    asked, trials = report["asked"], [*report["points"], *report["failed"]]
    finals = [each for each in (report["chosen"], *report["alternatives"].values()) if each.get("trial")]
    spent = sum(each["seconds"] for each in [*trials, *{each["trial"]: each for each in finals}.values()])
    on = f"--data {asked['data']}" if asked["data"] else f"--train {asked['train']}"
    if asked["data"] and asked["fraction"] < 1:
        on += f" ({asked['fraction']:.0%} of the training images)"
    return [
        ("trained and chosen on", on),
        ("epochs", f"{asked['epochs'][0]} at each point, {asked['epochs'][1]} of the final networks"),
        ("trials ran on", asked["executor"]),
        ("their time together", f"{spent:.1f} s"),
        ("importance of channels", asked["choices"]["importance"]),
        ("importance of layers", asked["choices"]["layer_importance"]),
        ("widths in steps of", str(asked["choices"]["round_to"])),
        ("seed", str(asked["seed"])),
    ]


# ---------------------------------------------------------------- what is predicted


def predicted(report: Report, depth: float, width: float, resolution: float) -> float:
    """Return the predicted accuracy of a network."""
    found = 1.0
    for axis, value in zip(AXES, (depth, width, resolution), strict=True):
        found *= sum(c * (1 - value) ** power for power, c in enumerate(report["fitted"]["factors"][axis]))
    return found


def width_left(report: Report, depth: float, resolution: float) -> float | None:
    """Return the share of the width that the budget leaves; None where that is less than was looked at."""
    powers, most = report["fitted"]["exponents"], budget(report) * (1 + 1e-9)
    rest = depth ** powers["depth"] * resolution ** powers["resolution"]
    if "width" not in used(report):
        return 1.0 if rest <= most else None
    width = min((most / rest) ** (1 / powers["width"]), 1.0)
    return width if width >= lowest(report, "width") else None


def lowest(report: Report, axis: str) -> float:
    """Return the smallest share of a dimension that was looked at."""
    return min(float(each[axis]) for each in report["points"])
