"""The checks of a gate as one table: a number each, which may be as large as its limit and no larger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from fxprune.deploy.figures import FileFigures
from fxprune.deploy.golden import OutputParity
from fxprune.deploy.kernels import KernelFigures
from fxprune.deploy.latency import Latency

Level = Literal["fail", "warn", "report"]
LEVELS: tuple[Level, ...] = ("fail", "warn", "report")

Status = Literal["ok", "exceeded", "undecided", "skipped"]


@dataclass(frozen=True)
class Check:
    """What a check does where the configuration does not say.

    Attributes:
        level: ``fail`` fails the gate, ``warn`` is shown as a warning, ``report`` is only listed.
        limit: The largest value that is allowed.
        what: The value, in words.
    """

    level: Level
    limit: float
    what: str


CHECKS: Mapping[str, Check] = {
    "latency": Check("fail", 1.05, "time of the candidate to the baseline's"),
    "finite": Check("fail", 0, "outputs with NaN or infinity that the baseline's do not have"),
    "parity": Check("report", 1e-3, "largest difference of outputs to the baseline's, relative to the largest value"),
    "fallback-nodes": Check("fail", 0, "more nodes on a fallback provider than the baseline has"),
    "blocked-convs": Check("warn", 0, "share of convolutions lost from blocked kernels"),
    "reorders": Check("warn", 0, "more layout changes than the baseline has"),
    "batch-norms": Check("warn", 0, "more batch norms left unfused than in the baseline"),
    "activations": Check("warn", 0, "more activations left unfused than in the baseline"),
    "size": Check("warn", 1.05, "bytes of the candidate to the baseline's"),
    "macs": Check("warn", 1.05, "multiply-accumulates of the candidate to the baseline's"),
    "params": Check("warn", 1.05, "parameters of the candidate to the baseline's"),
    "opset": Check("report", 0, "operator set versions away from the baseline's"),
    "paths": Check("warn", 0, "absolute paths in the file"),
}


class Rule(NamedTuple):
    """Level and limit of a check in one gate."""

    level: Level
    limit: float


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: Its name.
        level: What it means when it is exceeded.
        status: ``undecided`` where the interval lies on both sides of the limit; ``skipped`` where there is nothing to
            compare.
        value: The number; None where there is none, or where it is infinite.
        limit: The largest that is allowed.
        message: The facts in one line.
    """

    check: str
    level: Level
    status: Status
    value: float | None
    limit: float
    message: str

    @property
    def fails(self) -> bool:
        """Whether this alone fails the gate."""
        return self.status == "exceeded" and self.level == "fail"

    @property
    def warns(self) -> bool:
        """Whether a person should look."""
        return self.level == "warn" and self.status in ("exceeded", "undecided")

    @property
    def leaves_open(self) -> bool:
        """Whether the gate cannot be decided because of this."""
        return self.status == "undecided" and self.level == "fail"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class Side:
    """What is known of one of the two files without timing it."""

    file: FileFigures
    kernels: KernelFigures | None


Value = tuple[float | None, str]  # None: nothing to compare, and why


def static_findings(candidate: Side, baseline: Side, rules: Mapping[str, Rule]) -> Iterator[Finding]:
    """Hold against their limits all checks that take no time to measure."""
    for name, value in _VALUES.items():
        yield _finding(name, rules[name], *value(candidate, baseline))


def parity_findings(parity: OutputParity, expected_bad: int, rules: Mapping[str, Rule]) -> Iterator[Finding]:
    """Hold the outputs against the baseline's; ``expected_bad`` outputs of the baseline are not finite either."""
    bad = parity.not_finite
    which = f" ({', '.join(bad)})" if bad else ""
    message = f"{len(bad)} outputs have NaN or infinity{which}; {expected_bad} of the baseline's"
    yield _finding("finite", rules["finite"], max(0, len(bad) - expected_bad), message)
    errors = ", ".join(f"{output.name} {output.error:.2g}" for output in parity.outputs)
    constant = [output.name for output in parity.outputs if output.constant]
    proof = f"; {', '.join(constant)} is one number everywhere, which proves nothing" if constant else ""
    yield _finding("parity", rules["parity"], parity.error, f"{errors} on {parity.source}{proof}")


def latency_finding(latency: Latency, rule: Rule) -> Finding:
    """Hold the interval of the ratio against the limit."""
    verdict = latency.verdict(rule.limit)
    status: Status = {"pass": "ok", "fail": "exceeded", "inconclusive": "undecided"}[verdict]  # type: ignore[assignment]
    clock = "CPU" if latency.clock == "cpu" else "wall"
    message = (
        f"{latency.ratio:.3f} [{latency.ratio_low:.3f}, {latency.ratio_high:.3f}] of the baseline's {clock} time, "
        f"{latency.dense_ms:.3f} ms, over {latency.rounds} rounds on {latency.runtime}"
    )
    if not latency.control_holds:
        message += f"; the baseline beside itself came out at {latency.control.ratio:.3f}, so nothing can be said"
    return Finding("latency", rule.level, status, latency.ratio, rule.limit, message)


def skipped(name: str, rule: Rule, why: str) -> Finding:
    """Return the finding of a check that has nothing to compare."""
    return Finding(name, rule.level, "skipped", None, rule.limit, why)


def _finding(name: str, rule: Rule, value: float | None, message: str) -> Finding:
    if value is None:
        return skipped(name, rule, message)
    status: Status = "ok" if value <= rule.limit + 1e-12 else "exceeded"  # shares are differences of fractions
    return Finding(name, rule.level, status, value if math.isfinite(value) else None, rule.limit, message)


def _ratio(name: str) -> Callable[[Side, Side], Value]:
    def value(candidate: Side, baseline: Side) -> Value:
        ours, theirs = getattr(candidate.file, name), getattr(baseline.file, name)
        if ours is None or theirs is None:
            return None, "it cannot be counted: a shape is known only when running, or an operator is not counted"
        return (ours / theirs if theirs else 1.0 + bool(ours)), f"{ours:,} beside {theirs:,}"

    return value


def _more(of: Callable[[KernelFigures], float], text: str) -> Callable[[Side, Side], Value]:
    def value(candidate: Side, baseline: Side) -> Value:
        if candidate.kernels is None or baseline.kernels is None:
            return None, "the runtime does not show the graph that it runs"
        facts = [text.format(kernels=side.kernels) for side in (candidate, baseline)]
        return of(candidate.kernels) - of(baseline.kernels), " beside ".join(facts)

    return value


def _opset(candidate: Side, baseline: Side) -> Value:
    ours, theirs = candidate.file.opset, baseline.file.opset
    return abs(ours - theirs), f"{ours} beside {theirs}"


def _paths(candidate: Side, _: Side) -> Value:
    paths = candidate.file.paths
    return len(paths), ", ".join(paths[:3]) or "none"


_VALUES: Mapping[str, Callable[[Side, Side], Value]] = {
    "fallback-nodes": _more(lambda kernels: len(kernels.fallback), "{kernels.fallback_text}"),
    "blocked-convs": _more(lambda kernels: -kernels.blocked_share, "{kernels.blocked} of {kernels.convs}"),
    "reorders": _more(lambda kernels: kernels.reorders, "{kernels.reorders}"),
    "batch-norms": _more(lambda kernels: kernels.batch_norms, "{kernels.batch_norms}"),
    "activations": _more(lambda kernels: kernels.activations, "{kernels.activations}"),
    "size": _ratio("bytes"),
    "macs": _ratio("macs"),
    "params": _ratio("params"),
    "opset": _opset,
    "paths": _paths,
}
