"""The exported file: names, opset, nothing of the machine in it, and atomic."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.traced import Traced
from fxprune.deploy import onnx as export_module
from fxprune.deploy import onnx_file
from fxprune.deploy.onnx import export_onnx
from fxprune.deploy.parity import check_parity
from fxprune.errors import EnvironmentProblem, InputError, VerifyError


def _dims(value: onnx.ValueInfoProto) -> list[Any]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_one_file_with_a_named_batch(convnet: Traced, tmp_path: Path) -> None:
    report = export_onnx(convnet, tmp_path / "model.onnx", metadata={"plan": "abc"})
    model = onnx.load(report.path)
    assert list(tmp_path.iterdir()) == [report.path]
    assert report.data is None
    assert report.bytes == report.path.stat().st_size
    assert _dims(model.graph.input[0]) == ["batch", 3, 8, 8]
    assert _dims(model.graph.output[0]) == ["batch", 5]
    assert report.inputs == (model.graph.input[0].name,)
    assert report.outputs == (model.graph.output[0].name,)
    assert report.opset == model.opset_import[0].version
    written = {entry.key: entry.value for entry in model.metadata_props}
    assert written["plan"] == "abc"
    assert "fxprune.version" in written
    json.dumps(report.to_dict())


def test_a_static_batch_stays_a_number(capture, tmp_path: Path) -> None:
    traced = capture(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8), dynamic=False)
    model = onnx.load(export_onnx(traced, tmp_path / "model.onnx").path)
    assert _dims(model.graph.input[0]) == [2, 3, 8, 8]


def test_nodes_map_to_modules_and_the_file_holds_no_notes(convnet: Traced, tmp_path: Path) -> None:
    report = export_onnx(convnet, tmp_path / "model.onnx")
    model = onnx.load(report.path)
    assert {node.name for node in model.graph.node} <= set(report.modules)
    operators = {node.op_type: report.modules[node.name] for node in model.graph.node}
    assert operators["Conv"] == "features.0"
    assert operators["Relu"] == "features.2"
    assert operators["Gemm"] == "head"
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    content = report.path.read_bytes()
    for trace in (b'File "', b"stack_trace", str(Path.cwd()).encode(), str(Path(torch.__file__).parent).encode()):
        assert trace not in content


@pytest.mark.parametrize("opset", [18, 21])
def test_gives_the_opset_asked_for(convnet: Traced, tmp_path: Path, opset: int) -> None:
    report = export_onnx(convnet, tmp_path / "model.onnx", opset=opset)
    assert report.opset == onnx.load(report.path).opset_import[0].version == opset


def test_refuses_another_opset_than_asked_for(
    convnet: Traced, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match=r"opset 17 was asked for.*only give 18"):
        export_onnx(convnet, tmp_path / "model.onnx", opset=17)
    assert not list(tmp_path.iterdir())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Argmax(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + y, (x * y).argmax(1)


def test_inputs_share_the_batch(capture, tmp_path: Path) -> None:
    traced = capture(Argmax(), torch.randn(2, 7), torch.randn(2, 7))
    model = onnx.load(export_onnx(traced, tmp_path / "model.onnx").path)
    assert [_dims(value) for value in model.graph.input] == [["batch", 7], ["batch", 7]]


def test_exports_in_evaluation_mode_and_restores_it(convnet: Traced, tmp_path: Path) -> None:
    convnet.module.train()
    convnet.module.get_submodule("features.1").eval()
    before = [module.training for module in convnet.module.modules()]
    export_onnx(convnet, tmp_path / "model.onnx")
    assert [module.training for module in convnet.module.modules()] == before
    assert check_parity(convnet, tmp_path / "model.onnx").max_relative_error < 1e-5


class Fixed(nn.Module):
    """Its batch is two whatever the capture says."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(2.0)[:, None]


def test_a_batch_that_the_graph_fixes_is_explained(capture, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Fixed cannot be exported to ONNX: .*(conflict|specialized)") as caught:
        export_onnx(capture(Fixed(), torch.randn(2, 3)), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_a_batch_that_the_exporter_fixes_is_refused(
    convnet: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "named_shapes", lambda traced: None)
    with pytest.raises(VerifyError, match=r"fixed the batch of Convnet .*first dimensions: 2"):
        export_onnx(convnet, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x)


def test_an_operation_without_counterpart_is_named(capture, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown cannot be exported to ONNX: .*airy_ai"):
        export_onnx(capture(Unknown(), torch.randn(2, 3)), tmp_path / "model.onnx")


def test_a_missing_package_says_what_to_install(
    convnet: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*args: Any, **kwargs: Any) -> None:
        raise ModuleNotFoundError("No module named 'fxprune_absent'", name="fxprune_absent.part")

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(EnvironmentProblem, match="fxprune_absent, which is not installed: pip install fxprune_absent"):
        export_onnx(convnet, tmp_path / "model.onnx")


def test_what_an_exporter_prints_is_kept_from_results(
    convnet: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Onnxscript 0.6 prints which rules it applied, which would stand before the JSON of a command."""
    real = torch.onnx.export

    def export(*args: Any, **kwargs: Any) -> Any:
        print("Applied 2 of general pattern rewrite rules.")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", export)
    export_onnx(convnet, tmp_path / "model.onnx")
    assert capsys.readouterr().out == ""


def test_the_old_file_survives_a_failure(convnet: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export_onnx(convnet, tmp_path / "model.onnx").path
    old = path.read_bytes()
    monkeypatch.setattr(onnx_file.onnx.checker, "check_model", _invalid)
    with pytest.raises(VerifyError, match="invalid ONNX model"):
        export_onnx(convnet, path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def _invalid(path: str) -> None:
    raise onnx.checker.ValidationError("broken")


class TestExternalData:
    """Weights in a file of their own, as above 2 GiB."""

    @pytest.fixture(autouse=True)
    def tiny_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_file, "INLINE_LIMIT", 100)

    @pytest.fixture
    def wide(self, capture) -> Traced:
        return capture(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)), torch.randn(2, 20))

    def test_lies_beside_and_is_found_after_a_move(self, wide: Traced, tmp_path: Path) -> None:
        folder = tmp_path / "first"
        folder.mkdir()
        report = export_onnx(wide, folder / "model.onnx")
        assert report.data is not None
        assert set(folder.iterdir()) == {report.path, report.data}
        assert report.bytes == report.path.stat().st_size + report.data.stat().st_size
        moved = folder.rename(tmp_path / "second")
        assert check_parity(wide, moved / "model.onnx").max_relative_error < 1e-5

    def test_replaces_the_weights_of_an_earlier_export(self, wide: Traced, tmp_path: Path) -> None:
        first = export_onnx(wide, tmp_path / "model.onnx")
        stranger = tmp_path / "model.onnx.mine.data"
        stranger.touch()
        with torch.no_grad():
            wide.module.get_parameter("0.weight").add_(1)
        second = export_onnx(wide, tmp_path / "model.onnx")
        assert second.data != first.data
        assert set(tmp_path.iterdir()) == {second.path, second.data, stranger}
        assert check_parity(wide, second.path).max_relative_error < 1e-5

    def test_the_same_weights_give_the_same_files(self, wide: Traced, tmp_path: Path) -> None:
        first = export_onnx(wide, tmp_path / "model.onnx")
        content = first.path.read_bytes()
        assert export_onnx(wide, tmp_path / "model.onnx") == first
        assert first.path.read_bytes() == content

    def test_a_failure_keeps_the_old_pair(self, wide: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = export_onnx(wide, tmp_path / "model.onnx")
        files = {file: file.read_bytes() for file in tmp_path.iterdir()}
        with torch.no_grad():
            wide.module.get_parameter("0.weight").add_(1)
        replace = Path.replace

        def fail(self: Path, target: Path) -> Path:
            if Path(target) == first.path:
                raise KeyboardInterrupt
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            export_onnx(wide, tmp_path / "model.onnx")
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_named_shapes_follow_containers(capture) -> None:
    auto, x = torch.export.Dim.AUTO, torch.randn(2, 3)
    traced = Traced(
        capture(Argmax(), x, x).module,
        ([x, {"a": x}], 1.0),
        {"mask": x, "flag": None},
        dynamic_shapes=([{0: auto, 1: auto}, {"a": (auto, None)}], None, {0: None}, None),
    )
    named = ([{0: "batch", 1: "size_0_1"}, {"a": {0: "batch", 1: None}}], None, {0: None}, None)
    assert export_module.named_shapes(traced) == named


class Attention(nn.Module):
    """Attention whose result is made contiguous before a view, as in many transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.bias = nn.Parameter(torch.randn(3, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, 3, c // 3).transpose(1, 2) for part in self.qkv(x).split(c, 2))
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.unsqueeze(0))
        return self.out(found.transpose(1, 2).contiguous().view(b, t, c))


def test_attention_that_the_exporter_lays_out_anew(tmp_path: Path) -> None:
    """A copy that the fused kernel does not need is dropped; taken apart, the kernel gives what cannot be viewed."""
    torch.manual_seed(0)
    traced = fxprune.trace(Attention().eval(), torch.randn(2, 5, 24))
    for number, model in enumerate((traced, fxprune.cut(traced, fxprune.make_plan(traced, macs=0.6, round_to=1)))):
        report = export_onnx(model, tmp_path / f"{number}.onnx")
        assert check_parity(model, report.path).max_relative_error <= 1e-5
