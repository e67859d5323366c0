"""Times of one or several models, measured in turns: the first is what the others are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fxprune.deploy.interleave import Interleaved, Samples, Settings, interleave
from fxprune.deploy.latency import CONTROL_SLACK, Rules
from fxprune.deploy.machine import load_average, machine
from fxprune.deploy.runtimes import Clock, Model
from fxprune.deploy.statistics import PERCENTILES, Estimate, drift, percentiles
from fxprune.errors import InputError

SCHEMA = 1
CONTROL = "(control)"


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        name: As it was given.
        median_ms: Median time on the deciding clock, in milliseconds.
        wall_ms: Median wall time.
        first_ms: Wall time of its first run.
        percentiles_ms: Those for which there are enough runs.
        drift: Last third of the times to the first.
        ratio: Time to the first model's, with its interval; None for the first.
    """

    name: str
    median_ms: float
    wall_ms: float
    first_ms: float
    percentiles_ms: Mapping[str, float]
    drift: float
    ratio: Estimate | None


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        settings: How.
        clock: What decides: ``cpu`` or ``wall``.
        rows: The models in order.
        control: The first model's ratio to a second session of itself.
        rounds: Runs of each.
        seconds: Wall time of the rounds.
        samples: Raw times by model, and by :data:`CONTROL`.
        machine: Where.
        interrupted: Whether Ctrl-C ended it early.
        notes: What a reader should know.
    """

    settings: Settings
    clock: Clock
    rows: tuple[Row, ...]
    control: Estimate
    rounds: int
    seconds: float
    samples: Mapping[str, Samples]
    machine: Mapping[str, Any]
    interrupted: bool
    notes: tuple[str, ...]

    @property
    def control_holds(self) -> bool:
        """Whether the first model is as fast as itself, give or take two per cent."""
        return self.control.low <= 1 + CONTROL_SLACK and self.control.high >= 1 - CONTROL_SLACK

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "schema": SCHEMA,
            "complete": not self.interrupted,
            **asdict(self),
            "control_holds": self.control_holds,
        }


def bench(models: Mapping[str, Model], settings: Settings, *, precision: float = 0.01) -> Bench:
    """Measure models in turns until there is a p90 and the intervals are narrow, or the time is out.

    Args:
        models: What the runtime takes, by name; the first is loaded twice, as a control.
        settings: How to measure.
        precision: Half-width of every interval that is narrow enough.

    Raises:
        InputError: There are no models, one cannot be loaded, or they take different inputs.
        VerifyError: A model does not run.
        EnvironmentProblem: The runtime is missing, or would run nodes elsewhere than it was asked to.
    """
    if not models or CONTROL in models:
        raise InputError(f"name at least one model, and none {CONTROL}")
    first = next(iter(models))
    rules = Rules(settings.clock, precision, seed=settings.seed)

    def enough(samples: Mapping[str, Samples]) -> bool:
        if len(samples[first].wall_ms) < PERCENTILES["p90"][1]:
            return False
        estimates = [rules.control(_arms(samples, first, first))]
        estimates += [rules.candidate(_arms(samples, first, name), widen=False) for name in models if name != first]
        return max(estimate.half_width for estimate in estimates) <= precision

    where = machine()
    found = interleave({**models, CONTROL: models[first]}, settings, enough)
    return _bench(found, rules, settings, list(models), {**where, "load_after": load_average()})


def _arms(samples: Mapping[str, Samples], first: str, name: str) -> dict[str, Samples]:
    return {"candidate": samples[name], "baseline": samples[first], "control": samples[CONTROL]}


def _bench(found: Interleaved, rules: Rules, settings: Settings, names: list[str], where: Mapping[str, Any]) -> Bench:
    first, clock = names[0], rules.clock
    rows = tuple(
        Row(
            name,
            median_ms=float(np.median(found.samples[name].on(clock))),
            wall_ms=float(np.median(found.samples[name].wall_ms)),
            first_ms=found.first_ms[name],
            percentiles_ms=percentiles(found.samples[name].on(clock)),
            drift=drift(found.samples[name].on(clock)),
            ratio=rules.candidate(_arms(found.samples, first, name)) if name != first else None,
        )
        for name in names
    )
    return Bench(
        settings,
        clock,
        rows,
        control=rules.control(_arms(found.samples, first, first)),
        rounds=len(found.samples[first].wall_ms),
        seconds=found.seconds,
        samples=found.samples,
        machine=where,
        interrupted=found.interrupted,
        notes=found.notes,
    )
