"""Activations become linear by degrees, and the layers around them one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxprune.capture import trace
from fxprune.depth.slopes import set_share
from fxprune.errors import InputError, VerifyError
from fxprune.passes import FuseBatchNorm, LinearizeActivations, Reparameterize
from fxprune.pipeline import Pipeline
from fxprune.testing import check_pass
from tests.depth.networks import ready

IMAGE = torch.randn(2, 3, 9, 9)


def network(activation: nn.Module | None = None) -> nn.Sequential:
    first = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation or nn.SiLU())
    model = ready(nn.Sequential(*first, nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    assert isinstance(model, nn.Sequential)
    return model


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.LeakyReLU(0.1)])
def test_at_a_share_of_zero_nothing_changes(activation: nn.Module) -> None:
    model = network(activation)
    result = check_pass(LinearizeActivations(["0"]), model, IMAGE, changed=["0"])
    found = result.traced.run((IMAGE.double(),))[0]
    assert torch.equal(found, model.double()(IMAGE.double()))
    assert set(result.traced.module.state_dict()) - set(model.state_dict()) == {
        "0_activation.slope",
        "0_activation.share",
    }


def test_a_part_of_it_is_the_formula() -> None:
    model = network().double()
    result = check_pass(LinearizeActivations(["0"], share=0.25, slope=0.5), model, IMAGE, changed=["0"])
    x = model[:2](IMAGE.double())
    expected = model[3:](0.75 * model[2](x) + 0.25 * 0.5 * x)
    assert torch.allclose(result.traced.run((IMAGE.double(),))[0], expected, rtol=0, atol=1e-12)


def test_trained_by_degrees_and_folded_into_one_layer() -> None:
    traced = Pipeline([LinearizeActivations(["0"])])(trace(network(), IMAGE)).traced
    slope = traced.module.get_parameter("0_activation.slope")
    optimizer = torch.optim.SGD(traced.module.parameters(), lr=0.1)
    for step in range(4):
        assert set_share(traced.module, (step + 1) / 4) == 1
        optimizer.zero_grad()
        traced.module(IMAGE).square().mean().backward()
        optimizer.step()
    assert float(slope.detach()) != 1.0
    expected = traced.run((IMAGE,))[0]
    alone = Pipeline([LinearizeActivations(["0"], share=1)])(traced)
    assert torch.allclose(alone.traced.run((IMAGE,))[0], expected, atol=1e-6)
    assert "0_activation.share" not in alone.traced.module.state_dict()
    one = Pipeline([FuseBatchNorm(), Reparameterize()])(alone.traced)
    assert torch.allclose(one.traced.run((IMAGE,))[0], expected, atol=1e-5)
    assert [str(node.target) for node in one.traced.module.graph.find_nodes(op="call_module")] == ["0", "5"]
    assert not Reparameterize()(one.traced).report.changed


def test_linear_at_once_and_again() -> None:
    traced = trace(network(), IMAGE)
    result = Pipeline([LinearizeActivations(["0", "3"], share=1)])(traced)
    assert result.report.changed == 2
    again = LinearizeActivations(["0"], share=1)(result.traced)
    assert again.report[0].skips[0].why == "it has no activation any more"


def test_another_share_is_set_in_place_of_the_old() -> None:
    half = Pipeline([LinearizeActivations(["0"], share=0.5)])(trace(network(), IMAGE)).traced
    other = Pipeline([LinearizeActivations(["0"], share=0.75)])(half)
    assert other.report.changed == 1
    assert float(half.module.get_buffer("0_activation.share")) == 0.5
    assert float(other.traced.module.get_buffer("0_activation.share")) == 0.75


@pytest.mark.parametrize(
    ("layers", "why"),
    [("5", "no activation follows it, but output"), ("2", "no activation follows it, but")],
)
def test_layers_without_an_activation_are_skipped(layers: str, why: str) -> None:
    model = (
        network()
        if layers == "5"
        else nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(324, 2))
    )
    result = LinearizeActivations([layers])(trace(model.eval(), IMAGE))
    assert not result.report.changed
    assert why in result.report[0].skips[0].why


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": "0"}, "give a list of paths"),
        ({"layers": ["0"], "share": 1.5}, r"is not in \[0, 1\]"),
        ({"layers": ["9"]}, "'9' is no convolution or linear layer that is called; there are 0, 3, 5"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LinearizeActivations(**options)(trace(network(), IMAGE))


def test_shares_out_of_range_and_a_constant_output() -> None:
    traced = LinearizeActivations(["0"])(trace(network(), IMAGE)).traced
    with pytest.raises(InputError, match="not in"):
        set_share(traced.module, 2.0)
    model = network()
    nn.init.zeros_(model[5].weight)
    nn.init.zeros_(model[5].bias)
    with pytest.raises(VerifyError, match="proves nothing"):
        Pipeline([LinearizeActivations(["0"], share=1)])(trace(model, IMAGE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_that_the_precision_of_the_model_does_not_have_is_the_nearest(dtype: torch.dtype) -> None:
    """0.3 and 0.7 are no numbers of these types: what they hold is checked, and a second run changes nothing."""
    model = network().to(dtype)
    step = LinearizeActivations(["0"], share=0.3, slope=0.7)
    result = Pipeline([step])(trace(model, IMAGE.to(dtype)))
    assert result.report.changed == 1
    (again,) = Pipeline([step])(result.traced).report
    assert not again.changes
    assert [(skip.place, "is an identity already" in skip.why) for skip in again.skips] == [("0", True)]
    more = Pipeline([LinearizeActivations(["0"], share=0.6)])(result.traced)
    assert more.report.changed == 1
    assert more.traced.module.get_buffer("0_activation.share") == torch.tensor(0.6, dtype=dtype)
