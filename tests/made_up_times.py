"""Times that are made up, for what is decided by measuring: they follow from the work of a model and from a seed.

What measures stays as it is, and so do the runtimes; only the clocks that it reads are others. They stand still but for
what the models do that are run, so that nothing else on the machine can be seen in a measurement.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from fxprune.deploy import interleave
from fxprune.deploy.figures import file_figures

RATE = 1e10  # multiply-accumulates per second
STEP = 8  # channels that a layer alone takes no less time for than for all of them
Set = Callable[[object, str, object], object]


class Clock:
    """Stands for the module ``time``; each piece of work takes its time, give or take some."""

    def __init__(self, scatter: float, seed: int) -> None:
        self._scatter, self._random = scatter, random.Random(seed)
        self._now = 1.0

    def spend(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds * self._random.lognormvariate(0, self._scatter)

    def perf_counter(self) -> float:
        """Return the seconds since some moment."""
        return self._now

    def perf_counter_ns(self) -> int:
        """Return them in nanoseconds."""
        return round(self._now * 1e9)

    process_time_ns = perf_counter_ns  # no process but this one


class _Session:
    def __init__(self, session: Any, clock: Clock, seconds: float) -> None:
        self._session, self._clock, self._seconds = session, clock, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feeds: Mapping[str, Any]) -> Any:
        self._spend(feeds)
        return self._session.run(feeds)

    def prepare(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        call = iter([self._session.prepare(feeds)])

        def infer() -> None:
            next(call, lambda: None)()  # once for real: it may fail
            self._spend(feeds)

        return infer

    def _spend(self, feeds: Mapping[str, Any]) -> None:
        self._clock.spend(self._seconds * len(next(iter(feeds.values()))))


class _Runtime:
    def __init__(self, runtime: Any, clock: Clock) -> None:
        self._runtime, self._clock = runtime, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def load(self, model: Any, threads: int = 1, profile: bool = False) -> _Session:
        return _Session(self._runtime.load(model, threads, profile), self._clock, seconds_of(model))


def seconds_of(model: Any) -> float:
    """Return what one sample takes: a microsecond, and the multiply-accumulates at their rate.

    In a file of open sizes each weight counts for a hundred of them.
    """
    if isinstance(model, (str, Path)):
        figures = file_figures(model)
        return 1e-6 + (100 * figures.params if figures.macs is None else figures.macs) / RATE
    from fxprune.planning import count  # a gate works without torch

    return 1e-6 + count(model).macs / RATE


def layer_seconds(shapes: Any, runtime: str = "", threads: int = 1) -> Any:
    """Return what layers take alone, as :func:`fxprune.deploy.kernel_seconds.kernel_seconds` measures it."""
    from fxprune.deploy.kernel_seconds import KernelTimes

    products = {shape: _outputs(shape) * shape.inputs / shape.groups * _taps(shape) for shape in shapes}
    return KernelTimes({shape: 1e-6 + product / RATE for shape, product in products.items()}, waited=0.0)


def _outputs(shape: Any) -> int:
    return -(-shape.outputs // STEP) * STEP


def _taps(shape: Any) -> float:
    """Return how often each weight is used, for layers that keep the size of their input."""
    taps = 1.0
    for size in (*shape.kernel, *shape.rows):
        taps *= size
    for stride in shape.stride:
        taps /= stride
    return taps


def install(scatter: float = 0.01, seed: int = 0, put: Set = setattr) -> Clock:
    """Put the clock in place of that of the machine, wherever models are measured in turns."""
    clock = Clock(scatter, seed)
    real = interleave.get_runtime
    put(interleave, "time", clock)
    put(interleave, "get_runtime", lambda name: _Runtime(real(name), clock))
    return clock


@contextlib.contextmanager
def made_up(scatter: float = 0.01, seed: int = 0) -> Iterator[Clock]:
    """Measure by the clock above within the block, layers alone too, which are kept nowhere.

    Args:
        scatter: By what share single times lie off, on average.
        seed: Of the scatter.
    """
    from fxprune.deploy import latency_budget

    with contextlib.ExitStack() as stack:

        def put(where: object, name: str, value: object) -> None:
            stack.enter_context(patch.object(where, name, value))

        stack.enter_context(patch.dict(os.environ, FXPRUNE_CACHE=stack.enter_context(TemporaryDirectory())))
        put(latency_budget, "probe", functools.partial(latency_budget.probe, measure=layer_seconds))
        yield install(scatter, seed, put)
