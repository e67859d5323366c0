"""How long a runtime's kernel takes for single layers: by its profile, or by the call."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from fxprune.capture import trace
from fxprune.deploy.layer_shapes import LayerShape
from fxprune.deploy.runtimes import DEFAULT_RUNTIME, Runtime, get_runtime, random_feeds
from fxprune.deploy.runtimes.torch_runtime import TorchRuntime
from fxprune.errors import EnvironmentProblem

_LEAST_ROUNDS, _MOST_ROUNDS = 12, 100
_SECONDS = 1.0  # of rounds at most beyond the least number: short kernels need many
_QUANTILE = 0.25  # other work only ever adds time, so what is low is nearer to the truth than the middle
_AT_ONCE = 64
_PRODUCTS = {"Conv", "MatMul", "FusedConv", "Gemm", "FusedMatMul", "NhwcConv", "NhwcFusedConv"}
_PRODUCTS |= {"Convolution", "GroupConvolution", "FullyConnected"}  # in OpenVINO


@dataclass(frozen=True)
class KernelTimes:
    """What was measured.

    Attributes:
        seconds: Time of each layer's kernel.
        waited: Share of the time in which the process waited for other work on the machine; 0 where several threads
            make that impossible to tell.
    """

    seconds: dict[LayerShape, float]
    waited: float


def kernel_seconds(shapes: Iterable[LayerShape], *, runtime: str = DEFAULT_RUNTIME, threads: int = 1) -> KernelTimes:
    """Return how long a runtime's kernel takes for each layer; the order is shuffled each round.

    Where the runtime has a profiler the time is that of the node in its profile: what is spent on handing over and on
    reordering the layer's input, which in a model its neighbours share, is left out. torch has none that is free of
    cost, and is timed by the call.
    """
    wanted, chosen = list(dict.fromkeys(shapes)), get_runtime(runtime)
    kind = _Called if isinstance(chosen, TorchRuntime) else _Profiled
    found, clocks = dict[LayerShape, float](), _Clocks()
    with tempfile.TemporaryDirectory(prefix="fxprune-probe-") as folder:
        for number in range(0, len(wanted), _AT_ONCE):
            order = wanted[number : number + _AT_ONCE]
            runners = {shape: kind(shape, Path(folder), chosen, threads) for shape in order}
            _run(runners, clocks)
            found |= {shape: runner.seconds() for shape, runner in runners.items()}
    return KernelTimes(found, clocks.waited_share if chosen.clock(threads) == "cpu" else 0.0)


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU time of a call; reading a clock counts as CPU time, so that it is not taken for waiting."""
    cpu = time.process_time()
    wall = time.perf_counter()
    call()
    wall = time.perf_counter() - wall
    return wall, time.process_time() - cpu


class _Clocks:
    """The wall time and the CPU time of calls."""

    def __init__(self) -> None:
        self.wall, self.cpu = 0.0, 0.0

    @property
    def waited_share(self) -> float:
        return max(0.0, 1 - self.cpu / self.wall) if self.wall else 0.0


def _run(runners: Mapping[LayerShape, _Profiled | _Called], clocks: _Clocks) -> None:
    """Run all in turns, the least number of rounds and then for a while."""
    order, shuffle, end = list(runners), random.Random(0).shuffle, time.monotonic() + _SECONDS
    for number in range(_MOST_ROUNDS):
        if number >= _LEAST_ROUNDS and time.monotonic() > end:
            break
        shuffle(order)
        for shape in order:
            wall, cpu = runners[shape].run()
            clocks.wall, clocks.cpu = clocks.wall + wall, clocks.cpu + cpu


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

    def run(self) -> tuple[float, float]:
        wall, cpu = _timed(lambda: self._session.run(self._feeds))
        self._waited.append(max(0.0, wall - cpu) if self._cpu_decides else 0.0)
        return wall, cpu

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
        self._cpu_decides = runtime.clock(threads) == "cpu"
        self._times: list[float] = []
        self._call()

    def run(self) -> tuple[float, float]:
        wall, cpu = _timed(self._call)
        self._times.append(cpu if self._cpu_decides else wall)
        return wall, cpu

    def seconds(self) -> float:
        self._session.close()
        return float(np.quantile(self._times, _QUANTILE))
