"""How much faster is the candidate than the baseline? A ratio with an interval, measured side by side.

Both files are loaded into one process and run in random order, so that what else the machine does hits both alike. A
second session of the baseline runs along as a control. Its ratio to the first should be one; by how much it is not is
what loading a file twice does to its time (where its memory came to lie), and widens the interval of the candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fxprune.deploy.interleave import Inspect, Interleaved, Samples, Settings, interleave
from fxprune.deploy.machine import load_average, machine
from fxprune.deploy.runtimes import Clock, Model
from fxprune.deploy.statistics import Estimate, drift, paired_ratio, percentiles
from fxprune.errors import InputError

__all__ = ["CONTROL_SLACK", "Clock", "Latency", "Samples", "Verdict", "compare_latency", "measure_latency"]

Verdict = Literal["pass", "fail", "inconclusive"]

CONTROL_SLACK = 0.02
"""How far the control's interval may stay away from one."""

_SURE = 0.99  # looking again and again finds a wrong side more often than looking once


@dataclass(frozen=True)
class Latency:
    """A measured ratio of candidate to baseline; below one is faster.

    Attributes:
        runtime: The runtime that ran the files.
        threads: Threads within an operator.
        batch: Batch size of the inputs.
        clock: What decides: with one thread CPU time of the process, in which waiting for a busy machine does not
            count; with more, or on a GPU, wall time.
        dense_ms: Median time of the baseline on that clock, in milliseconds.
        pruned_ms: Median time of the candidate.
        ratio: Median over rounds of the candidate's time to that of the baseline (the geometric mean of its two
            sessions), with the interval ``ratio_low`` to ``ratio_high``: a bootstrap at 95 %, widened by what the
            control is away from one.
        wall: The same ratio in wall time.
        control: The ratio of the baseline to itself, on the deciding clock.
        rounds: Number of pairs.
        seconds: Wall time of the rounds, without loading and warm-up.
        samples: Raw times by ``candidate``, ``baseline`` and ``control``, to redo the statistics with.
        machine: Where it was measured.
        inference_seconds: Wall time within the models, warm-up included; the rest of a run is overhead.
        inference_cpu_seconds: The same in CPU time of the process.
        warm_up: Runs of each model before the rounds.
        first_ms: Wall time of each model's first run.
        interrupted: Whether Ctrl-C ended it early.
        notes: What a reader should know.
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
    inference_seconds: float = 0.0
    inference_cpu_seconds: float = 0.0
    warm_up: int = 0
    first_ms: Mapping[str, float] | None = None
    interrupted: bool = False
    notes: tuple[str, ...] = ()

    @property
    def control_holds(self) -> bool:
        """Whether the baseline is as fast as itself, give or take two per cent: the precondition of any verdict."""
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
        times = {arm: sample.on(self.clock) for arm, sample in self.samples.items()}
        values = {
            **asdict(self),
            "control_holds": self.control_holds,
            "percentiles_ms": {arm: percentiles(found) for arm, found in times.items() if found},
            "drift": {arm: drift(found) for arm, found in times.items() if found},
        }
        if not samples:
            del values["samples"]
        return values


@dataclass(frozen=True)
class Rules:
    """When there is enough.

    Attributes:
        clock: The clock that decides.
        precision: Half-width of the intervals that is narrow enough, where there is no limit.
        limit: A ratio to decide against.
        seed: Seed of the resampling.
    """

    clock: Clock
    precision: float = 0.01
    limit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.precision > 0 or (self.limit is not None and not self.limit > 0):
            raise InputError(f"precision and limit must be positive, not {self.precision} and {self.limit}")

    def enough(self, samples: Mapping[str, Samples]) -> bool:
        """Whether the interval lies on one side of the limit, or is narrow where there is none."""
        if self.limit is not None:
            sure = self.candidate(samples, level=_SURE)
            return sure.low > self.limit or sure.high <= self.limit
        control = self.control(samples)
        return max(self.candidate(samples, widen=False).half_width, control.half_width) <= self.precision

    def control(self, samples: Mapping[str, Samples], clock: Clock | None = None) -> Estimate:
        """Return the ratio of the baseline to itself."""
        clock = clock or self.clock
        return paired_ratio(samples["control"].on(clock), samples["baseline"].on(clock), seed=self.seed)

    def candidate(
        self,
        samples: Mapping[str, Samples],
        clock: Clock | None = None,
        *,
        level: float = 0.95,
        widen: bool = True,
    ) -> Estimate:
        """Return the ratio of the candidate to both sessions of the baseline."""
        clock = clock or self.clock
        baseline = np.sqrt(np.multiply(samples["baseline"].on(clock), samples["control"].on(clock)))
        found = paired_ratio(samples["candidate"].on(clock), baseline.tolist(), level=level, seed=self.seed)
        return found.widened(self.control(samples, clock).ratio) if widen else found


def measure_latency(  # noqa: PLR0913  (options behind the star, each with a default)
    candidate: Model,
    baseline: Model,
    *,
    runtime: str = Settings.runtime,
    threads: int = 1,
    batch: int = 1,
    seconds: float = 10.0,
    min_rounds: int = 20,
    max_rounds: int = 5000,
    precision: float = 0.01,
    limit: float | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    pin: bool = False,
) -> Latency:
    """Measure how long the candidate takes relative to the baseline.

    Args:
        candidate: The model in question: an ONNX file, or what else the runtime takes.
        baseline: The model to compare with; it must take the same inputs.
        runtime: One of :data:`fxprune.deploy.runtimes.RUNTIMES`.
        threads: Threads within an operator. With one on a CPU, CPU time decides; else wall time.
        batch: Batch size, where it is dynamic.
        seconds: Time at most, warm-up included; at least ``min_rounds`` rounds are run whatever they take.
        min_rounds: Fewest rounds.
        max_rounds: Most rounds.
        precision: Stop when the intervals are this narrow: 0.01 is give or take one per cent.
        limit: A ratio to decide against: measuring stops when the interval lies on one side of it, however wide.
        sizes: Sizes of other dynamic dimensions than the batch, by name.
        seed: Seed of inputs, order and resampling.
        pin: Keep to as many cores as there are threads, where the system allows it.

    Raises:
        InputError: A file cannot be loaded, the two take different inputs, or an option is out of range.
        VerifyError: A file loads but does not run on its own inputs.
        EnvironmentProblem: The runtime is missing, or would run nodes elsewhere than it was asked to.
    """
    settings = Settings(runtime, threads, batch, seconds, min_rounds, max_rounds, sizes, seed, pin)
    return compare_latency(candidate, baseline, settings, precision=precision, limit=limit)


def compare_latency(
    candidate: Model,
    baseline: Model,
    settings: Settings,
    *,
    precision: float = 0.01,
    limit: float | None = None,
    inspect: Inspect | None = None,
) -> Latency:
    """Do what :func:`measure_latency` does, with the options in one place.

    ``inspect`` is given the loaded models, by ``candidate``, ``baseline`` and ``control``, before they are timed.
    """
    rules = Rules(settings.clock, precision, limit, settings.seed)
    where = machine()
    models = {"candidate": candidate, "baseline": baseline, "control": baseline}
    found = interleave(models, settings, rules.enough, inspect)
    return _latency(found, rules, settings, {**where, "load_after": load_average()})


def _latency(found: Interleaved, rules: Rules, settings: Settings, where: Mapping[str, Any]) -> Latency:
    samples = found.samples
    main = rules.candidate(samples)
    return Latency(
        runtime=settings.runtime,
        threads=settings.threads,
        batch=settings.batch,
        clock=rules.clock,
        dense_ms=float(np.median(samples["baseline"].on(rules.clock))),
        pruned_ms=float(np.median(samples["candidate"].on(rules.clock))),
        ratio=main.ratio,
        ratio_low=main.low,
        ratio_high=main.high,
        wall=rules.candidate(samples, "wall"),
        control=rules.control(samples),
        rounds=len(samples["baseline"].wall_ms),
        seconds=found.seconds,
        samples=samples,
        machine=where,
        inference_seconds=found.inference_seconds,
        inference_cpu_seconds=found.inference_cpu_seconds,
        warm_up=found.warm_up,
        first_ms=found.first_ms,
        interrupted=found.interrupted,
        notes=found.notes,
    )
