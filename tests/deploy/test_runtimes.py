"""Every runtime behind one protocol: the same numbers, named placement, and clear words where one is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from fxprune.capture.traced import Traced
from fxprune.deploy.runtimes import DEFAULT_RUNTIME, RUNTIMES, get_runtime, random_feeds, survey
from fxprune.deploy.runtimes.base import PlacedNode, Placement, TensorSpec
from fxprune.deploy.runtimes.ort import CPU, OnnxRuntime, cpu_session
from fxprune.deploy.runtimes.ort_placement import astray, recorded_placement
from fxprune.errors import EnvironmentProblem, InputError, VerifyError

MakeModel = Callable[..., Path]


@pytest.fixture
def identity(tmp_path: Path) -> MakeModel:
    def make(kind: int, shape: list[int | str | None]) -> Path:
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "identity",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", kind, shape)],
        )
        path = tmp_path / "identity.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        return path

    return make


@pytest.fixture
def program(convnet: Traced, tmp_path: Path) -> Path:
    path = tmp_path / "convnet.pt2"
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(convnet.module, convnet.args, dynamic_shapes=({0: batch},)), path)
    return path


def _needs(name: str) -> Any:
    runtime = get_runtime(name)
    if runtime.available():
        pytest.skip(runtime.available())
    return runtime


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL])
def test_feeds_run(identity: MakeModel, kind: int) -> None:
    session = get_runtime(DEFAULT_RUNTIME).load(identity(kind, ["n", 5]))
    feeds = random_feeds(session.inputs, batch=3, seed=1)
    assert feeds["x"].shape == (3, 5)
    np.testing.assert_array_equal(session.run(feeds)["y"], feeds["x"])
    np.testing.assert_array_equal(random_feeds(session.inputs, batch=3, seed=1)["x"], feeds["x"])


def test_other_dynamic_dimensions_need_a_size(identity: MakeModel) -> None:
    session = get_runtime(DEFAULT_RUNTIME).load(identity(TensorProto.FLOAT, ["n", "height", None]))
    assert session.inputs == (TensorSpec("x", np.dtype("float32"), ("n", "height", "x.2")),)
    assert session.inputs[0].is_dynamic
    assert random_feeds(session.inputs, sizes={"height": 7, "x.2": 2})["x"].shape == (1, 7, 2)
    with pytest.raises(InputError, match="height=N"):
        random_feeds(session.inputs)


def test_unknown_types_are_refused(identity: MakeModel) -> None:
    with pytest.raises(InputError, match=r"tensor\(string\)"):
        get_runtime(DEFAULT_RUNTIME).load(identity(TensorProto.STRING, [2]))


@pytest.mark.parametrize("name", [DEFAULT_RUNTIME, "openvino"])
def test_onnx_runtimes_agree_and_place_nodes(name: str, files: dict[str, Path]) -> None:
    runtime = _needs(name)
    session = runtime.load(files["small"], threads=1)
    reference = cpu_session(files["small"])
    feeds = random_feeds(session.inputs, batch=2)
    (given,), expected = session.run(feeds).values(), reference.run(None, feeds)[0]
    np.testing.assert_allclose(given, expected, atol=1e-5)
    session.prepare(feeds)()
    assert sum(session.placement().counts.values()) >= 3
    assert runtime.clock(1) == "cpu"
    assert runtime.clock(2) == "wall"
    session.close()


@pytest.mark.parametrize("name", [DEFAULT_RUNTIME, "openvino"])
def test_profiles_have_a_time_for_every_convolution(name: str, files: dict[str, Path]) -> None:
    session = _needs(name).load(files["small"], profile=True)
    infer = session.prepare(random_feeds(session.inputs))
    infer()
    events = session.profile()
    assert sum("conv" in event.op.lower() for event in events) >= 3
    assert all(event.microseconds >= 0 for event in events)
    session.close()


def test_without_a_profile_there_is_none(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="profile=True"):
        get_runtime(DEFAULT_RUNTIME).load(files["small"]).profile()


@pytest.mark.parametrize("name", ["torch-cpu", pytest.param("torch-cpu-compile", marks=pytest.mark.slow)])
def test_torch_runs_programs_and_captured_models(name: str, convnet: Traced, program: Path) -> None:
    runtime = _needs(name)
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)}
    expected = convnet.run((torch.from_numpy(feeds["x"]),))[0].numpy()
    for model in (convnet, program):
        session = runtime.load(model)
        (spec,) = session.inputs
        assert isinstance(spec.shape[0], str)
        assert spec.shape[1:] == (3, 8, 8)
        (given,) = session.run({spec.name: feeds["x"]}).values()
        np.testing.assert_allclose(given, expected, atol=1e-5)
        session.prepare({spec.name: feeds["x"]})()
        assert session.placement().counts.keys() == {"cpu"}
        with pytest.raises(VerifyError, match="do not match"):
            session.run({"nothing": feeds["x"]})
        with pytest.raises(InputError, match="time per node"):
            session.profile()
        session.close()


def test_threads_of_torch_are_set_back() -> None:
    before = torch.get_num_threads()
    traced = Traced(torch.fx.symbolic_trace(torch.nn.ReLU()), (torch.randn(2, 3),))
    session = get_runtime("torch-cpu").load(traced, threads=2)
    assert torch.get_num_threads() == 2
    session.close()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("name", "model", "why"),
    [
        ("torch-cpu", torch.nn.ReLU(), "capture it with fxprune.trace"),
        ("torch-cpu", "none.pt2", "there is no file none.pt2"),
        ("torch-cpu", __file__, "not a .pt2 file"),
        (DEFAULT_RUNTIME, torch.nn.ReLU(), "takes the path of an ONNX file, not a ReLU"),
        (DEFAULT_RUNTIME, "none.onnx", "there is no file none.onnx"),
        (DEFAULT_RUNTIME, __file__, "onnxruntime-cpu cannot load"),
    ],
)
def test_what_is_no_model_is_refused(name: str, model: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        get_runtime(name).load(model)


def test_a_damaged_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt2"
    path.write_bytes(b"not an archive")
    with pytest.raises(InputError, match=r"torch cannot load .*broken.pt2"):
        get_runtime("torch-cpu").load(path)


def test_a_program_for_torch_is_not_for_onnxruntime(program: Path) -> None:
    with pytest.raises(InputError, match="use torch-cpu"):
        get_runtime(DEFAULT_RUNTIME).load(program)


def test_missing_weights_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.load(files["small"])
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    get_runtime(DEFAULT_RUNTIME).load(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"keeps its weights in weights.bin, which is not in"):
        get_runtime(DEFAULT_RUNTIME).load(path)


@pytest.mark.parametrize("name", [DEFAULT_RUNTIME, "openvino", "torch-cpu"])
def test_refuses_no_threads(name: str, files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="threads is 0"):
        _needs(name).load(files["small"], threads=0)


def test_inputs_of_another_shape_are_refused(files: dict[str, Path]) -> None:
    session = get_runtime(DEFAULT_RUNTIME).load(files["small"])
    with pytest.raises(VerifyError, match="cannot run"):
        session.run({spec.name: np.zeros((1, 1), np.float32) for spec in session.inputs})


def test_unknown_runtimes_are_refused() -> None:
    with pytest.raises(InputError, match="there is no runtime 'onnx'; known are onnxruntime-cpu"):
        get_runtime("onnx")


def test_the_survey_has_an_install_line_for_everything_that_is_missing() -> None:
    found = survey()
    assert tuple(found) == RUNTIMES
    assert found[DEFAULT_RUNTIME] == ""
    assert all("install" in missing for missing in found.values() if missing)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt", "torch-cuda", "torch-cuda-compile"])
def test_without_a_gpu_it_says_so(name: str, files: dict[str, Path]) -> None:
    with pytest.raises(EnvironmentProblem, match=f"{name}: .*install"):
        get_runtime(name).load(files["small"])


@pytest.mark.parametrize(
    ("name", "package"), [(DEFAULT_RUNTIME, "onnxruntime"), ("torch-cpu", "torch"), ("openvino", "openvino")]
)
def test_without_the_package_it_says_what_to_install(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblem, match=r"pip install .*"):
        get_runtime(name).load("model.onnx")


class _Fallen(OnnxRuntime):
    """Claims a provider that the session will not have, as onnxruntime-gpu does on a machine without CUDA."""

    def available(self) -> str:
        return ""

    def create(self, path: Path, options: Any) -> Any:
        return OnnxRuntime("onnxruntime-cpu", CPU).create(path, options)


def test_a_session_that_fell_back_to_the_cpu_is_refused_by_node(files: dict[str, Path]) -> None:
    runtime = _Fallen("onnxruntime-cuda", "CUDAExecutionProvider", "cuda", package="onnxruntime-gpu")
    with pytest.raises(EnvironmentProblem, match=r"run \d nodes .* without CUDAExecutionProvider: \w+ \(Conv\)"):
        runtime.load(files["small"])


def test_nodes_that_compute_shapes_belong_on_the_cpu() -> None:
    shape, gather, conv = PlacedNode("a", "Shape"), PlacedNode("b", "Gather"), PlacedNode("c", "Conv")
    assert astray(Placement({CPU: (shape, gather)}), CPU) == []
    assert astray(Placement({CPU: (shape, gather, conv)}), CPU) == [conv]
    assert astray(Placement({CPU: (gather,), "CUDAExecutionProvider": (conv,)}), CPU) == [gather]
    assert astray(Placement({}), CPU) == []


def test_versions_that_record_no_placement_are_profiled(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = get_runtime(DEFAULT_RUNTIME).load(files["small"])
    recorded = session.placement()
    assert set(recorded.nodes) == {CPU}
    base = onnxruntime.InferenceSession.__bases__[0]
    monkeypatch.delattr(base, "get_provider_graph_assignment_info", raising=False)
    assert recorded_placement(session.raw) is None  # type: ignore[attr-defined]
    ops = [node.op for node in session.placement().nodes[CPU]]
    assert ops.count("Conv") == [node.op for node in recorded.nodes[CPU]].count("Conv") == 3


def test_versions_without_devices_use_the_provider_list(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(onnxruntime, "get_ep_devices")
    assert get_runtime(DEFAULT_RUNTIME).load(files["small"]).placement().counts[CPU] >= 3
    assert not get_runtime(DEFAULT_RUNTIME).available()


def test_devices_are_looked_for_by_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [SimpleNamespace(ep_name="CUDAExecutionProvider")])
    assert get_runtime("onnxruntime-cuda").available() == ""
    assert "TensorrtExecutionProvider" in get_runtime("onnxruntime-tensorrt").available()
