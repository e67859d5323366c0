"""Running several models in turns in one process, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fxprune.deploy.pinning import pinned
from fxprune.deploy.runtimes import DEFAULT_RUNTIME, Clock, Model, Session, get_runtime, random_feeds
from fxprune.distance import is_finite
from fxprune.errors import InputError, VerifyError

_WARM_UP_SHARE = 0.2  # of the time there is
_WARM_UP_SECONDS = 2.0
_WARM_UP_RUNS = 5
_STEADY = 0.95  # the last few runs take at least this share of the few before them


@dataclass(frozen=True)
class Samples:
    """Raw times of one model, in milliseconds, one per round; rounds are pairs across models."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def on(self, clock: Clock) -> list[float]:
        """Return the times on one clock."""
        return self.cpu_ms if clock == "cpu" else self.wall_ms

    def cut(self, rounds: int) -> None:
        """Drop what is beyond so many rounds: an interrupt falls into the middle of one."""
        del self.wall_ms[rounds:], self.cpu_ms[rounds:]


Enough = Callable[[Mapping[str, Samples]], bool]
Inspect = Callable[[Mapping[str, Session]], None]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        runtime: Name of the runtime.
        threads: Threads within an operator; they sleep while they wait.
        batch: Batch size, where it is dynamic.
        seconds: Time at most, warm-up included; at least ``min_rounds`` rounds are run whatever they take.
        min_seconds: Time at least, where there is that much, however soon there is enough.
        min_rounds: Fewest rounds.
        max_rounds: Most rounds.
        sizes: Sizes of other dynamic dimensions than the batch, by name.
        seed: Seed of inputs, order and resampling.
        pin: Keep to as many cores as there are threads, where the system allows it.
        keep_interrupted: End at Ctrl-C with what there is, instead of raising.
        same_inputs: Whether models that take different inputs are refused.

    Raises:
        InputError: A value is out of range.
    """

    runtime: str = DEFAULT_RUNTIME
    threads: int = 1
    batch: int = 1
    seconds: float = 10.0
    min_rounds: int = 20
    max_rounds: int = 5000
    sizes: Mapping[str, int] | None = None
    seed: int = 0
    pin: bool = False
    keep_interrupted: bool = False
    min_seconds: float = 0.0
    same_inputs: bool = True

    def __post_init__(self) -> None:
        if self.threads < 1 or self.batch < 1 or not self.seconds > 0:
            raise InputError(
                f"threads, batch and seconds must be positive, not {self.threads}, {self.batch} and {self.seconds:g}"
            )
        if not self.min_seconds >= 0:
            raise InputError(f"min_seconds must be zero or more, not {self.min_seconds:g}")
        if not 2 <= self.min_rounds <= self.max_rounds:
            raise InputError(
                f"rounds must be from 2 up and the fewest ({self.min_rounds}) no more than the most "
                f"({self.max_rounds}): one round says nothing of how times scatter"
            )

    @property
    def clock(self) -> Clock:
        """Which clock decides on this runtime."""
        return get_runtime(self.runtime).clock(self.threads)


@dataclass(frozen=True)
class Interleaved:
    """What was measured.

    Attributes:
        samples: Raw times by model.
        first_ms: Wall time of the first run of each model, which may compile or build an engine.
        warm_up: Runs of each model before measuring.
        steady: Whether times had stopped falling when measuring began.
        seconds: Wall time of the rounds.
        inference_seconds: Wall time within the models, warm-up included.
        inference_cpu_seconds: CPU time of the process within the models, but for each one's first run.
        interrupted: Whether it was ended by Ctrl-C.
        notes: What a reader of the times should know.
    """

    samples: Mapping[str, Samples]
    first_ms: Mapping[str, float]
    warm_up: int
    steady: bool
    seconds: float
    inference_seconds: float
    inference_cpu_seconds: float
    interrupted: bool
    notes: tuple[str, ...]


def interleave(
    models: Mapping[str, Model], settings: Settings, enough: Enough, inspect: Inspect | None = None
) -> Interleaved:
    """Load the models and run each once per round, in an order drawn anew each time, until there is enough.

    Args:
        models: What the runtime takes, by name. One model may be there twice: it is loaded twice.
        settings: How to measure.
        enough: Told the samples now and then; says whether to stop.
        inspect: Given the loaded models before they are timed: loading a large one again would cost more than it.

    Raises:
        InputError: A model cannot be loaded, or they take different inputs.
        VerifyError: A model loads but does not run on random inputs.
        EnvironmentProblem: The runtime is missing, or would run nodes elsewhere than it was asked to.
        KeyboardInterrupt: Ctrl-C, before there are two rounds or where it is not to be kept.
    """
    with pinned(settings.threads, settings.pin) as notes, contextlib.ExitStack() as stack:
        sessions = {}
        for name, model in models.items():
            sessions[name] = get_runtime(settings.runtime).load(model, settings.threads)
            stack.callback(sessions[name].close)
        if settings.same_inputs:
            _check_same_inputs(sessions)
        if inspect is not None:
            inspect(sessions)
        arms, first_ms = {}, {}
        for name, session in sessions.items():
            arms[name], first_ms[name], note = _runner(name, session, settings)
            notes += note
        return _measure(arms, settings, enough, first_ms, notes)


def _measure(
    arms: Mapping[str, Callable[[], None]],
    settings: Settings,
    enough: Enough,
    first_ms: Mapping[str, float],
    notes: list[str],
) -> Interleaved:
    start = time.perf_counter()
    warm, steady = _warm_up(arms, settings)
    begin = time.perf_counter()
    samples = {arm: Samples() for arm in arms}
    interrupted = False
    try:
        _rounds(arms, samples, settings, enough, start)
    except KeyboardInterrupt:
        done = min(len(sample.cpu_ms) for sample in samples.values())  # written after wall_ms
        if not settings.keep_interrupted or done < 2:
            raise
        interrupted = True
        for sample in samples.values():
            sample.cut(done)
    if not steady:
        notes.append("times were still falling when measuring began: measure for longer")
    spent = [sample for group in (samples, warm) for sample in group.values()]
    return Interleaved(
        samples,
        first_ms,
        len(next(iter(warm.values())).wall_ms),
        steady,
        time.perf_counter() - begin,
        (sum(first_ms.values()) + sum(sum(sample.wall_ms) for sample in spent)) / 1e3,
        sum(sum(sample.cpu_ms) for sample in spent) / 1e3,
        interrupted,
        tuple(notes),
    )


def _check_same_inputs(sessions: Mapping[str, Session]) -> None:
    """Compare what matters for feeding them alike; names may differ."""
    (first, reference), *others = (
        (name, [(str(s.dtype), [size if isinstance(size, int) else "?" for size in s.shape]) for s in session.inputs])
        for name, session in sessions.items()
    )
    for name, inputs in others:
        if inputs != reference:
            raise InputError(
                f"{first} and {name} take different inputs and cannot be compared: {reference} against {inputs}"
            )


def _runner(name: str, session: Session, settings: Settings) -> tuple[Callable[[], None], float, list[str]]:
    feeds = random_feeds(session.inputs, batch=settings.batch, seed=settings.seed, sizes=settings.sizes)
    begin = time.perf_counter()
    try:
        outputs = session.run(feeds)
        first_ms = (time.perf_counter() - begin) * 1e3
        infer = session.prepare(feeds)
        infer()
    except Exception as error:  # runtimes' own classes are private to them
        raise VerifyError(f"{name} does not run on random inputs: {error}") from error
    bad = [key for key, value in outputs.items() if not is_finite(value)]
    return infer, first_ms, [f"{name}: output {key} has NaN or infinity on random inputs" for key in bad]


def _warm_up(arms: Mapping[str, Callable[[], None]], settings: Settings) -> tuple[dict[str, Samples], bool]:
    """Run in turns until no model gets faster any more, or a part of the time is up."""
    samples = {arm: Samples() for arm in arms}
    begin = time.perf_counter()
    limit = min(_WARM_UP_SECONDS, _WARM_UP_SHARE * settings.seconds)
    steady = False
    while not steady and time.perf_counter() - begin < limit:
        for arm, run in arms.items():
            timed(run, samples[arm])
        enough = time.perf_counter() - begin > 0.1 * limit
        steady = enough and all(_is_steady(sample.on(settings.clock)) for sample in samples.values())
    return samples, steady


def _is_steady(times: list[float]) -> bool:
    last, before = times[-_WARM_UP_RUNS:], times[-2 * _WARM_UP_RUNS : -_WARM_UP_RUNS]
    return len(before) == _WARM_UP_RUNS and bool(np.median(last) > _STEADY * np.median(before))


def _rounds(
    arms: Mapping[str, Callable[[], None]],
    samples: Mapping[str, Samples],
    settings: Settings,
    enough: Enough,
    start: float,
) -> None:
    order = list(arms)
    shuffle = random.Random(settings.seed).shuffle
    check_at = settings.min_rounds
    for done in range(1, settings.max_rounds + 1):
        shuffle(order)
        for arm in order:
            timed(arms[arm], samples[arm])
        if done < settings.min_rounds:
            continue
        spent = time.perf_counter() - start
        if spent >= settings.seconds:
            return
        if done >= check_at and spent >= settings.min_seconds:
            if enough(samples):
                return
            check_at = done + max(done // 8, 1)  # ever rarer: the statistics cost time too


def timed(run: Callable[[], None], samples: Samples) -> None:
    """Run once and append what it took on both clocks."""
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    run()
    wall_end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
    samples.wall_ms.append(max(wall_end - wall, 1) / 1e6)
    samples.cpu_ms.append(max(cpu_end - cpu, 1) / 1e6)
