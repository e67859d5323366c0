"""How long a runtime takes for the layers of a model at other widths, measured on layers made for the purpose.

Every convolution and linear layer that a plan may narrow is built as an ONNX file of its own, at the shapes that it has
in the model, and timed at full and at half of its widths. Four times give what a layer takes at any widths
(:class:`~fxprune.planning.latency_table.Layer`); a staircase of widths gives the step in which the runtime works.
Results are cached by machine fingerprint, but for those of a machine that was busy.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fxprune.deploy.files import atomic_write
from fxprune.deploy.kernel_seconds import KernelTimes, kernel_seconds
from fxprune.deploy.layer_shapes import LayerShape
from fxprune.deploy.machine import machine
from fxprune.deploy.runtimes import DEFAULT_RUNTIME
from fxprune.planning.latency_table import Layer

BUSY = 0.1
"""Share of its time that a process waits on a machine with other work: times of short kernels are not to be trusted."""

STEPS = (1, 2, 4, 8, 16, 32, 64)


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
    """The measured layers of a model.

    Attributes:
        seconds: Times by shape.
        step: Widths cost what the next multiple of this costs.
        runtime: Where they were measured.
        fresh: How many were measured now; the others come from the cache.
        waited: Share of the time that the process waited for other work while it measured. From ``BUSY`` on what is
            fresh was not kept.
    """

    seconds: dict[LayerShape, float]
    step: int
    runtime: str
    fresh: int
    waited: float = 0.0

    @property
    def doubt(self) -> str:
        """What is to be said of the times, empty where there is nothing."""
        if not self.fresh or self.waited < BUSY:
            return ""
        return (
            f"the machine was busy while layers were timed ({self.waited:.0%} of the time was spent waiting): "
            "the times are used now and not kept for later"
        )

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
    measure: Callable[..., KernelTimes] = kernel_seconds,
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
    fresh, waited = 0, 0.0
    dense = [shape for shape in wanted if shape.kind == "conv" and not shape.depthwise] or wanted
    if step is None and dense:
        stairs = staircase(max(dense, key=lambda s: s.outputs * s.inputs))
        found = measure(stairs, runtime=runtime, threads=threads)
        step = find_step(np.array([s.outputs for s in stairs]), np.array([found.seconds[s] for s in stairs]))
        fresh, waited = len(stairs), found.waited
    step = step or 1
    missing = [p for shape in wanted for p in widths_to_probe(shape, step) if p not in known]
    if missing:
        found = measure(missing, runtime=runtime, threads=threads)
        known |= found.seconds
        fresh, waited = fresh + len(dict.fromkeys(missing)), max(waited, found.waited)
    if fresh and waited < BUSY:
        _write(path, known, step)
    return Probes(known, step, runtime, fresh, waited)


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
