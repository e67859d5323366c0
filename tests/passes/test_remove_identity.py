"""What computes nothing goes; what only looks so stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.capture import trace
from fxprune.deploy.onnx import export_onnx
from fxprune.deploy.parity import check_parity
from fxprune.passes import RemoveIdentity
from fxprune.pipeline import Pipeline
from fxprune.testing import check_pass

X = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """One function between two others, so that it is neither input nor output."""

    def __init__(self, compute: Callable[[Tensor], Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.compute = compute
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        x = x.sin()
        x = self.layer(x) if self.layer is not None else x
        y = self.compute(x)
        return [value.cos() for value in y] if isinstance(y, list) else y.cos()


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()],
    ids=lambda layer: type(layer).__name__,
)
def test_dropout_goes(layer: nn.Module) -> None:
    result = check_pass(RemoveIdentity(), Net(torch.relu, layer), X, changed=["layer"])
    assert not list(result.traced.module.named_children())


def test_dropout_without_a_module_goes() -> None:
    check_pass(RemoveIdentity(), Net(lambda x: F.dropout(x, training=False) + 1), X, changed=["dropout"])


def test_dropout_called_twice_goes_twice() -> None:
    model = nn.Sequential(nn.ReLU(), drop := nn.Dropout(), nn.Tanh(), drop)
    check_pass(RemoveIdentity(), model, X, changed=["1", "3"])


def test_an_identity_module_goes() -> None:
    """Capture leaves none, but a pass may."""
    traced = trace(Net(torch.relu), X)
    graph = traced.module.graph
    traced.module.add_submodule("inner.same", nn.Identity())
    sin = next(node for node in graph.nodes if node.name == "sin")
    with graph.inserting_after(sin):
        same = graph.call_module("inner.same", (sin,))
    sin.replace_all_uses_with(same, delete_user_cb=lambda user: user is not same)
    (report,) = Pipeline([RemoveIdentity()])(traced).report
    assert [change.place for change in report.changes] == ["inner.same"]


IDENTITIES: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "reshape": (lambda x: x.reshape(x.shape), ["reshape"]),
    "reshape with an inferred size": (lambda x: x.reshape(-1, 3, 4, 5), ["reshape"]),
    "view": (lambda x: x.view(x.shape[0], 3, -1, 5), ["view"]),
    "expand": (lambda x: x.expand(-1, 3, -1, -1), ["expand"]),
    "flatten": (lambda x: x.flatten(1, 1), ["flatten"]),
    "unflatten": (lambda x: torch.ops.aten.unflatten.int(x, 1, [3]), ["unflatten"]),
    "slice": (lambda x: x[:, :], ["slice_1"]),
    "slice of all there is": (lambda x: x[:, :3], ["slice_1"]),
    "slice beyond the end": (lambda x: x[:, :, :7], ["slice_1"]),
    "slice to the batch": (lambda x: x[: x.shape[0]], ["slice_1"]),
    "clone": (lambda x: x.clone(), ["clone"]),
    "contiguous": (lambda x: x.clone(memory_format=torch.contiguous_format), ["clone"]),
    "to": (lambda x: x.to(x.dtype), ["to"]),
    "permute": (lambda x: x.permute(0, 1, 2, -1), ["permute"]),
    "transpose": (lambda x: x.transpose(3, -1), ["transpose"]),
    "repeat": (lambda x: x.repeat(1, 1, 1, 1), ["repeat"]),
    "cat": (lambda x: torch.cat([x]), ["cat"]),
    "pad": (lambda x: F.pad(x, (0, 0, 0, 0)), ["pad"]),
    "reflect": (lambda x: F.pad(x, (0, 0, 0, 0), mode="reflect"), ["pad"]),
    "times one": (lambda x: x * 1, ["mul"]),
    "one times": (lambda x: 1.0 * x, ["mul"]),
    "over one": (lambda x: x / 1, ["div"]),
    "plus zero": (lambda x: 0 + x, ["add"]),
    "minus zero": (lambda x: x - 0.0, ["sub"]),
    "to the one": (lambda x: x**1, ["pow_1"]),
    "several at once": (lambda x: (x[:, :] * 1 + 0).reshape(x.shape), ["slice_1", "mul", "add", "reshape"]),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_what_goes(case: str) -> None:
    compute, places = IDENTITIES[case]
    result = check_pass(RemoveIdentity(), Net(compute), X, changed=places)
    assert [node.name for node in result.traced.module.graph.nodes] == ["x", "sin", "cos", "output"]


STAYS: dict[str, Callable[[Tensor], Any]] = {
    "another shape": lambda x: x.reshape(x.shape[0], 12, 5),
    "another dtype": lambda x: x.to(torch.float32),
    "part of it": lambda x: x.narrow(1, 0, 2),
    "every other": lambda x: x[::2],
    "its end": lambda x: x[1:],
    "permuted": lambda x: x.permute(0, 1, 3, 2),
    "twice": lambda x: x * 2 + 1,
    "one minus it": lambda x: 1 - x,
    "rounded": lambda x: torch.div(x * 9, 1, rounding_mode="floor"),
    "integers to floats": lambda x: (x * 9).int() / 1,
    "integers times a float": lambda x: (x * 9).int() * 1.0,
    "a broadcast": lambda x: x.narrow(1, 0, 1).expand(-1, 3, -1, -1),
    "a constant pad": lambda x: F.pad(x, (0, 1)),
    "repeated": lambda x: x.repeat(1, 2, 1, 1),
    "a true": lambda x: (x > 0) * 1,
}


@pytest.mark.parametrize("case", STAYS)
def test_what_stays(case: str) -> None:
    check_pass(RemoveIdentity(), Net(STAYS[case]), X)


def test_what_keeps_the_shape_at_the_only_batch_that_the_code_allows_is_an_identity() -> None:
    """The exporter fixes the batch where the code names it, so that there is no other to think of."""
    net = Net(lambda x: x.narrow(1, 0, 2)[..., 0, 0].reshape(2, -1))
    assert not trace(net, X).batch_is_dynamic
    check_pass(RemoveIdentity(), net, X, changed=["reshape"])


@pytest.mark.parametrize(
    ("compute", "place", "reason"),
    [
        (lambda x: x[:1000], "slice_1", "only up to some batch size"),
        (lambda x: torch.ops.aten.slice(x.transpose(0, 1), 1, 0, 9), "slice_1", "only up to some batch size"),
        (lambda x: x.transpose(1, 2).contiguous(), "contiguous", "changes the memory layout"),
        (lambda x: x.to(memory_format=torch.channels_last), "to", "changes the memory layout"),
    ],
)
def test_what_is_no_identity_for_every_input(compute: Callable[[Tensor], Any], place: str, reason: str) -> None:
    check_pass(RemoveIdentity(), Net(compute), X, skipped={place: reason})


def test_dropout_in_training_mode_stays() -> None:
    traced = trace(Net(torch.relu, nn.Dropout()), X)
    traced.module.train()
    (report,) = Pipeline([RemoveIdentity()])(traced).report
    assert not report.changes
    assert "training mode" in report.skips[0].why


def test_dropout_that_drops_nothing_goes_in_training_mode_too() -> None:
    traced = trace(Net(torch.relu, nn.Dropout(0.0)), X)
    traced.module.train()
    (report,) = Pipeline([RemoveIdentity()])(traced).report
    assert [change.place for change in report.changes] == ["layer"]


def test_a_view_behind_a_removed_copy_takes_any_memory_layout() -> None:
    model = Net(lambda x: x.clone(memory_format=torch.contiguous_format).relu().view(x.shape[0], -1))
    result = check_pass(RemoveIdentity(), model, X, changed=["clone"])
    channels_last = X.double().to(memory_format=torch.channels_last)
    torch.testing.assert_close(result.traced.run((channels_last,))[0], model(channels_last))


class Ends(nn.Module):
    """Identities at the input, at the output, and twice in the output."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        y = (x * 1).relu()
        return y.clone(), y + 0, {"same": x.reshape(x.shape)}


def test_outputs_may_be_identities(tmp_path: Any) -> None:
    result = check_pass(RemoveIdentity(), Ends(), X, changed=["mul", "clone", "add", "reshape"])
    outputs = result.traced.module(X.double())
    assert set(outputs[2]) == {"same"}
    assert torch.equal(outputs[2]["same"], X.double())


def test_an_identity_as_the_output_can_be_shipped(tmp_path: Any) -> None:
    traced = Pipeline([RemoveIdentity()])(trace(Ends(), X)).traced
    export_onnx(traced, tmp_path / "ends.onnx")
    check_parity(traced, tmp_path / "ends.onnx").require(1e-5)
