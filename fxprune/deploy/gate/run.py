"""A gate run: the candidate's file, its kernels, its outputs and its time against a baseline's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import fxprune
from fxprune.deploy.figures import file_figures
from fxprune.deploy.gate.baseline import Record, golden_path, read_record
from fxprune.deploy.gate.checks import Finding, Side, latency_finding, parity_findings, skipped, static_findings
from fxprune.deploy.gate.config import GateConfig
from fxprune.deploy.golden import Golden, OutputParity
from fxprune.deploy.kernels import kernel_figures
from fxprune.deploy.latency import Latency, compare_latency
from fxprune.deploy.machine import machine
from fxprune.deploy.runtimes import Session
from fxprune.distance import is_finite

Outcome = Literal["pass", "fail", "inconclusive", "interrupted"]

SCHEMA = 1
EXIT_CODES: Mapping[Outcome, int] = {"pass": 0, "fail": 1, "inconclusive": 3, "interrupted": 130}


@dataclass(frozen=True)
class GateResult:
    """What a gate found.

    Attributes:
        candidate: The file in question.
        baseline: The file it was compared with.
        sides: What is known of each without timing, by ``candidate`` and ``baseline``.
        findings: One for every check that was reached, in the order of the table.
        parity: The comparison of outputs.
        latency: The measurement.
        interrupted: Whether Ctrl-C ended it, so that checks are missing or rest on little.
        notes: What a reader should know.
        machine: Where it ran.
        seconds: Wall time of each part.
    """

    candidate: Path
    baseline: Path
    sides: Mapping[str, Side]
    findings: tuple[Finding, ...]
    parity: OutputParity | None
    latency: Latency | None
    interrupted: bool
    notes: tuple[str, ...]
    machine: Mapping[str, Any]
    seconds: Mapping[str, float]

    @property
    def outcome(self) -> Outcome:
        """The verdict; what failed stays failed, whatever is undecided or was not reached."""
        if any(finding.fails for finding in self.findings):
            return "fail"
        if self.interrupted:
            return "interrupted"
        return "inconclusive" if any(finding.leaves_open for finding in self.findings) else "pass"

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 inconclusive, 130 interrupted."""
        return 130 if self.interrupted else EXIT_CODES[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        paths = {"candidate": self.candidate, "baseline": self.baseline}
        files = {
            name: {
                "path": str(path),
                "figures": self.sides[name].file.to_dict() if name in self.sides else None,
                "kernels": _dict(self.sides[name].kernels) if name in self.sides else None,
            }
            for name, path in paths.items()
        }
        return {
            "schema": SCHEMA,
            "complete": not self.interrupted,
            "outcome": self.outcome,
            "exit_code": self.exit_code,
            **files,
            "checks": [finding.to_dict() for finding in self.findings],
            "parity": _dict(self.parity),
            "latency": _dict(self.latency),
            "notes": list(self.notes),
            "machine": dict(self.machine),
            "versions": {"fxprune": fxprune.__version__, "onnxruntime": self.machine["onnxruntime"]},
            "seconds": dict(self.seconds),
        }


def run_gate(candidate: Path, baseline: Path, config: GateConfig, *, keep_interrupted: bool = False) -> GateResult:
    """Compare a candidate with a baseline.

    Args:
        candidate: An ONNX file.
        baseline: An ONNX file that takes the same inputs. With a record beside it, it must be the file recorded.
        config: Levels, limits, and how to measure.
        keep_interrupted: End at Ctrl-C with what there is, instead of raising.

    Raises:
        InputError: A file cannot be loaded, the two take different inputs, or the baseline is not the one recorded.
        VerifyError: A file does not run on its inputs.
        EnvironmentProblem: The runtime is missing, or would run nodes on the CPU.
    """
    gate = _Gate(candidate, baseline, config)
    try:
        gate.static()
        gate.measured(keep_interrupted)
    except KeyboardInterrupt:
        if not keep_interrupted:
            raise
        gate.interrupted = True
    return gate.result()


class _Gate:
    """The parts of a run, which fill in what is known so far."""

    def __init__(self, candidate: Path, baseline: Path, config: GateConfig) -> None:
        self._candidate, self._baseline, self._config = candidate, baseline, config
        self._machine = machine()
        self._sides: dict[str, Side] = {}
        self._findings: list[Finding] = []
        self._parity: OutputParity | None = None
        self._latency: Latency | None = None
        self._notes: list[str] = []
        self._seconds: dict[str, float] = {}
        self.interrupted = False

    def static(self) -> None:
        with _Timer(self._seconds, "static"):
            baseline = self._side(self._baseline)
            record = read_record(self._baseline)
            if record is not None:
                record.require_same(baseline.file.sha256, self._baseline)
                self._notes += _changes(record, baseline, self._machine)
            candidate = self._side(self._candidate)
            self._sides = {"candidate": candidate, "baseline": baseline}
            self._findings += static_findings(candidate, baseline, self._config.rules)
            if candidate.file.sha256 == baseline.file.sha256:
                self._notes.append("candidate and baseline are the same file")

    def measured(self, keep_interrupted: bool) -> None:
        """Compare outputs and times, on the same loaded models."""
        rule = self._config.rules["latency"]
        settings = replace(self._config.settings, keep_interrupted=keep_interrupted)
        options: dict[str, Any] = {"limit": rule.limit, "inspect": self._outputs}
        with _Timer(self._seconds, "latency"):
            self._latency = compare_latency(self._candidate, self._baseline, settings, **options)
        self._seconds["latency"] -= self._seconds.get("outputs", 0.0)
        self.interrupted = self._latency.interrupted
        self._notes += self._latency.notes
        self._findings.append(latency_finding(self._latency, rule))

    def _outputs(self, sessions: Mapping[str, Session]) -> None:
        settings = self._config.settings
        with _Timer(self._seconds, "outputs"):
            golden = self._golden(sessions["baseline"]) or Golden.of(
                sessions["baseline"], batch=settings.batch, sizes=settings.sizes, seed=settings.seed
            )
            bad = sum(not is_finite(array) for array in golden.outputs.values())
            self._parity = golden.compare(sessions["candidate"])
            self._findings += parity_findings(self._parity, bad, self._config.rules)

    def result(self) -> GateResult:
        done = {finding.check: finding for finding in self._findings}
        every = {
            name: done.get(name) or skipped(name, rule, "not reached") for name, rule in self._config.rules.items()
        }
        return GateResult(
            self._candidate,
            self._baseline,
            self._sides,
            tuple(every.values()),
            self._parity,
            self._latency,
            self.interrupted,
            tuple(self._notes),
            self._machine,
            self._seconds,
        )

    def _side(self, path: Path) -> Side:
        settings = self._config.settings
        figures = file_figures(path, batch=settings.batch, sizes=settings.sizes)
        return Side(figures, kernel_figures(path, runtime=settings.runtime))

    def _golden(self, session: Session) -> Golden | None:
        if self._config.golden is not None:
            return Golden.load(self._config.golden, session)
        kept = golden_path(self._baseline)
        return Golden.load(kept, session) if kept.is_file() else None


class _Timer:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = time.perf_counter() - self._start


def _changes(record: Record, baseline: Side, where: Mapping[str, Any]) -> list[str]:
    """Say what differs from where the baseline was recorded: allowed, since both files are measured here."""
    notes = []
    if record.values.get("features") != where["features"]:
        notes.append("the baseline was recorded on a processor with other vector instructions; both are measured here")
    then = record.values.get("versions", {}).get("onnxruntime")
    kernels = record.values.get("kernels")
    if baseline.kernels is not None and kernels is not None:
        now = baseline.kernels.to_dict()
        names = [
            name for name in ("blocked", "reorders", "batch_norms", "activations") if kernels.get(name) != now[name]
        ]
        if names:
            moved = ", ".join(f"{name} {kernels.get(name)} then, {now[name]} now" for name in names)
            notes.append(
                f"onnxruntime {where['onnxruntime']} makes other kernels of the baseline than {then} did: {moved}"
            )
    return notes


def _dict(value: Any) -> Any:
    return None if value is None else value.to_dict()
