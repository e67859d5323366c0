"""How long a runtime takes for the layers of a model at other widths, measured on layers made for the purpose.

Every convolution and linear layer that a plan may narrow is built as an ONNX file of its own, at the shapes that it has
in the model, and timed at full and at half of its widths. Four times give what a layer takes at any widths
(:class:`~fxprune.planning.latency_table.Layer`); a staircase of widths gives the step in which the runtime works.
Results are cached by machine fingerprint.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.optimize import nnls
from torch import nn

from fxprune.capture import Traced, trace
from fxprune.deploy.files import atomic_write
from fxprune.deploy.machine import machine
from fxprune.deploy.runtimes import DEFAULT_RUNTIME, Runtime, get_runtime, random_feeds
from fxprune.deploy.runtimes.torch_runtime import TorchRuntime
from fxprune.errors import EnvironmentProblem
from fxprune.planning.cost import Product, products
from fxprune.planning.latency_table import Layer

STEPS = (1, 2, 4, 8, 16, 32, 64)
_ROUNDS = 12
_QUANTILE = 0.25  # other work only ever adds time, so what is low is nearer to the truth than the middle
_OPSET = 18
_AT_ONCE = 64
_PRODUCTS = {"Conv", "MatMul", "FusedConv", "Gemm", "FusedMatMul", "NhwcConv", "NhwcFusedConv"}
_PRODUCTS |= {"Convolution", "GroupConvolution", "FullyConnected"}  # in OpenVINO


@dataclass(frozen=True)
class LayerShape:
    """One layer as the runtime sees it.

    Attributes:
        kind: ``conv`` or ``linear``.
        outputs: Output channels.
        inputs: Input channels, of all groups.
        groups: Groups of a convolution.
        kernel: Its kernel; empty for a linear layer.
        stride: Its stride.
        padding: Its padding, at both ends of each dimension.
        dilation: Its dilation.
        rows: Sizes of the input without channels: the batch and space of a convolution, all but the last of a linear
            layer.
    """

    kind: str
    outputs: int
    inputs: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved alone, so that only one width counts."""
        return self.groups > 1

    def resized(self, outputs: int, inputs: int) -> LayerShape:
        """Return the layer with other widths; a grouped one keeps the channels of a group and loses groups."""
        if not self.depthwise:
            return replace(self, outputs=outputs, inputs=inputs)
        groups = max(1, round(self.groups * outputs / self.outputs))
        return replace(
            self,
            outputs=self.outputs // self.groups * groups,
            inputs=self.inputs // self.groups * groups,
            groups=groups,
        )

    def layer(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Return the layer in torch, without a bias, and the sizes of its input."""
        if self.kind == "linear":
            return nn.Linear(self.inputs, self.outputs, bias=False).eval(), (*self.rows, self.inputs)
        kinds: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        layer = kinds[len(self.kernel)](self.inputs, self.outputs, self.kernel, **options, bias=False)
        return layer.eval(), (self.rows[0], self.inputs, *self.rows[1:])

    def model(self) -> onnx.ModelProto:
        """Return an ONNX file that holds just this layer."""
        generator = np.random.default_rng(0)
        if self.kind == "conv":
            weight = generator.standard_normal((self.outputs, self.inputs // self.groups, *self.kernel))
            shape = [self.rows[0], self.inputs, *self.rows[1:]]
            node = helper.make_node(
                "Conv",
                ["x", "w"],
                ["y"],
                group=self.groups,
                strides=self.stride,
                pads=[*self.padding, *self.padding],
                dilations=self.dilation,
            )
        else:
            weight = generator.standard_normal((self.inputs, self.outputs))
            shape = [*self.rows, self.inputs]
            node = helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array((weight * 0.05).astype(np.float32), "w")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)


def shape_of_layer(traced: Traced, product: Product, batch: int) -> LayerShape | None:
    """Return the shape of a product's layer; None where it is no convolution or linear layer with a zero padding."""
    node = product.node
    if node.op != "call_module":
        return None
    layer: Any = traced.module.get_submodule(str(node.target))
    source: Any = node.args[0]
    sizes = [int(size) for size in source.meta["val"].shape]
    rows = [batch if size == traced.batch and d == 0 else size for d, size in enumerate(sizes)]
    if isinstance(layer, nn.Linear):
        return LayerShape("linear", layer.out_features, layer.in_features, 1, (), (), (), (), tuple(rows[:-1]))
    plain = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and len(sizes) == 2 + len(layer.kernel_size)
    if not plain or layer.padding_mode != "zeros":
        return None
    padding = tuple(layer._reversed_padding_repeated_twice[::-2])
    return LayerShape(
        "conv",
        layer.out_channels,
        layer.in_channels,
        layer.groups,
        tuple(layer.kernel_size),
        tuple(layer.stride),
        padding,
        tuple(layer.dilation),
        (rows[0], *rows[2:]),
    )


def layer_shapes(traced: Traced, batch: int) -> dict[str, LayerShape]:
    """Return the shape of every layer that can be probed, by node name."""
    found = {}
    for product in products(traced):
        shape = shape_of_layer(traced, product, batch)
        if shape is not None:
            found[product.node.name] = shape
    return found


# ---------------------------------------------------------------- timing


def kernel_seconds(
    shapes: Iterable[LayerShape], *, runtime: str = DEFAULT_RUNTIME, threads: int = 1
) -> dict[LayerShape, float]:
    """Return how long a runtime's kernel takes for each layer, in seconds; the order is shuffled each round.

    Where the runtime has a profiler the time is that of the node in its profile: what is spent on handing over and on
    reordering the layer's input, which in a model its neighbours share, is left out. torch has none that is free of
    cost, and is timed by the call.
    """
    wanted, runners = list(dict.fromkeys(shapes)), dict[LayerShape, _Profiled | _Called]()
    found, chosen = dict[LayerShape, float](), get_runtime(runtime)
    kind = _Called if isinstance(chosen, TorchRuntime) else _Profiled
    with tempfile.TemporaryDirectory(prefix="fxprune-probe-") as folder:
        for number in range(0, len(wanted), _AT_ONCE):
            order = wanted[number : number + _AT_ONCE]
            runners = {shape: kind(shape, Path(folder), chosen, threads) for shape in order}
            shuffle = random.Random(0).shuffle
            for _ in range(_ROUNDS):
                shuffle(order)
                for shape in order:
                    runners[shape].run()
            found |= {shape: runner.seconds() for shape, runner in runners.items()}
    return found


class _Profiled:
    """A session of one layer that keeps a profile.

    A profile has wall time. What the process waited for other work on the machine, which is the wall time of a call
    less its CPU time, is taken off where there is one thread; nearly all of a call is its one kernel.
    """

    def __init__(self, shape: LayerShape, folder: Path, runtime: Runtime, threads: int) -> None:
        path = folder / "layer.onnx"
        onnx.save(shape.model(), path)
        self._session = runtime.load(path, threads, profile=True)
        self._feeds = random_feeds(self._session.inputs)
        self._cpu_decides = runtime.clock(threads) == "cpu"
        self._waited: list[float] = []
        self.run()

    def run(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self._session.run(self._feeds)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self._waited.append(max(0.0, wall - cpu) if self._cpu_decides else 0.0)

    def seconds(self) -> float:
        times = [event.microseconds / 1e6 for event in self._session.profile() if event.op in _PRODUCTS]
        self._session.close()
        if not times:
            raise EnvironmentProblem("the runtime's profile has neither convolution nor product: no layer can be timed")
        if len(times) != len(self._waited):  # split into several kernels, or run several times a call
            return float(np.quantile(times, _QUANTILE)) * len(times) / len(self._waited)
        least = 0.1 * min(times)  # the two clocks do not tick at the same moments
        own = [max(least, spent - waited) for spent, waited in zip(times, self._waited, strict=True)]
        return float(np.quantile(own[1:], _QUANTILE))


class _Called:
    """A layer in torch, timed by the call; the fastest quarter has the least of other work in it."""

    def __init__(self, shape: LayerShape, folder: Path, runtime: Runtime, threads: int) -> None:
        layer, sizes = shape.layer()
        self._session = runtime.load(trace(layer, torch.zeros(sizes), dynamic_batch=False), threads)
        self._call = self._session.prepare(random_feeds(self._session.inputs))
        self._clock = time.process_time if runtime.clock(threads) == "cpu" else time.perf_counter
        self._times: list[float] = []
        self._call()

    def run(self) -> None:
        start = self._clock()
        self._call()
        self._times.append(self._clock() - start)

    def seconds(self) -> float:
        self._session.close()
        return float(np.quantile(self._times, _QUANTILE))


# ---------------------------------------------------------------- the curve of a layer


def _half(width: int, step: int) -> int:
    """Return half a width in whole steps; what has no two steps stays, as off the step other kernels run."""
    return width // 2 // step * step if width >= 2 * step else width


def widths_to_probe(shape: LayerShape, step: int) -> list[LayerShape]:
    """Return the layer at full and half widths: four of a dense layer, two of a grouped one."""
    outputs, inputs = _half(shape.outputs, step), _half(shape.inputs, step)
    if shape.depthwise:
        return list(dict.fromkeys([shape, shape.resized(outputs, inputs)]))
    pairs = itertools.product((shape.outputs, outputs), (shape.inputs, inputs))
    return list(dict.fromkeys(shape.resized(*pair) for pair in pairs))


def fit_layer(shape: LayerShape, seconds: dict[LayerShape, float], step: int) -> Layer:
    """Fit the curve of a layer to its measured times; no coefficient is negative, as no width saves time."""
    points = [probe for probe in widths_to_probe(shape, step) if probe in seconds]
    a = np.array([_ceil(probe.outputs, step) for probe in points], np.float64)
    b = np.array([_ceil(probe.inputs, step) for probe in points], np.float64)
    ms = np.array([seconds[probe] * 1e3 for probe in points])
    one = np.ones(len(points))
    columns = [one, a] if shape.depthwise else [one, a, b, a * b]
    matrix = np.stack(columns, 1) / ms[:, None]  # relative errors count, so that the narrow layer counts too
    scale = matrix.max(axis=0)
    found, _ = nnls(matrix / scale, np.ones(len(points)))
    found = found / scale
    return Layer(*(float(value) for value in found))


def _ceil(width: int, step: int) -> int:
    return -(-width // step) * step


# ---------------------------------------------------------------- the step of the runtime


def staircase(shape: LayerShape, span: int = 32) -> list[LayerShape]:
    """Return a layer with every output width from ``span`` below its own (a multiple of 32 up to 96) to its own."""
    top = max(64, min(96, shape.outputs // 32 * 32))
    return [replace(shape, outputs=width) for width in range(top - span, top + 1)]


def find_step(widths: NDArray[np.int64], seconds: NDArray[np.float64]) -> int:
    """Return the step in which time grows with width: the one whose staircase explains the times best.

    For each candidate the time is fitted as a line in the width rounded up to it; a coarser step has to explain clearly
    more than a finer one, because it gives away freedom in choosing widths.
    """
    best, step, unseen = np.inf, 1, 1e-4 * float(np.abs(seconds).mean())
    for candidate in STEPS:
        blocked = -(-widths // candidate) * candidate
        if len(np.unique(blocked)) < 2:
            break
        matrix = np.stack([np.ones(len(widths)), blocked.astype(np.float64)], 1)
        solution, *_ = np.linalg.lstsq(matrix, seconds, rcond=None)
        error = max(unseen, float(np.abs(matrix @ solution - seconds).mean()))
        if error < 0.9 * best:
            best, step = error, candidate
    return step


# ---------------------------------------------------------------- all of it, cached


@dataclass(frozen=True)
class Probes:
    """The measured layers of a model: times by shape, and the step."""

    seconds: dict[LayerShape, float]
    step: int
    runtime: str
    fresh: int

    def layer(self, shape: LayerShape) -> Layer:
        """Return the curve of one layer."""
        return fit_layer(shape, self.seconds, self.step)

    def half_of(self, shape: LayerShape) -> LayerShape:
        """Return the narrowest of the widths at which a layer was timed: half of each, in whole steps."""
        return widths_to_probe(shape, self.step)[-1]


def probe(
    shapes: Iterable[LayerShape],
    *,
    runtime: str = DEFAULT_RUNTIME,
    threads: int = 1,
    cache: Path | None = None,
    measure: Callable[..., dict[LayerShape, float]] = kernel_seconds,
) -> Probes:
    """Measure layers at the widths that their curves need; what is in the cache is not measured again.

    Args:
        shapes: Layers at full width.
        runtime: Where to measure.
        threads: Threads within an operator.
        cache: Folder of results, one file per machine, runtime and number of threads; None takes the user's.
        measure: What times the layers.
    """
    wanted = list(dict.fromkeys(shapes))
    path = cache_file(runtime, threads, cache)
    known, step = _read(path)
    fresh = 0
    dense = [shape for shape in wanted if shape.kind == "conv" and not shape.depthwise] or wanted
    if step is None and dense:
        stairs = staircase(max(dense, key=lambda s: s.outputs * s.inputs))
        times = measure(stairs, runtime=runtime, threads=threads)
        step = find_step(np.array([s.outputs for s in stairs]), np.array([times[s] for s in stairs]))
        fresh += len(stairs)
    step = step or 1
    missing = [p for shape in wanted for p in widths_to_probe(shape, step) if p not in known]
    if missing:
        known |= measure(missing, runtime=runtime, threads=threads)
        fresh += len(dict.fromkeys(missing))
    if fresh:
        _write(path, known, step)
    return Probes(known, step, runtime, fresh)


def default_cache() -> Path:
    """Return the folder in which measured layers are kept: ``FXPRUNE_CACHE``, or the user's cache folder."""
    given = os.environ.get("FXPRUNE_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxprune"
    return base / "probes"


def cache_file(runtime: str, threads: int, cache: Path | None = None) -> Path:
    """Return the file in which timings of this machine, runtime and number of threads are kept."""
    return (cache or default_cache()) / f"{machine()['fingerprint']}-{runtime}-{threads}.json"


def known_step(runtime: str = DEFAULT_RUNTIME, threads: int = 1, cache: Path | None = None) -> int | None:
    """Return the step of widths in the cache, None where nothing was measured yet."""
    return _read(cache_file(runtime, threads, cache))[1]


def _read(path: Path) -> tuple[dict[LayerShape, float], int | None]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {_shape(entry["shape"]): float(entry["seconds"]) for entry in values["layers"]}
        return known, int(values["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, None  # a cache that is missing or damaged is measured anew


def _shape(entry: dict[str, Any]) -> LayerShape:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return LayerShape(**values)


def _write(path: Path, known: dict[LayerShape, float], step: int) -> None:
    layers = [{"shape": asdict(shape), "seconds": seconds} for shape, seconds in known.items()]
    values = {"schema": 1, "step": step, "measured": time.strftime("%Y-%m-%d"), "layers": layers}
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        temporary.write_text(json.dumps(values), encoding="utf-8")

    atomic_write(path, write)


__all__ = ["LayerShape", "Probes", "find_step", "kernel_seconds", "layer_shapes", "probe"]
