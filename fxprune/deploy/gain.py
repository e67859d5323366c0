"""Where the gain comes from, layer by layer, and where it is less than the saved work promises: why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import hypot, prod
from typing import Any

from torch import Tensor, fx

from fxprune.capture import Traced
from fxprune.deploy.layer_times import OUTSIDE, LayerTime, layer_times
from fxprune.deploy.onnx import ExportReport
from fxprune.deploy.roofline import Roofline, measure_roofline
from fxprune.planning.cost import products
from fxprune.planning.latency_table import layer_widths

_FLOAT = 4  # bytes
_SHORT = 0.02  # milliseconds: a call that is shorter is mostly handing over
_SLACK = 1.15  # times what the saved work promises that count as kept
_SMALL = 0.001  # share of the whole that a broken promise must cost to be worth a word
_LAYOUT = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
_LOOSE = frozenset({"BatchNormalization", "Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Add"})


@dataclass(frozen=True)
class Work:
    """What a module does in one inference.

    Attributes:
        macs: Multiply-accumulates.
        bytes: Read and written at least: inputs, weights and outputs once each.
        outputs: Output channels of a convolution or linear layer, 0 for others.
        inputs: Its input channels.
    """

    macs: float = 0.0
    bytes: float = 0.0
    outputs: int = 0
    inputs: int = 0

    @property
    def intensity(self) -> float:
        """Multiply-accumulates per byte."""
        return self.macs / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class LayerGain:
    """One module before and after.

    Attributes:
        layer: Its path; empty for what no module asked for.
        before: Its work in the dense model.
        after: Its work in the pruned model.
        before_ms: Its time in the dense model.
        after_ms: Its time in the pruned model.
        kernels: What runs for it in the pruned model.
        reason: Why its time fell by less than its work; empty where it did not, where that hardly matters, and where
            a second measurement might say otherwise.
    """

    layer: str
    before: Work
    after: Work
    before_ms: float
    after_ms: float
    kernels: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Gain:
    """The layers of a model before and after, and the limits of the machine.

    Attributes:
        layers: In the order in which they run.
        roofline: The limits that were measured beside them.
        runtime: What ran them.
        threads: Threads within an operator.
        batch: Batch size.
    """

    layers: tuple[LayerGain, ...]
    roofline: Roofline
    runtime: str
    threads: int
    batch: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def explain_gain(
    dense: tuple[Traced, ExportReport],
    pruned: tuple[Traced, ExportReport],
    *,
    step: int = 1,
    runtime: str = "onnxruntime-cpu",
    threads: int = 1,
    batch: int = 1,
    seconds: float = 3.0,
) -> Gain:
    """Profile a dense and a pruned file side by side, and explain each layer.

    Args:
        dense: The model as it is served, and what was exported from it.
        pruned: The same after pruning.
        step: Channels in steps of which the runtime works (:func:`fxprune.deploy.probe.probe` measures it).
        runtime: One with a profiler.
        threads: Threads within an operator.
        batch: Batch size that is served.
        seconds: Time for the profile, and again for the limits of the machine.

    Raises:
        InputError: The runtime records no time per node.
        EnvironmentProblem: The runtime is missing.
    """
    files = {"before": dense[1], "after": pruned[1]}
    times = layer_times(files, runtime=runtime, threads=threads, batch=batch, seconds=seconds)
    roofline = measure_roofline(runtime=runtime, threads=threads, seconds=seconds)
    work = {"before": work_by_module(dense[0], batch), "after": work_by_module(pruned[0], batch)}
    whole = sum(time.ms for time in times["before"].values())
    judge = _Judge(roofline, step, whole)
    order = dict.fromkeys([*times["before"], *times["after"], *work["before"]])
    rows = []
    for path in sorted(order, key=lambda path: path == OUTSIDE):
        pair = [(work[side].get(path, Work()), times[side].get(path, LayerTime(0.0, ()))) for side in files]
        (before, before_time), (after, after_time) = pair
        reason = judge.reason(before, after, before_time, after_time)
        rows.append(LayerGain(path, before, after, before_time.ms, after_time.ms, after_time.kernels, reason))
    return Gain(tuple(rows), roofline, runtime, threads, batch)


def work_by_module(traced: Traced, batch: int = 1) -> dict[str, Work]:
    """Return the work of every module that multiplies matrices, by its path."""
    macs: dict[str, float] = defaultdict(float)
    widths: dict[str, tuple[int, int]] = {}
    touched: dict[str, dict[fx.Node, float]] = defaultdict(dict)
    for product in products(traced):
        path = path_of(product.node)
        macs[path] += product.macs * batch
        touched[path][product.node] = _bytes(traced, product.node, batch)
        if product.node.op == "call_module" and len(product.sizes) > max(layer_widths(product)):
            outputs, inputs = layer_widths(product)
            widths[path] = product.sizes[outputs].size, product.sizes[inputs].size
    return {path: Work(macs[path], sum(touched[path].values()), *widths.get(path, (0, 0))) for path in macs}


def path_of(node: fx.Node) -> str:
    """Return the path of the module that a node belongs to."""
    return str(node.target) if node.op == "call_module" else str(node.meta.get("path", ""))


def _bytes(traced: Traced, node: fx.Node, batch: int) -> float:
    values = [node.meta.get("val"), *(source.meta.get("val") for source in node.all_input_nodes)]
    scale = batch / traced.batch
    moved = sum(prod(int(size) for size in value.shape) for value in values if isinstance(value, Tensor)) * scale
    if node.op == "call_module":
        moved += sum(parameter.numel() for parameter in traced.module.get_submodule(str(node.target)).parameters())
    return moved * _FLOAT


@dataclass(frozen=True)
class _Judge:
    roofline: Roofline
    step: int
    whole_ms: float

    def reason(self, before: Work, after: Work, before_time: LayerTime, after_time: LayerTime) -> str:
        """Say why a layer kept more of its time than of its work."""
        if not before.macs:
            lost = after_time.ms - before_time.ms
            grown = lost - hypot(before_time.scatter, after_time.scatter) > _SMALL * self.whole_ms
            return _inserted(before_time, after_time) if grown else ""
        if before.macs == after.macs:
            return ""
        kept = after.macs / before.macs
        promised = before_time.ms * kept
        lost = after_time.ms - promised - hypot(kept * before_time.scatter, after_time.scatter)
        if after_time.ms <= _SLACK * promised or lost < _SMALL * self.whole_ms:
            return ""
        for why in (self._off_step(before, after), _inserted(before_time, after_time), self._bound(after, after_time)):
            if why:
                return why
        return "no known cause: other kernels were chosen for these widths"

    def _off_step(self, before: Work, after: Work) -> str:
        for name, old, new in (("output", before.outputs, after.outputs), ("input", before.inputs, after.inputs)):
            if new % self.step and not old % self.step:
                return f"{new} {name} channels are no multiple of {self.step}, in which the runtime works"
        return ""

    def _bound(self, after: Work, time: LayerTime) -> str:
        if time.ms < _SHORT:
            return "too short: handing over costs more than the work"
        if after.bytes and after.intensity < self.roofline.ridge:
            return (
                f"memory-bound: {after.intensity:.1f} multiply-accumulates per byte, and this machine needs "
                f"{self.roofline.ridge:.1f} to be busy with arithmetic"
            )
        if 0 < min(after.outputs, after.inputs) < 2 * self.step:
            return f"{min(after.outputs, after.inputs)} channels are too few to fill the kernel's blocks of {self.step}"
        return ""


def _inserted(before: LayerTime, after: LayerTime) -> str:
    """Name the operators that run for the pruned layer and did not for the dense one."""
    new: Mapping[str, int] = {op: after.kernels.count(op) - before.kernels.count(op) for op in after.kernels}
    for kinds, what in ((_LAYOUT, "changes of layout were inserted"), (_LOOSE, "was not fused any more")):
        found = [op for op in new if op in kinds and new[op] > 0]
        if found:
            return f"{', '.join(found)}: {what}"
    return ""
