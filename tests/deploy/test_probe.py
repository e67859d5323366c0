"""Layers timed one by one: their files, the step of the runtime, the curve of a layer, and the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune.deploy.kernel_seconds import KernelTimes, _Called, _Clocks, _run, kernel_seconds
from fxprune.deploy.layer_shapes import LayerShape, layer_shapes
from fxprune.deploy.probe import STEPS, default_cache, find_step, fit_layer, probe, staircase, widths_to_probe
from fxprune.deploy.runtimes.ort import cpu_session

CONV = LayerShape("conv", 64, 32, 1, (3, 3), (2, 2), (1, 1), (1, 1), (1, 14, 14))
DEPTHWISE = LayerShape("conv", 96, 96, 96, (3, 3), (1, 1), (1, 1), (1, 1), (1, 14, 14))
GROUPED = LayerShape("conv", 64, 32, 4, (3, 3), (1, 1), (1, 1), (1, 1), (1, 14, 14))
LINEAR = LayerShape("linear", 48, 32, 1, (), (), (), (), (1, 7))


class Net(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depthwise(self.stem(x)).mean((2, 3)))


def test_shapes_are_those_in_the_model() -> None:
    traced = fxprune.trace(Net().eval(), torch.randn(2, 3, 20, 24))
    shapes = sorted(layer_shapes(traced, batch=5).values(), key=lambda shape: (shape.kind, shape.inputs))
    assert shapes == [
        LayerShape("conv", 32, 3, 1, (3, 3), (2, 2), (1, 1), (1, 1), (5, 20, 24)),
        LayerShape("conv", 32, 32, 32, (3, 3), (1, 1), (1, 1), (1, 1), (5, 10, 12)),
        LayerShape("linear", 10, 32, 1, (), (), (), (), (5,)),
    ]


@pytest.mark.parametrize(
    ("layer", "size", "expected"),
    [
        (nn.Conv1d(4, 6, 3, padding="same", dilation=2), (2, 4, 9), ((3,), (2,), (2,))),
        (nn.Conv3d(4, 6, (1, 3, 5), padding=(0, 1, 2)), (2, 4, 5, 6, 7), ((1, 3, 5), (0, 1, 2), (1, 1, 1))),
    ],
)
def test_padding_and_dilation(layer: nn.Module, size: tuple[int, ...], expected: tuple[tuple[int, ...], ...]) -> None:
    traced = fxprune.trace(nn.Sequential(layer).eval(), torch.randn(size))
    (shape,) = layer_shapes(traced, batch=1).values()
    assert (shape.kernel, shape.padding, shape.dilation) == expected
    assert shape.rows == (1, *size[2:])


@pytest.mark.parametrize("shape", [CONV, DEPTHWISE, GROUPED, LINEAR])
def test_the_file_of_a_layer_is_that_layer(shape: LayerShape, tmp_path: Path) -> None:
    path = tmp_path / "layer.onnx"
    onnx.save(shape.model(), path)
    session = cpu_session(path)
    sizes = (1, shape.inputs, *shape.rows[1:]) if shape.kind == "conv" else (*shape.rows, shape.inputs)
    (got,) = session.run(None, {"x": np.ones(sizes, np.float32)})
    layer, torch_sizes = shape.layer()
    assert torch_sizes == sizes
    assert got.shape == layer(torch.ones(sizes)).shape


def test_a_grouped_layer_loses_whole_groups() -> None:
    assert DEPTHWISE.resized(48, 48) == LayerShape("conv", 48, 48, 48, (3, 3), (1, 1), (1, 1), (1, 1), (1, 14, 14))
    half = GROUPED.resized(32, 16)
    assert (half.outputs, half.inputs, half.groups) == (32, 16, 2)
    assert GROUPED.resized(1, 1).groups == 1


@pytest.mark.parametrize(
    ("shape", "step", "widths"),
    [
        (CONV, 16, {(64, 32), (32, 32), (64, 16), (32, 16)}),
        (CONV, 32, {(64, 32), (32, 32)}),  # 32 inputs are one step: half of one would be other kernels
        (DEPTHWISE, 16, {(96, 96), (48, 48)}),
        (LINEAR, 1, {(48, 32), (24, 32), (48, 16), (24, 16)}),
    ],
)
def test_which_widths_are_timed(shape: LayerShape, step: int, widths: set[tuple[int, int]]) -> None:
    assert {(probe.outputs, probe.inputs) for probe in widths_to_probe(shape, step)} == widths


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "torch-cpu"])
def test_times_are_the_kernels_own_and_grow_with_the_work(runtime: str) -> None:
    large = LayerShape("conv", 128, 128, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 28, 28))
    small = large.resized(32, 32)
    times = kernel_seconds([small, large, LINEAR], runtime=runtime).seconds
    assert set(times) == {small, large, LINEAR}
    assert min(times.values()) > 0
    assert times[large] > 2 * times[small]  # sixteen times the work
    assert kernel_seconds([]) == KernelTimes({}, 0.0)


@settings(deadline=None)
@given(
    constant=st.floats(0.0, 1.0),
    first=st.floats(0.0, 0.1),
    second=st.floats(0.0, 0.1),
    both=st.floats(0.001, 0.1),
)
def test_the_curve_goes_through_its_points(constant: float, first: float, second: float, both: float) -> None:
    def milliseconds(shape: LayerShape) -> float:
        return constant + first * shape.outputs + second * shape.inputs + both * shape.outputs * shape.inputs

    seconds = {shape: milliseconds(shape) / 1e3 for shape in widths_to_probe(CONV, 16)}
    layer = fit_layer(CONV, seconds, 16)
    for shape in seconds:
        assert layer.at(shape.outputs, shape.inputs) == pytest.approx(milliseconds(shape), rel=1e-6)


def test_no_width_saves_time() -> None:
    full, fewer = widths_to_probe(DEPTHWISE, 16)
    layer = fit_layer(DEPTHWISE, {full: 1e-3, fewer: 1.2e-3}, 16)  # noise: half the width took longer
    assert layer.first >= 0
    assert layer.constant > 0
    assert layer.second == layer.both == 0


@settings(deadline=None, max_examples=40)
@given(step=st.sampled_from([1, 4, 8, 16, 32]), seed=st.integers(0, 1000), constant=st.floats(0, 3))
def test_the_step_is_found_through_noise(step: int, seed: int, constant: float) -> None:
    widths = np.arange(32, 65)
    seconds = constant + -(-widths // step) * step / 32
    noise = np.random.default_rng(seed).normal(1, 0.002, len(widths))
    assert find_step(widths, seconds * noise) == step


def test_times_that_do_not_depend_on_width_have_no_step() -> None:
    assert find_step(np.arange(32, 65), np.ones(33)) == 1


def test_a_staircase_ends_at_a_width_of_the_layer() -> None:
    stairs = staircase(CONV)
    assert [shape.outputs for shape in stairs] == list(range(32, 65))
    assert {shape.inputs for shape in stairs} == {32}
    assert max(STEPS) <= 64


class Counted:
    """Times by formula instead of by clock, and says what it was asked: real timings are tested above."""

    def __init__(self, waited: float = 0.0) -> None:
        self.asked: list[LayerShape] = []
        self.waited = waited

    def __call__(self, shapes: list[LayerShape], runtime: str, threads: int) -> KernelTimes:
        self.asked += shapes
        return KernelTimes({shape: -(-shape.outputs // 8) * 8e-6 * shape.inputs for shape in shapes}, self.waited)


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    measure = Counted()
    first = probe([CONV, LINEAR], cache=tmp_path, measure=measure)
    assert first.step == 8
    assert first.fresh == len(measure.asked)
    again = Counted()
    second = probe([CONV, LINEAR], cache=tmp_path, measure=again)
    assert again.asked == []
    assert second.seconds == first.seconds
    assert second.step == 8
    probe([CONV, DEPTHWISE], cache=tmp_path, measure=again)
    assert set(again.asked) == set(widths_to_probe(DEPTHWISE, 8))


def test_times_of_a_busy_machine_are_used_and_not_kept(tmp_path: Path) -> None:
    busy = probe([CONV], cache=tmp_path, measure=Counted(waited=0.3))
    assert busy.seconds[CONV] > 0
    assert "(30% of the time was spent waiting)" in busy.doubt
    assert list(tmp_path.iterdir()) == []
    measure = Counted(waited=0.05)
    quiet = probe([CONV], cache=tmp_path, measure=measure)
    assert quiet.fresh == busy.fresh == len(measure.asked)
    assert quiet.doubt == ""
    kept = json.loads(next(tmp_path.iterdir()).read_text())
    probe([CONV, DEPTHWISE], cache=tmp_path, measure=Counted(waited=0.3))
    assert json.loads(next(tmp_path.iterdir()).read_text()) == kept
    assert probe([CONV], cache=tmp_path, measure=Counted(waited=0.3)).doubt == ""  # nothing was measured


def test_waiting_for_other_work_is_noticed() -> None:
    """A process that sleeps in half of its calls waits; the sum of both clocks says so."""
    clocks = _Clocks()
    runner = cast(_Called, Sleeper())
    _run({CONV: runner}, clocks)
    assert clocks.waited_share == pytest.approx(0.75)


class Sleeper:
    """Stands for a call that takes a millisecond, of which a quarter is its own."""

    def run(self) -> tuple[float, float]:
        return 1e-3, 0.25e-3


def test_other_threads_have_another_cache(tmp_path: Path) -> None:
    measure = Counted()
    probe([CONV], cache=tmp_path, measure=measure, threads=1)
    count = len(measure.asked)
    probe([CONV], cache=tmp_path, measure=measure, threads=2)
    assert len(measure.asked) == 2 * count


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 1}', '{"layers": [{"shape": {}, "seconds": 1}], "step": 8}']
)
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, content: str) -> None:
    probe([CONV], cache=tmp_path, measure=Counted())
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    measure = Counted()
    probe([CONV], cache=tmp_path, measure=measure)
    assert measure.asked
    assert json.loads(path.read_text())["step"] == 8


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path / "probes"
    monkeypatch.delenv("FXPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_cache() == tmp_path / "cache" / "fxprune" / "probes"


def test_a_model_of_linear_layers_alone(tmp_path: Path) -> None:
    measure = Counted()
    assert probe([LINEAR], cache=tmp_path, measure=measure).step == 8
    assert probe([], cache=tmp_path / "none", measure=measure).step == 1
