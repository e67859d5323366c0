"""The facts of ``report.json`` in the order and the words in which a person reads them: one source for every form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxprune.cli.shared.console import share, thousands

VERIFY_TOLERANCE = 1e-9
PARITY_TOLERANCE = 1e-4

Report = dict[str, Any]
Pair = tuple[str, str]
SECTIONS = (
    ("numbers", "Before and after"),
    ("trainings", "What was trained"),
    ("layers", "Latency by layer"),
    ("roofline", "Limits of the machine"),
    ("widths", "Widths of the layers"),
    ("coupling", "Which layers share channels"),
    ("frozen", "What stays, and why"),
    ("checks", "Checks"),
    ("environment", "Plan and environment"),
)
OUTSIDE = "(between the layers)"  # what the runtime does that no module asked for
_NO_GAIN_BY_REGION = "Not measured: layers are not timed one by one where a model was captured by region."
_WHY_NO_GAIN = (
    "Not measured. Times of single layers need --runtime onnxruntime-..., without --no-latency and --no-onnx."
)


@dataclass(frozen=True)
class Ratio:
    """A ratio to the original's time, with its interval.

    Attributes:
        label: What was compared.
        ratio: The estimate.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    label: str
    ratio: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """The ratio and its interval in per cent."""
        return f"{self.ratio:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True)
class Layer:
    """A layer's times and work, before and after.

    Attributes:
        name: Its path in the model.
        before: Milliseconds in the dense model.
        after: Milliseconds in the pruned model.
        work: Share of its multiply-accumulates that was kept; None where it multiplies nothing.
        lost: Milliseconds more than that share of its time.
        kernels: What runs for it now.
        intensity: Multiply-accumulates per byte, now.
        rate: Multiply-accumulates per second, now.
        reason: Why time was lost ("" where none worth a word was).
    """

    name: str
    before: float
    after: float
    work: float | None
    lost: float
    kernels: str
    intensity: float
    rate: float
    reason: str

    @property
    def time_kept(self) -> str:
        """Share of the time that was kept."""
        return share(self.after, self.before)

    @property
    def work_kept(self) -> str:
        """Share of the work that was kept."""
        return "-" if self.work is None else f"{self.work:.1%}"


def milliseconds(value: float) -> str:
    """Return milliseconds with about three digits that count."""
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def budget(report: Report) -> str:
    """Return what was asked to be kept; empty where no budget made the plan."""
    kinds = {"macs": "MACs", "params": "parameters"}
    asked = report["plan"]["budget"] if report["plan"] else {}
    return ", ".join(f"{100 * value:g}% of the {kinds.get(name, name)}" for name, value in asked.items())


def asked(report: Report) -> str:
    """Return what was asked for in one line: the budget, or the steps."""
    found = budget(report)
    return f"Asked to keep: {found}" if found else f"Steps: {', '.join(report.get('steps', ()))}"


def sizes(report: Report) -> list[tuple[str, str, str, str]]:
    """Return (what, before, after, kept) of all that became smaller."""
    before, after = report["before"], report["after"]
    rows = [
        (label, f"{thousands(before[key])}{unit}", f"{thousands(after[key])}{unit}", share(after[key], before[key]))
        for key, label, unit in (("macs", "MACs", ""), ("params", "parameters", ""), ("bytes", "their size", "B"))
        if key in before
    ]
    latency = report.get("latency")
    if latency:
        times = [f"{milliseconds(latency[key])} ms" for key in ("dense_ms", "pruned_ms")]
        rows.append(("latency", times[0], times[1], f"{latency['ratio']:.1%}"))
    return rows


def ratios(report: Report) -> list[Ratio]:
    """Return the measured ratios to the original: the one that decides, in wall time, and the control."""
    latency = report.get("latency")
    if not latency:
        return []
    label = "CPU time" if latency["clock"] == "cpu" else "wall time"
    found = [Ratio(f"pruned, {label}", latency["ratio"], latency["ratio_low"], latency["ratio_high"])]
    others = [("control", f"original beside itself, {label}")]
    if latency["clock"] == "cpu":
        others.insert(0, ("wall", "pruned, wall time"))
    return found + [
        Ratio(text, *(latency[key][end] for end in ("ratio", "low", "high"))) for key, text in others if key in latency
    ]


def latency_line(latency: dict[str, Any]) -> str:
    """Say what the ratio of latencies is worth: its interval, what it was measured with, and whether that can be."""
    threads = f"{latency['threads']} thread{'s' if latency['threads'] > 1 else ''}"
    text = (
        f"latency: {latency['ratio']:.1%} of the original's, 95% interval {latency['ratio_low']:.1%} to "
        f"{latency['ratio_high']:.1%} ({latency['runtime']}, {threads}, batch {latency['batch']}, "
        f"{'CPU' if latency['clock'] == 'cpu' else 'wall'} time, {latency['rounds']} pairs)"
    )
    if latency["control_holds"]:
        return text
    control = latency["control"]
    return (
        f"{text}; not to be relied on: the original beside itself came out at {control['low']:.1%} to "
        f"{control['high']:.1%}, so the machine was busy with something else"
    )


def layers(report: Report) -> list[Layer]:
    """Return the layers in the order in which they run."""
    return [_layer(layer) for layer in report.get("gain", {}).get("layers", ())]


def _layer(layer: dict[str, Any]) -> Layer:
    before, after, ms = layer["before"], layer["after"], layer["after_ms"]
    work = after["macs"] / before["macs"] if before["macs"] else None
    return Layer(
        name=layer["layer"] or OUTSIDE,
        before=layer["before_ms"],
        after=ms,
        work=work,
        lost=ms - layer["before_ms"] * (1.0 if work is None else work),
        kernels=", ".join(layer["kernels"]),
        intensity=after["macs"] / after["bytes"] if after["bytes"] else 0.0,
        rate=after["macs"] / ms * 1e3 if ms else 0.0,
        reason=layer["reason"],
    )


def losses(report: Report) -> list[Layer]:
    """Return the layers that lost time worth a word, the greatest loss first."""
    return sorted((layer for layer in layers(report) if layer.reason), key=lambda layer: -layer.lost)


def limits(report: Report) -> str:
    """Say what the machine can do at most, as measured."""
    if report.get("regions"):
        return _NO_GAIN_BY_REGION
    if "gain" not in report:
        return _WHY_NO_GAIN
    found = report["gain"]["roofline"]
    return (
        f"Measured on this machine: {thousands(found['macs_per_s'])}MAC/s of one large matrix product, "
        f"{thousands(found['bytes_per_s'])}B/s through memory. A layer that does fewer than "
        f"{found['macs_per_s'] / found['bytes_per_s']:.1f} multiply-accumulates per byte waits for memory, unless its "
        "data are still in a cache."
    )


def stays(report: Report) -> list[tuple[str, str, str]]:
    """Return (parameters, how much of them, reason) of all channels that cannot be removed."""
    if report["groups"] is None:
        return []
    coupled = report["groups"].get("coupled")
    if coupled is None:
        return [(names(group["parameters"]), "all", group["reason"]) for group in report["groups"]["frozen"]]
    return [
        (
            names([name for name, _ in group["parameters"]]),
            f"{group['frozen']} of {group['frozen'] + group['units']}" if group["units"] else "all",
            group["reason"],
        )
        for group in coupled
        if group["reason"]
    ]


def names(found: list[str], most: int = 4) -> str:
    """Return the first few of a list of names, and how many more there are."""
    found = list(dict.fromkeys(found))
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def checks(report: Report) -> list[tuple[str, str, str, bool]]:
    """Return (what, error found, error allowed, passed) of every check."""
    verify, onnx = report["verify"], report.get("onnx")
    rows = []
    if verify:
        rows.append((f"pruned graph against the masked original, {verify['dtype']}", verify, VERIFY_TOLERANCE))
    if onnx:
        batches = ", ".join(map(str, onnx["batches"]))
        rows.append((f"ONNX file against the graph, batches {batches}", onnx, PARITY_TOLERANCE))
    for region in report.get("regions", ()):
        rows.append((f"{region['onnx']['path']} against its graph", region["onnx"], PARITY_TOLERANCE))
    return [(what, f"{row['max_relative_error']:.1e}", f"{most:.0e}", bool(row["ok"])) for what, row, most in rows]


def plan(report: Report) -> list[Pair]:
    """Return how the plan was made; nothing where nothing was cut."""
    found = report["plan"]
    if not found:
        return []
    rows = [
        ("asked to keep", budget(report) or "what the training chose"),
        ("importance", str(found["importance"])),
        ("allocation", str(found["allocation"])),
        ("widths in steps of", str(found["round_to"])),
        ("hash", str(found["hash"])),
    ]
    tried = ", ".join(f"{ratio:.1%} for {asked:.1%}" for asked, ratio in found.get("trials", ()))
    return [*rows, ("latency measured for shares asked of the model", tried)] if tried else rows


def sections(report: Report) -> list[Pair]:
    """Return (key, title) of what the report has to say, in order."""
    cut = ("coupling", "frozen")
    return [
        (key, title)
        for key, title in SECTIONS
        if (key not in cut or report["groups"] is not None) and (key != "trainings" or "trainings" in report)
    ]


def environment(report: Report) -> list[Pair]:
    """Return what the report was made with and on."""
    rows = [(name, str(version)) for name, version in report["versions"].items()]
    measured = [report, *report.get("regions", ())]
    latency: dict[str, Any] = next((found["latency"] for found in measured if found.get("latency")), {})
    if latency:
        rows += [(key, str(latency[key])) for key in ("runtime", "threads", "batch", "rounds")]
    machine = latency.get("machine") or {}
    for key, value in machine.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if text and key not in report["versions"]:
            label = {"load": "load before", "load_after": "load after"}.get(key, key)
            rows.append((label, f"{value:.2f}" if isinstance(value, float) else text))
    return rows


def spent(report: Report) -> list[Pair]:
    """Return how long each step took."""
    return [(name, f"{seconds:.1f} s") for name, seconds in report["seconds"].items()]


def great_groups(report: Report, most: int = 8) -> list[tuple[int, str, str]]:
    """Return (number, what the plan takes, layers) of the groups that join more than two layers, the greatest first."""
    coupled = report["groups"].get("coupled") or ()
    touched: dict[int, list[str]] = {}
    for layer in report["groups"].get("layers") or ():
        for number in {*layer["reads"], *layer["writes"]}:
            touched.setdefault(number, []).append(layer["name"])
    wide = [number for number, found in touched.items() if len(found) > 2]
    order = sorted(wide, key=lambda number: (-len(touched[number]), number))
    return [(number, taken(coupled[number]), names(touched[number])) for number in order[:most]]


def taken(group: dict[str, Any]) -> str:
    """Say how much of a group was removed."""
    minus = "\u2212" if group["removed"] else ""
    return f"{minus}{group['removed']} of {group['units']}" if group["units"] else "stays"
