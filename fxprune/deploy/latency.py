"""How much faster is the candidate than the baseline? A ratio with an interval, measured side by side.

Both files are loaded into one process and run in random order, so that what else the machine does hits both alike. A
second session of the baseline runs along as a control: its ratio to the first must be one, or the machine is too noisy
for any verdict.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from fxprune.deploy.machine import machine
from fxprune.deploy.runtimes import DEFAULT_RUNTIME, Session, get_runtime, random_feeds
from fxprune.deploy.statistics import Estimate, paired_ratio
from fxprune.errors import InputError, VerifyError

Clock = Literal["cpu", "wall"]
Verdict = Literal["pass", "fail", "inconclusive"]

CONTROL_SLACK = 0.01
"""How far the control's interval may stay away from one."""

_WARM_UP_SECONDS = 2.0
_WARM_UP_RUNS = 5


@dataclass(frozen=True)
class Samples:
    """Raw times of one model, in milliseconds, one per round; rounds are pairs across models."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def on(self, clock: Clock) -> list[float]:
        """Return the times on one clock."""
        return self.cpu_ms if clock == "cpu" else self.wall_ms


@dataclass(frozen=True)
class Latency:
    """A measured ratio of candidate to baseline; below one is faster.

    Attributes:
        runtime: The runtime that ran the files.
        threads: Threads within an operator.
        batch: Batch size of the inputs.
        clock: What decides: with one thread CPU time of the process, in which waiting for a busy machine does not
            count; with more, wall time.
        dense_ms: Median time of the baseline on that clock, in milliseconds.
        pruned_ms: Median time of the candidate.
        ratio: Median of the ratios of pairs, with the interval ``ratio_low`` to ``ratio_high`` at 95 %.
        wall: The same ratio in wall time.
        control: The ratio of the baseline to itself, on the deciding clock.
        rounds: Number of pairs.
        seconds: Time spent on measuring, without loading and warm-up.
        samples: Raw times by ``candidate``, ``baseline`` and ``control``, to redo the statistics with.
        machine: Where it was measured.
    """

    runtime: str
    threads: int
    batch: int
    clock: Clock
    dense_ms: float
    pruned_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    wall: Estimate
    control: Estimate
    rounds: int
    seconds: float
    samples: Mapping[str, Samples]
    machine: Mapping[str, Any]

    @property
    def control_holds(self) -> bool:
        """Whether the baseline is as fast as itself, give or take one per cent: the precondition of any verdict."""
        return self.control.low <= 1 + CONTROL_SLACK and self.control.high >= 1 - CONTROL_SLACK

    def verdict(self, max_ratio: float) -> Verdict:
        """Hold the whole interval against a limit; an interval that lies on both sides of it decides nothing."""
        if not self.control_holds:
            return "inconclusive"
        if self.ratio_high <= max_ratio:
            return "pass"
        return "fail" if self.ratio_low > max_ratio else "inconclusive"

    def to_dict(self, *, samples: bool = True) -> dict[str, Any]:
        """Return JSON-ready values, with or without the raw times."""
        values = asdict(self)
        if not samples:
            del values["samples"]
        return values


@dataclass(frozen=True)
class _Rules:
    """When to stop."""

    clock: Clock
    seconds: float
    min_rounds: int
    max_rounds: int
    precision: float
    limit: float | None
    seed: int

    def enough(self, samples: Mapping[str, Samples]) -> bool:
        """Whether the interval is narrow, or lies on one side of the limit where there is one.

        The side is judged at 99 %, because looking again and again finds a wrong side more often than looking once.
        """
        control = self.estimate(samples, "control")
        if self.limit is not None:
            sure = self.estimate(samples, "candidate", level=0.99)
            return sure.low > self.limit or sure.high <= self.limit
        return max(self.estimate(samples, "candidate").half_width, control.half_width) <= self.precision

    def estimate(self, samples: Mapping[str, Samples], arm: str, level: float = 0.95) -> Estimate:
        return paired_ratio(
            samples[arm].on(self.clock), samples["baseline"].on(self.clock), level=level, seed=self.seed
        )


def measure_latency(  # noqa: PLR0913  (options behind the star, each with a default)
    candidate_onnx: str | os.PathLike[str],
    baseline_onnx: str | os.PathLike[str],
    *,
    threads: int = 1,
    batch: int = 1,
    seconds: float = 10.0,
    min_rounds: int = 20,
    max_rounds: int = 5000,
    precision: float = 0.01,
    limit: float | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Latency:
    """Measure how long the candidate takes relative to the baseline, in onnxruntime on the CPU.

    Args:
        candidate_onnx: The file in question.
        baseline_onnx: The file to compare with; it must take the same inputs.
        threads: Threads within an operator. With one, CPU time decides; with more, wall time.
        batch: Batch size, where it is dynamic.
        seconds: Time to measure for at most, warm-up apart; at least ``min_rounds`` rounds are run whatever they take.
        min_rounds: Fewest rounds.
        max_rounds: Most rounds.
        precision: Stop when the intervals are this narrow: 0.01 is give or take one per cent.
        limit: A ratio to decide against: measuring stops when the interval lies on one side of it, however wide.
        sizes: Sizes of other dynamic dimensions than the batch, by name.
        seed: Seed of inputs, order and resampling.

    Raises:
        InputError: A file cannot be loaded, the two take different inputs, or an option is out of range.
        VerifyError: A file loads but does not run on its own inputs.
        EnvironmentProblem: onnxruntime is missing.
    """
    if batch < 1 or min_rounds < 2 or max_rounds < min_rounds or seconds <= 0 or precision <= 0:
        raise InputError("batch, seconds and precision must be positive, and 2 <= min_rounds <= max_rounds")
    paths = {"candidate": candidate_onnx, "baseline": baseline_onnx, "control": baseline_onnx}
    sessions = {arm: get_runtime(DEFAULT_RUNTIME).load(path, threads) for arm, path in paths.items()}
    _check_same_inputs(sessions)
    arms = {arm: _runner(arm, session, batch, seed, sizes) for arm, session in sessions.items()}
    for run in arms.values():
        _warm_up(run, min(_WARM_UP_SECONDS, seconds))
    rules = _Rules("cpu" if threads == 1 else "wall", seconds, min_rounds, max_rounds, precision, limit, seed)
    begin = time.perf_counter()
    samples = _interleave(arms, rules)
    spent = time.perf_counter() - begin
    main = rules.estimate(samples, "candidate")
    return Latency(
        runtime=DEFAULT_RUNTIME,
        threads=threads,
        batch=batch,
        clock=rules.clock,
        dense_ms=float(np.median(samples["baseline"].on(rules.clock))),
        pruned_ms=float(np.median(samples["candidate"].on(rules.clock))),
        ratio=main.ratio,
        ratio_low=main.low,
        ratio_high=main.high,
        wall=paired_ratio(samples["candidate"].wall_ms, samples["baseline"].wall_ms, seed=seed),
        control=rules.estimate(samples, "control"),
        rounds=len(samples["baseline"].wall_ms),
        seconds=spent,
        samples=samples,
        machine=machine(),
    )


def _check_same_inputs(sessions: Mapping[str, Session]) -> None:
    candidate, baseline = (
        [
            (spec.name, str(spec.dtype), [size if isinstance(size, int) else "?" for size in spec.shape])
            for spec in session.inputs
        ]
        for session in (sessions["candidate"], sessions["baseline"])
    )
    if [entry[1:] for entry in candidate] != [entry[1:] for entry in baseline]:
        raise InputError(f"the two files take different inputs and cannot be compared: {candidate} against {baseline}")


def _runner(arm: str, session: Session, batch: int, seed: int, sizes: Mapping[str, int] | None) -> Callable[[], None]:
    infer = session.prepare(random_feeds(session.inputs, batch=batch, seed=seed, sizes=sizes))
    try:
        infer()
    except Exception as error:  # runtimes' own classes are private to them
        raise VerifyError(f"the {arm} does not run on random inputs: {error}") from error
    return infer


def _warm_up(run: Callable[[], None], seconds: float) -> None:
    """Run until the last few runs take as long as the few before them, or the time is up."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
        last, before = times[-_WARM_UP_RUNS:], times[-2 * _WARM_UP_RUNS : -_WARM_UP_RUNS]
        if len(before) == _WARM_UP_RUNS and sum(times) > 0.1 * seconds and np.median(last) > 0.95 * np.median(before):
            return


def _interleave(arms: Mapping[str, Callable[[], None]], rules: _Rules) -> dict[str, Samples]:
    """Run all arms once per round, in an order drawn anew each time, until there is enough."""
    samples = {arm: Samples() for arm in arms}
    order = list(arms)
    shuffle = random.Random(rules.seed).shuffle
    end = time.perf_counter() + rules.seconds
    check_at = rules.min_rounds
    for done in range(1, rules.max_rounds + 1):
        shuffle(order)
        for arm in order:
            _time(arms[arm], samples[arm])
        if done < rules.min_rounds:
            continue
        if time.perf_counter() >= end:
            break
        if done >= check_at:
            if rules.enough(samples):
                break
            check_at = done + max(done // 4, 1)  # ever rarer: resampling costs time too
    return samples


def _time(run: Callable[[], None], samples: Samples) -> None:
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    run()
    wall_end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
    samples.wall_ms.append(max(wall_end - wall, 1) / 1e6)
    samples.cpu_ms.append(max(cpu_end - cpu, 1) / 1e6)
