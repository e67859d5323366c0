"""Real sessions side by side, and verdicts from intervals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from made_up_times import Clock, made_up, seconds_of

from fxprune.deploy.latency import Latency, Samples, Verdict, measure_latency
from fxprune.deploy.statistics import Estimate
from fxprune.errors import InputError


@pytest.fixture(scope="module")
def measured(files: dict[str, Path]) -> Latency:
    return measure_latency(files["small"], files["large"], seconds=3)


def test_a_smaller_model_is_faster(measured: Latency) -> None:
    """By the machine's own clock: a sixth of the work is seen, whatever else there is to do."""
    assert measured.ratio_low <= measured.ratio <= measured.ratio_high
    assert measured.ratio < 0.8
    assert measured.pruned_ms < measured.dense_ms
    assert measured.clock == "cpu"
    assert measured.verdict(1.05) != "fail"


def test_raw_samples_are_kept(measured: Latency) -> None:
    assert set(measured.samples) == {"candidate", "baseline", "control"}
    for samples in measured.samples.values():
        assert len(samples.wall_ms) == len(samples.cpu_ms) == measured.rounds >= 20
        assert min(samples.wall_ms + samples.cpu_ms) > 0
    values = json.loads(json.dumps(measured.to_dict()))
    assert values["machine"]["fingerprint"]
    assert len(values["samples"]["control"]["cpu_ms"]) == measured.rounds
    assert "samples" not in measured.to_dict(samples=False)


@pytest.mark.parametrize(("scatter", "off"), [(0.01, 0.01), (0.7, 0.25)])
def test_the_ratio_is_that_of_the_times(files: dict[str, Path], scatter: float, off: float) -> None:
    """Single times that lie off by a factor of two are made up for by their number."""
    true = seconds_of(files["small"]) / seconds_of(files["large"])
    for names, ratio in ((("small", "large"), true), (("large", "small"), 1 / true), (("large", "large"), 1.0)):
        with made_up(scatter):
            found = measure_latency(*(files[name] for name in names), seconds=3)
        assert found.ratio == pytest.approx(ratio, rel=off)
        assert (1 - off) * found.ratio_low <= ratio <= (1 + off) * found.ratio_high
        assert found.control.ratio == pytest.approx(1, rel=off)
        assert found.verdict(1.3) != ("pass" if ratio > 1 else "fail")
        assert scatter > 0.01 or found.verdict(1.3) == ("fail" if ratio > 1 else "pass")


@pytest.mark.usefixtures("clock")
def test_stops_early_when_the_limit_decides(files: dict[str, Path]) -> None:
    decided = measure_latency(files["small"], files["large"], seconds=60, limit=2.0, precision=1e-9)
    assert decided.rounds < 200
    assert decided.ratio_high <= 2.0


@pytest.mark.usefixtures("clock")
def test_stops_when_precise_enough(files: dict[str, Path]) -> None:
    assert measure_latency(files["small"], files["large"], seconds=60, precision=1.0).rounds == 20


def test_stops_when_the_time_is_out(files: dict[str, Path], clock: Clock) -> None:
    begin = clock.perf_counter()
    short = measure_latency(files["small"], files["large"], seconds=0.2, precision=1e-9, min_rounds=2)
    assert 0.15 < short.seconds < clock.perf_counter() - begin < 0.25
    assert short.rounds > 20


@pytest.mark.usefixtures("clock")
def test_stops_at_the_most_rounds(files: dict[str, Path]) -> None:
    options = {"seconds": 60, "precision": 1e-9, "min_rounds": 5, "max_rounds": 7}
    assert measure_latency(files["small"], files["large"], **options).rounds == 7


def test_more_threads_are_judged_by_wall_time_and_batch_is_used(files: dict[str, Path], measured: Latency) -> None:
    several = measure_latency(files["large"], files["large"], threads=2, batch=4, seconds=0.5, min_rounds=5)
    assert (several.clock, several.threads, several.batch) == ("wall", 2, 4)
    assert several.wall == Estimate(several.ratio, several.ratio_low, several.ratio_high)
    assert min(several.samples["baseline"].cpu_ms) > min(measured.samples["baseline"].cpu_ms)


def test_files_with_different_inputs_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="different inputs"):
        measure_latency(files["small"], files["other"])


def test_a_missing_file_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        measure_latency(files["small"], tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "options", [{"batch": 0}, {"seconds": 0}, {"min_rounds": 1}, {"max_rounds": 3}, {"threads": 0}]
)
def test_options_out_of_range_are_refused(files: dict[str, Path], options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        measure_latency(files["small"], files["small"], **options)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.9, 0.95, "pass"), (0.9, 1.05, "pass"), (1.0, 1.2, "inconclusive"), (1.06, 1.2, "fail")],
)
def test_the_verdict_comes_from_the_interval(low: float, high: float, verdict: Verdict) -> None:
    assert _latency(low, high, Estimate(1.0, 0.99, 1.02)).verdict(1.05) == verdict


@pytest.mark.parametrize("control", [Estimate(1.1, 1.05, 1.2), Estimate(0.9, 0.8, 0.95)])
def test_no_verdict_when_the_baseline_differs_from_itself(control: Estimate) -> None:
    assert _latency(0.5, 0.6, control).verdict(1.05) == "inconclusive"


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _latency(0.5, 0.6, Estimate(1, 1, 1)).ratio = 1.0  # type: ignore[misc]


def _latency(low: float, high: float, control: Estimate) -> Latency:
    ratio = (low * high) ** 0.5
    wall = Estimate(ratio, low, high)
    samples = dict.fromkeys(("candidate", "baseline", "control"), Samples())
    return Latency("onnxruntime-cpu", 1, 1, "cpu", 1.0, ratio, ratio, low, high, wall, control, 20, 1.0, samples, {})
