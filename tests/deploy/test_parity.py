"""The file against its graph, and comparisons that are refused because they could not fail."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from fxprune.capture.traced import Traced
from fxprune.deploy.onnx import export_onnx
from fxprune.deploy.parity import OutputParity, Parity, check_parity
from fxprune.errors import InputError, VerifyError


def _parity(traced: Traced, tmp_path: Path, **options: object) -> Parity:
    return check_parity(traced, export_onnx(traced, tmp_path / "model.onnx").path, **options)


def test_agrees_at_every_batch(convnet: Traced, tmp_path: Path) -> None:
    parity = _parity(convnet, tmp_path, batches=(1, 4))
    assert parity.batches == (1, 4)
    assert 0 <= parity.max_relative_error < 1e-5
    assert f"{parity.max_relative_error:.2g}" in str(parity)
    parity.require(1e-5)


def test_a_static_batch_runs_as_it_is(capture, tmp_path: Path) -> None:
    parity = _parity(capture(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8), dynamic=False), tmp_path)
    assert parity.batches == (2,)


def test_the_error_is_relative_to_the_largest_value(convnet: Traced, tmp_path: Path) -> None:
    path = export_onnx(convnet, tmp_path / "model.onnx").path
    with torch.no_grad():
        convnet.module.get_parameter("head.weight").mul_(1.01)
        convnet.module.get_parameter("head.bias").mul_(1.01)
    parity = check_parity(convnet, path)
    assert parity.max_relative_error == pytest.approx(0.01 / 1.01, rel=1e-3)
    with pytest.raises(VerifyError, match=r"more than 0.001.*smallest tolerance that would pass is 0.0099"):
        parity.require(1e-3)


class Several(nn.Module):
    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return {"sum": x + ids[:, None], "best": x.argmax(1) + self.shift, "mask": x > 9.0, "mean": x.mean()}


def test_outputs_of_all_kinds(capture, tmp_path: Path) -> None:
    parity = _parity(capture(Several(), torch.randn(2, 6), torch.tensor([3, 4])), tmp_path)
    assert [output.dtype for output in parity.outputs] == ["float32", "int64", "bool", "float32"]
    assert parity.max_relative_error < 1e-6


def test_integers_must_be_equal(capture, tmp_path: Path) -> None:
    args = torch.randn(2, 6), torch.tensor([3, 4])
    path = export_onnx(capture(Several(), *args), tmp_path / "model.onnx").path
    with pytest.raises(VerifyError, match=r"int64\) differs from the graph in 4 of 4 values"):
        check_parity(capture(Several(shift=1), *args), path)


class Zeros(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 0).sum(1)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x * 0 + 3


class Unheard(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + torch.arange(3.0)


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 100).sqrt()


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Zeros(), "is 0 everywhere"),
        (Constant(), "is 3 everywhere"),
        (Unheard(), "depends on its inputs"),
        (NotANumber(), "NaN"),
    ],
)
def test_a_vacuous_reference_is_refused(capture, tmp_path: Path, module: nn.Module, why: str) -> None:
    with pytest.raises(VerifyError, match=why):
        _parity(capture(module, torch.randn(2, 3)), tmp_path)


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, float("-inf"))


def test_infinity_must_be_in_the_same_places(capture, tmp_path: Path) -> None:
    x = torch.randn(2, 50)
    path = export_onnx(capture(Infinite(), x), tmp_path / "model.onnx").path
    assert check_parity(capture(Infinite(), x), path).max_relative_error == 0
    with pytest.raises(VerifyError, match="not finite"):
        check_parity(capture(nn.ReLU(), x), path)


class Part(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x[:, :0] + 1


def test_an_empty_output_agrees(capture, tmp_path: Path) -> None:
    parity = _parity(capture(Part(), torch.randn(2, 3)), tmp_path)
    assert [output.max_relative_error for output in parity.outputs] == [0.0, 0.0]


def test_another_models_file_is_refused(convnet: Traced, capture, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    path = export_onnx(convnet, tmp_path / "model.onnx").path
    with pytest.raises(VerifyError, match=r"is float32\[1, 5\] in the file and float32\[1, 3, 8, 8\] in the graph"):
        check_parity(capture(nn.ReLU(), x), path)
    with pytest.raises(InputError, match=r"takes 1 inputs .* and the graph 2"):
        check_parity(capture(Several(), torch.randn(2, 6), torch.tensor([3, 4])), path)
    with pytest.raises(VerifyError, match="cannot run the file on inputs that the graph takes"):
        check_parity(capture(nn.Flatten(), torch.randn(2, 4)), path)


def test_files_that_cannot_be_loaded(convnet: Traced, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        check_parity(convnet, tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(InputError, match="onnxruntime-cpu cannot load"):
        check_parity(convnet, broken)


def test_a_damaged_weight_is_found(convnet: Traced, tmp_path: Path) -> None:
    path = export_onnx(convnet, tmp_path / "model.onnx").path
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "head.weight"))
    onnx.save(model, path)
    assert check_parity(convnet, path).max_relative_error > 1e-3


def test_not_a_number_never_passes() -> None:
    with pytest.raises(VerifyError):
        Parity((OutputParity("y", "float32", float("nan")),), (1,)).require(1.0)
