"""Models in turns: what is fed, when it starts and stops, and what an interrupt leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from made_up_times import Clock
from onnx import TensorProto, helper

from fxprune.capture.traced import Traced
from fxprune.deploy import interleave as module
from fxprune.deploy.interleave import Samples, Settings, interleave
from fxprune.deploy.latency import compare_latency, measure_latency
from fxprune.errors import InputError, VerifyError

QUICK = Settings(seconds=0.5, min_rounds=5, max_rounds=12)


def _never(_: Mapping[str, Samples]) -> bool:
    return False


def _elementwise(path: Path, op: str) -> Path:
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 40])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.usefixtures("clock")
def test_every_model_runs_once_a_round(files: dict[str, Path]) -> None:
    found = interleave(dict.fromkeys("abc", files["small"]), QUICK, _never)
    assert {len(sample.wall_ms) for sample in found.samples.values()} == {12}
    assert set(found.first_ms) == set("abc")
    assert found.warm_up >= 1
    assert found.inference_seconds > 0
    assert not found.interrupted


def test_it_asks_whether_there_is_enough(files: dict[str, Path]) -> None:
    asked: list[int] = []

    def enough(samples: Mapping[str, Samples]) -> bool:
        asked.append(len(samples["a"].cpu_ms))
        return len(asked) == 3

    found = interleave({"a": files["small"]}, Settings(seconds=30), enough)
    assert asked == [20, 22, 24]
    assert len(found.samples["a"].cpu_ms) == 24


def test_it_does_not_ask_before_the_least_time(files: dict[str, Path]) -> None:
    times: list[float] = []
    start = time.perf_counter()

    def enough(_: Mapping[str, Samples]) -> bool:
        times.append(time.perf_counter() - start)
        return True

    interleave({"a": files["small"]}, Settings(seconds=30, min_seconds=0.5), enough)
    assert len(times) == 1
    assert times[0] >= 0.5
    with pytest.raises(InputError, match="min_seconds"):
        Settings(min_seconds=-1)


class _Stops:
    """Interrupts the run at its n-th call, as Ctrl-C does wherever it falls."""

    def __init__(self, after: int) -> None:
        self.after = after
        self._timed = module.timed

    def __call__(self, run: object, samples: Samples) -> None:
        self.after -= 1
        if self.after == 0:
            samples.wall_ms.append(1.0)  # half a record
            raise KeyboardInterrupt
        self._timed(run, samples)  # type: ignore[arg-type]


@pytest.fixture
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_warm_up", lambda arms, settings: ({arm: Samples() for arm in arms}, True))


@pytest.mark.usefixtures("no_warm_up")
def test_an_interrupt_keeps_whole_rounds(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "timed", _Stops(after=11))
    settings = Settings(keep_interrupted=True)
    latency = compare_latency(files["small"], files["large"], settings)
    assert latency.interrupted
    assert latency.rounds == 3
    assert (
        {len(s.wall_ms) for s in latency.samples.values()} == {len(s.cpu_ms) for s in latency.samples.values()} == {3}
    )
    assert latency.to_dict()["interrupted"] is True


@pytest.mark.usefixtures("no_warm_up")
@pytest.mark.parametrize(("keep", "after"), [(False, 30), (True, 4)])
def test_an_interrupt_passes_on_unless_there_is_something_to_keep(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, keep: bool, after: int
) -> None:
    monkeypatch.setattr(module, "timed", _Stops(after))
    with pytest.raises(KeyboardInterrupt):
        interleave(dict.fromkeys("abc", files["small"]), Settings(keep_interrupted=keep), _never)


@pytest.mark.usefixtures("clock")
def test_times_that_still_fall_are_noted(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ever_faster = iter(0.97**number for number in range(10_000))
    monkeypatch.setattr(Clock, "spend", lambda clock, _: setattr(clock, "_now", clock._now + 2e-3 * next(ever_faster)))
    found = interleave({"a": files["small"]}, Settings(seconds=0.2, min_rounds=2, max_rounds=3), _never)
    assert found.notes == ("times were still falling when measuring began: measure for longer",)


def test_nan_is_noted(tmp_path: Path) -> None:
    path = _elementwise(tmp_path / "log.onnx", "Log")
    latency = measure_latency(path, path, seconds=0.2, min_rounds=2, max_rounds=5)
    assert "candidate: output y has NaN or infinity on random inputs" in latency.notes


@pytest.mark.usefixtures("clock")
def test_pinning_is_undone(files: dict[str, Path]) -> None:
    before = os.sched_getaffinity(0)
    settings = Settings(seconds=0.2, min_rounds=2, max_rounds=3, pin=True)
    assert interleave({"a": files["small"]}, settings, _never).notes == ()
    assert os.sched_getaffinity(0) == before


@pytest.mark.usefixtures("clock")
def test_without_permission_to_pin_it_measures_unpinned(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: int, __: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    found = interleave({"a": files["small"]}, Settings(seconds=0.2, min_rounds=2, max_rounds=3, pin=True), _never)
    assert found.notes == ("threads are not pinned to cores: [Errno 1] Operation not permitted",)


@pytest.mark.usefixtures("clock")
def test_one_core_is_enough(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    for threads, notes in ((1, ()), (2, ("2 threads share 1 core",))):
        settings = Settings(threads=threads, seconds=0.2, min_rounds=2, max_rounds=3)
        latency = compare_latency(files["small"], files["small"], settings)
        assert latency.notes == notes
        assert latency.machine["cores"] == 1


def test_other_runtimes_are_measured_too(convnet: Traced) -> None:
    latency = measure_latency(convnet, convnet, runtime="torch-cpu", seconds=0.5, min_rounds=5)
    assert latency.runtime == "torch-cpu"
    assert latency.dense_ms > 0
    with pytest.raises(InputError, match="there is no runtime"):
        measure_latency(convnet, convnet, runtime="abacus")


@pytest.mark.parametrize("options", [{"min_rounds": 0, "max_rounds": 0}, {"max_rounds": 1}, {"seconds": float("nan")}])
def test_no_rounds_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Settings(**options)  # type: ignore[arg-type]


def test_a_model_that_cannot_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "reshape.onnx"
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "bad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([7, 3], np.int64), "shape")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with pytest.raises(VerifyError, match="only does not run on random inputs"):
        interleave({"only": path}, QUICK, _never)
