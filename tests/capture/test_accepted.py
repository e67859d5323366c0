"""What is given to ``trace`` in place of a plain module with plain weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import Pipeline, check_parity, cut, export_onnx, make_plan, passes, trace
from fxprune.errors import InputError, VerifyError

IMAGE = torch.randn(2, 3, 6, 6)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def _halved(model: nn.Module, example: Any = IMAGE) -> nn.Module:
    traced = trace(model, example)
    return Pipeline([passes.PruneChannels(make_plan(traced, macs=0.5, round_to=1))])(traced).traced.module


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: torch.compile(nn.DataParallel(model))])
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    small = _halved(wrap(_net()))
    assert set(small.state_dict()) == set(_net().state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_kept(dtype: torch.dtype) -> None:
    small = _halved(_net().to(dtype), IMAGE.to(dtype))
    assert {value.dtype for value in small.parameters()} == {dtype}


def test_frozen_parameters_are_pruned_and_stay_frozen() -> None:
    small = _halved(_net().requires_grad_(False))
    assert not any(value.requires_grad for value in small.parameters())
    assert sum(value.numel() for value in small.parameters()) < sum(value.numel() for value in _net().parameters())


def test_hooks_and_parametrizations_are_part_of_what_is_computed() -> None:
    model = _net()
    torch.nn.utils.parametrizations.weight_norm(model[3])
    torch.nn.utils.parametrizations.spectral_norm(model[6])
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    traced = trace(model, IMAGE)
    torch.testing.assert_close(traced.run((IMAGE,))[0], model(IMAGE))
    _halved(model)


def _quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear})  # type: ignore[no-any-return, no-untyped-call]


def _sparse() -> nn.Module:
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    return nn.Sequential(layer)


def _scripted(make: Callable[..., Any], *args: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(nn.Sequential(nn.Linear(3, 4)), *args)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: _net, "got function; if it is a factory, call it first"),
        (lambda: _scripted(torch.jit.script), r"TorchScript program.*give the module that it was scripted"),
        (lambda: _scripted(torch.jit.trace, torch.randn(2, 3)), r"TorchScript program"),
        (_quantised, r"0 \(Linear\) is quantised.*prune first"),
        (_sparse, r"0.weight is stored as sparse_coo; make it dense"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), r"0.weight has no size yet.*run the model once"),
    ],
)
def test_what_has_no_layers_to_work_on_is_refused(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        trace(build(), torch.randn(2, 3))
    assert "\n" not in str(caught.value)


def test_inputs_without_a_sample_are_refused() -> None:
    with pytest.raises(InputError, match=r"example input\[0\] has shape \(0, 3, 6, 6\), which holds no sample"):
        trace(_net(), IMAGE[:0])


def test_an_empty_dimension_that_is_no_batch_is_no_obstacle() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that nothing was drawn for it
        first = nn.Linear(0, 4)
    traced = trace(nn.Sequential(first, nn.ReLU(), nn.Linear(4, 6), nn.Linear(6, 4)), torch.randn(2, 0))
    small = cut(traced, make_plan(traced, macs=0.5, round_to=1))  # what gives the same for all inputs has no proof
    assert small.run(small.args)[0].shape == (2, 4)


def test_inputs_on_another_device_are_named() -> None:
    with pytest.raises(InputError, match="the model is on cpu and its inputs on meta: bring both to one device"):
        trace(_net(), IMAGE.to("meta"))


def test_nested_tensors_and_packed_sequences_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        ragged = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)])
    with pytest.raises(InputError, match=r"example input\[0\] is a nested tensor.*to_padded_tensor"):
        trace(nn.Linear(4, 2), ragged)
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    with pytest.raises(InputError, match=r"packed sequence.*padded"):
        trace(nn.GRU(4, 2), (packed,))


def test_code_that_is_made_while_it_runs_is_no_place_to_look_at() -> None:
    class Made(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: dict[str, Any] = {}
            exec("def f(x):\n    return x @ x", made)
            return made["f"](x)  # type: ignore[no-any-return]

    with pytest.raises(InputError, match="does not run") as caught:
        trace(Made(), X)
    assert "<string>" not in str(caught.value)


def test_weights_that_are_no_numbers_are_named() -> None:
    model = _net()
    model.get_parameter("3.weight").data[0, 0, 0, 0] = float("nan")
    with pytest.raises(VerifyError, match=r"not finite\), and 3.weight holds values that are not"):
        _halved(model)


class _Collected(nn.Module):
    """Takes any number of inputs, by place and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, *rest: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        y = self.a(x) + sum(self.b(value) for value in rest)
        return self.c(torch.relu(y * named["gate"] if "gate" in named else y))  # type: ignore[no-any-return]


class _Ordered(_Collected):
    """Takes keyword inputs in an order of its own."""

    def forward(self, x: torch.Tensor, y: Any = None, z: Any = None) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, z, gate=y)


X, Z, GATE = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 1)


@pytest.mark.parametrize(
    ("kind", "args", "kwargs"),
    [
        (_Collected, (X, Z), {}),
        (_Collected, (X, Z, Z), {"gate": GATE}),
        (_Collected, (X,), {"gate": GATE}),
        (_Ordered, (X,), {"z": Z, "y": GATE}),
    ],
)
def test_inputs_that_forward_collects_have_an_open_batch(
    kind: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any], tmp_path: Path
) -> None:
    model = kind().eval()
    traced = trace(model, args, kwargs=kwargs)
    assert traced.batch_is_dynamic
    assert not traced.notes
    small = Pipeline([passes.PruneChannels(make_plan(traced, channels=0.5, round_to=1))])(traced).traced
    export_onnx(small, tmp_path / "model.onnx")
    assert check_parity(small, tmp_path / "model.onnx").max_relative_error < 1e-4
    inputs, named = traced.inputs(batch=3)
    torch.testing.assert_close(traced.run(inputs, named)[0], model(*inputs, **named))


@pytest.mark.parametrize("frozen", ["0.weight", "1.bias", "6.weight"])
def test_some_frozen_parameters_are_pruned_with_the_others(frozen: str) -> None:
    model = _net()
    model.get_parameter(frozen).requires_grad_(False)
    small = _halved(model)
    assert not small.get_parameter(frozen).requires_grad
    assert all(p.requires_grad for name, p in small.named_parameters() if name != frozen)


def test_a_quantised_weight_in_a_plain_layer_is_named() -> None:
    layer = nn.Linear(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = torch.quantize_per_tensor(layer.weight.detach(), 0.1, 0, torch.qint8)
    layer.weight = nn.Parameter(codes, requires_grad=False)
    with pytest.raises(InputError, match="weight"):
        trace(nn.Sequential(layer), torch.randn(2, 3))


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.a(x) - self.b(y)))  # type: ignore[no-any-return]


def test_one_tensor_given_for_two_inputs_stays_two_inputs() -> None:
    """An exporter takes the one for the other, and the graph would never look at the first again."""
    model = _Pair().eval()
    for args, kwargs in (((X, X), {}), ((X,), {"y": X})):
        traced = trace(model, args, kwargs=kwargs)
        given, named = traced.inputs(batch=3, seed=4)
        torch.testing.assert_close(traced.run(given, named)[0], model(*given, **named))


@pytest.mark.parametrize("name", ["code", "graph", "meta"])
def test_a_name_that_a_graph_module_takes_for_itself_is_refused(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(3, 8))
            self.b = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(getattr(self, name)(x)))  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=rf"Named calls '{name}'.*another name, or trace torch.nn.Sequential"):
        trace(Named(), X)
    small = _halved(nn.Sequential(Named().eval()), X)
    assert small.get_parameter(f"0.{name}.weight").shape[0] < 8
