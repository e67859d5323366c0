"""Times by module from real profiles, and why a layer kept more of its time than of its work."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.deploy.gain import Gain, LayerGain, Work, _Judge, explain_gain, work_by_module
from fxprune.deploy.latency_budget import served
from fxprune.deploy.layer_times import LayerTime, _scatter_ms, _without_waiting, layer_times
from fxprune.deploy.onnx import ExportReport
from fxprune.deploy.roofline import Roofline, measure_roofline
from fxprune.deploy.runtimes import KernelTime
from fxprune.errors import InputError


class Net(nn.Module):
    """Convolutions with norms and a residual sum, attention, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.body(x)).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x).mean(1))


Model = tuple[fxprune.Traced, ExportReport]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Return the model as it is served, and with 52 channels instead of 64 in one convolution."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("models"), Net().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.1, 0.1)
    traced = fxprune.trace(model, torch.randn(2, 3, 16, 16))
    groups = fxprune.find_groups(traced)
    removal = groups.removal(groups.axis("body.0.weight", 0)[:12]) if groups.live.any() else {}
    pruned = fxprune.cut(traced, removal, groups)
    return {
        name: (found, fxprune.export_onnx(found, folder / f"{name}.onnx"))
        for name, found in (("dense", served(traced)), ("pruned", served(pruned)))
    }


@pytest.fixture(scope="module")
def gain(models: dict[str, Model]) -> Gain:
    return explain_gain(models["dense"], models["pruned"], step=16, seconds=0.5)


def row(gain: Gain, layer: str) -> LayerGain:
    return next(row for row in gain.layers if row.layer == layer)


def test_every_kernel_finds_its_module(models: dict[str, Model]) -> None:
    times = layer_times({name: report for name, (_, report) in models.items()}, runtime="onnxruntime-cpu", seconds=0.5)
    for found in times.values():
        assert {"stem.0", "body.0", "attention", "head"} <= set(found)
        assert "Conv" in found["stem.0"].kernels
        assert all(time.ms > 0 for time in found.values())
        assert not any("BatchNormalization" in time.kernels for time in found.values())
    assert times["dense"]["body.0"].ms > times["dense"]["stem.0"].ms  # twenty times the work


def test_work_is_that_of_the_graph(models: dict[str, Model]) -> None:
    work = work_by_module(models["dense"][0], batch=3)
    assert work["stem.0"].macs == 3 * 64 * 3 * 9 * 256
    assert (work["stem.0"].outputs, work["stem.0"].inputs) == (64, 3)
    assert work["head"].macs == 3 * 640
    assert work["stem.0"].bytes == 4 * (3 * (3 + 64) * 256 + 64 * 27 + 64)
    total = fxprune.count(models["dense"][0]).macs
    assert sum(part.macs for part in work.values()) == 3 * total


def test_the_rows_have_before_and_after(gain: Gain) -> None:
    stem, head = row(gain, "stem.0"), row(gain, "head")
    assert (stem.before.outputs, stem.after.outputs) == (64, 52)
    assert (head.before.inputs, head.after.inputs) == (64, 52)
    assert stem.before_ms > 0
    values = gain.to_dict()
    assert {entry["layer"] for entry in values["layers"]} == {entry.layer for entry in gain.layers}


def test_a_runtime_without_a_profile_is_refused(models: dict[str, Model]) -> None:
    with pytest.raises(InputError, match="no time per node"):
        explain_gain(models["dense"], models["pruned"], runtime="torch-cpu")
    with pytest.raises(InputError, match="takes no ONNX files"):
        measure_roofline(runtime="torch-cpu")


def test_the_machine_has_limits() -> None:
    limits = measure_roofline(runtime="onnxruntime-cpu", seconds=0.5)
    assert 1e8 < limits.macs_per_s < 1e14
    assert 1e8 < limits.bytes_per_s < 1e13
    assert limits.attainable(limits.ridge / 2) == pytest.approx(limits.macs_per_s / 2)
    assert limits.attainable(limits.ridge * 2) == limits.macs_per_s


# ---------------------------------------------------------------- the reasons, on figures made for them

JUDGE = _Judge(Roofline(macs_per_s=1e9, bytes_per_s=1e8), step=16, whole_ms=10.0)
FULL = Work(macs=100e6, bytes=1e6, outputs=64, inputs=64)


def reason(after: Work, ms: float, kernels: tuple[str, ...] = ("Conv",), before: Work = FULL) -> str:
    return JUDGE.reason(before, after, LayerTime(4.0, ("Conv",)), LayerTime(ms, kernels))


@pytest.mark.parametrize(
    ("after", "ms", "kernels", "expected"),
    [
        (Work(50e6, 1e6, 32, 64), 2.0, ("Conv",), ""),
        (Work(50e6, 1e6, 32, 64), 2.2, ("Conv",), ""),
        (Work(50e6, 1e6, 33, 64), 3.0, ("Conv",), "33 output channels are no multiple of 16"),
        (Work(50e6, 1e6, 64, 33), 3.0, ("Conv",), "33 input channels are no multiple of 16"),
        (Work(50e6, 1e6, 32, 64), 3.0, ("Transpose", "Conv"), "Transpose: changes of layout were inserted"),
        (Work(50e6, 1e6, 32, 64), 3.0, ("Conv", "Relu"), "Relu: was not fused any more"),
        (Work(50e6, 1e7, 32, 64), 3.0, ("Conv",), "memory-bound: 5.0 multiply-accumulates per byte"),
        (Work(50e6, 1e6, 16, 64), 3.0, ("Conv",), "16 channels are too few"),
        (Work(50e6, 1e6, 32, 64), 3.0, ("Conv",), "no known cause"),
        (Work(1e3, 1e2, 32, 64), 0.019, ("Conv",), "too short"),
        (FULL, 5.0, ("Conv",), ""),
    ],
)
def test_reasons(after: Work, ms: float, kernels: tuple[str, ...], expected: str) -> None:
    found = reason(after, ms, kernels)
    assert found.startswith(expected) if expected else found == ""


@pytest.mark.parametrize(("scatter", "expected"), [(0.9, "33 output channels"), (1.0, ""), (3.0, "")])
def test_no_reason_is_given_for_what_a_second_measurement_might_not_show(scatter: float, expected: str) -> None:
    after, exact = Work(50e6, 1e6, 33, 64), LayerTime(4.0, ("Conv",))
    found = JUDGE.reason(FULL, after, exact, LayerTime(3.0, ("Conv",), scatter))
    assert found.startswith(expected) if expected else found == ""
    found = JUDGE.reason(FULL, after, LayerTime(4.0, ("Conv",), 2 * scatter), LayerTime(3.0, ("Conv",)))
    assert found.startswith(expected) if expected else found == ""  # half of the work: half of its scatter
    found = JUDGE.reason(Work(), Work(), LayerTime(0.0, ()), LayerTime(1.0, ("Relu",), scatter))
    assert found == ("Relu: was not fused any more" if expected else "")


def test_what_was_fused_before_and_is_not_any_more() -> None:
    before, after = LayerTime(0.0, ()), LayerTime(0.5, ("Relu",))
    assert JUDGE.reason(Work(), Work(), before, after) == "Relu: was not fused any more"
    assert JUDGE.reason(Work(), Work(), before, LayerTime(0.001, ("Relu",))) == ""


def test_waiting_is_taken_off_long_kernels_alone() -> None:
    short, long, longer = (KernelTime(name, "Conv", "CPU", 0.0) for name in "abc")
    found = _without_waiting({short: 1.0, long: 10.0, longer: 30.0}, cpu_ms=21.0)
    assert found == {short: 1.0, long: 5.0, longer: 15.0}
    assert _without_waiting({short: 1.0, long: 10.0}, cpu_ms=12.0) == {short: 1.0, long: 10.0}


def test_times_scatter_by_the_least_of_every_other_run_and_by_a_tick() -> None:
    steady, shaky = KernelTime("a", "Conv", "CPU", 0.0), KernelTime("b", "Conv", "CPU", 0.0)
    once, twice = {steady: [2.0, 2.0, 2.5], shaky: [3.0, 2.0, 3.5, 2.1]}, {steady: [2.0, 1.0, 2.5, 1.5]}
    assert _scatter_ms(once, 4) == pytest.approx({steady: 0.75e-3, shaky: 1.0})
    assert _scatter_ms(twice, 2) == pytest.approx({steady: 1.0})
    assert _scatter_ms({steady: [2.0]}, 1) == pytest.approx({steady: 1e-3})


def test_the_folder_of_a_profile_is_gone(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    layer_times({"dense": models["dense"][1]}, runtime="onnxruntime-cpu", seconds=0.1)
    assert list(tmp_path.iterdir()) == []
