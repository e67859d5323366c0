"""Vectors of scale zero go, and a split stays only where it is cheaper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.capture import Traced, trace
from fxprune.deploy.onnx import export_onnx
from fxprune.deploy.parity import check_parity
from fxprune.errors import InputError
from fxprune.linear.basis import singular_values, whole_blocks, with_vectors_dropped
from fxprune.linear.basis_budget import choose_vectors
from fxprune.passes import (
    CalibrateBatchNorm,
    DecomposeBasis,
    FuseBatchNorm,
    LinearizeActivations,
    MergeBasis,
    PruneChannels,
)
from fxprune.pipeline import Pipeline, Result
from fxprune.planning import make_plan
from fxprune.planning.cost import count

IMAGE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(*layers: nn.Module) -> Traced:
    """Return a decomposed network of some layers."""
    return Pipeline([DecomposeBasis()])(trace(nn.Sequential(*layers).double().eval(), IMAGE)).traced


def merged(traced: Traced, **options: Any) -> Result:
    result = Pipeline([MergeBasis(**options)])(traced)
    assert not MergeBasis(**options)(result.traced).report.changed
    return result


def said(result: Result) -> str:
    (change,) = result.report[0].changes
    return change.what


def close(found: Traced, wanted: Traced) -> None:
    """Compare two models on fresh inputs: to rounding in float64."""
    args, kwargs = wanted.inputs(batch=3, seed=3)
    for new, old in zip(found.run(args, kwargs), wanted.run(args, kwargs), strict=True):
        assert float((new - old).abs().max()) <= 1e-12 * max(1.0, float(old.abs().max()))


# ---------------------------------------------------------------- the break-even rule


@pytest.mark.parametrize(("left", "stays"), [(57, True), (58, False)])
def test_64_channels_break_even_at_57_vectors(left: int, stays: bool) -> None:
    traced = Pipeline([DecomposeBasis()])(
        trace(nn.Sequential(nn.Conv2d(64, 64, 3, bias=False)).double().eval(), IMAGE.repeat(1, 16, 1, 1))
    ).traced
    masked = with_vectors_dropped(traced, {"0": list(range(left, 64))})
    result = merged(masked)
    weights = left * (9 * 64 + 64)
    what = "stays in two layers" if stays else "merged into one layer"
    assert said(result) == (
        f"{left} of 64 vectors left; {what}: split in two it has {weights:,} weights and "
        f"{weights * 36:,} multiply-accumulates per sample, as one layer 36,864 and 1,327,104"
    )
    cost = count(result.traced)
    assert (cost.params, cost.macs) == ((weights, weights * 36) if stays else (36_864, 36_864 * 36))
    close(result.traced, masked)


def test_a_merged_layer_has_its_old_name_and_bias() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding="same", stride=1)).double().eval()
    traced = Pipeline([DecomposeBasis()])(trace(model, IMAGE)).traced
    layer: Any = merged(traced).traced.module.get_submodule("0")
    assert str(layer) == str(model[0])
    assert layer.bias is model[0].bias
    torch.testing.assert_close(layer.weight, model[0].weight, rtol=0, atol=1e-13)
    assert not whole_blocks(merged(traced).traced.module)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(4, 8, 3, groups=2, bias=False),
        nn.Conv2d(4, 8, 3, groups=2, padding=(0, 1), padding_mode="circular"),
    ],
)
@pytest.mark.parametrize("most", [1.0, 0.0])
def test_dropped_vectors_leave_the_masked_model(layer: nn.Module, most: float) -> None:
    traced = network(layer)
    (block,) = whole_blocks(traced.module)
    with torch.no_grad():
        block.scales.copy_(torch.linspace(0.5, 2, block.scales.numel()))  # type: ignore[union-attr]
    rank = block.rank
    # One more in the first group: the others follow the one that keeps most.
    drop = [0, *(group * rank + vector for group in range(block.groups) for vector in range(2, rank - 1))]
    masked = with_vectors_dropped(traced, {"0": drop})
    result = merged(masked, most=most)
    close(result.traced, masked)
    kept = 2 if block.groups == 1 else 3
    assert said(result).startswith(f"{kept} of {rank} vectors left")
    assert ("two layers" in said(result)) == bool(most)


@pytest.mark.parametrize("sizes", [[2, 6], [2, 5, 6]])
def test_linear_layers(sizes: list[int]) -> None:
    value = torch.randn(sizes, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7, bias=False)).double().eval()
    traced = Pipeline([DecomposeBasis()])(trace(model, value)).traced
    masked = with_vectors_dropped(traced, {"0": [1, 3, 4, 5], "2": [6]})
    result = merged(masked)
    assert {key: list(value.shape) for key, value in result.traced.module.state_dict().items()} == {
        "0.basis.weight": [2, 6], "0.mix.weight": [8, 2], "0.mix.bias": [8], "2.weight": [7, 8],
    }  # fmt: skip
    close(result.traced, masked)


def test_all_scales_zero_leave_the_bias() -> None:
    traced = network(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3))
    masked = with_vectors_dropped(traced, {"0": list(range(6))})
    result = merged(masked)
    assert result.report[0].changes[0].what.startswith("1 of 6 vectors left; stays")
    close(result.traced, masked)


def test_a_split_that_pays_no_more_is_merged_later() -> None:
    traced = network(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)
    )
    pairs = merged(with_vectors_dropped(traced, {"3": [5, 6, 7], "5": [4, 5, 6, 7]}))
    assert {skip.place for skip in MergeBasis()(pairs.traced).report[0].skips} == {"3", "5"}
    plan = make_plan(pairs.traced, macs=0.4, round_to=1, protect=["*.basis.weight"], importance="random")
    cut = Pipeline([PruneChannels(plan), MergeBasis()])(pairs.traced)
    assert any("merged into one layer" in change.what for change in cut.report[1].changes)


def test_a_bias_of_the_basis_is_kept() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, bias=False)).double()
    model[0].running_mean.copy_(torch.arange(4.0))  # type: ignore[operator, union-attr]
    traced = Pipeline([DecomposeBasis(), FuseBatchNorm()])(trace(model.eval(), IMAGE)).traced
    assert whole_blocks(traced.module)[0].layers[0].bias is not None
    for drop in ([], [3, 4, 5]):
        masked = with_vectors_dropped(traced, {"1": drop})
        result = merged(masked)
        close(result.traced, masked)
        assert "1.basis.bias" not in result.traced.module.state_dict()


def test_what_is_no_chain_any_more_is_left() -> None:
    traced = network(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3))
    graph = traced.module.graph
    (mix,) = [node for node in graph.nodes if node.target == "0.mix"]
    with graph.inserting_before(mix):
        extra = graph.call_function(torch.ops.aten.relu.default, (mix.args[0],))
    mix.replace_input_with(mix.args[0], extra)  # type: ignore[arg-type]
    report = MergeBasis()(traced).report[0]
    assert [(skip.place, skip.why) for skip in report.skips] == [
        ("0", "its basis, scales and mix are no chain any more")
    ]
    assert [change.place for change in report.changes] == ["2"]


@pytest.mark.parametrize("most", [-0.1, 1.5, True, "half"])
def test_options_are_checked(most: Any) -> None:
    with pytest.raises(InputError, match="most is"):
        MergeBasis(most=most)


def test_only_what_is_there_can_be_dropped() -> None:
    traced = network(nn.Conv2d(4, 6, 3))
    with pytest.raises(InputError, match="no decomposed layer"):
        with_vectors_dropped(traced, {"1": [0]})
    with pytest.raises(InputError, match="vectors 0 to 5"):
        with_vectors_dropped(traced, {"0": [6]})


# ---------------------------------------------------------------- whole models, and double pruning


def pretrained(name: str) -> nn.Module:
    """Return a model of torchvision whose norms have something to do."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model: nn.Module = getattr(models, name)(num_classes=10).double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            norm.weight.data.uniform_(0.5, 1.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("mobilenet_v2", "classifier.1")])
def test_double_pruning_of_a_model(name: str, head: str, tmp_path: Path) -> None:
    model = pretrained(name)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    dense = trace(model, image)
    whole = Pipeline([DecomposeBasis(exclude=[head])])(dense).traced
    value = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(value)
    assert float((whole.run((value,))[0] - wanted).abs().max()) <= 1e-12 * float(wanted.abs().max())

    choice = choose_vectors(whole, singular_values(whole.module), params=0.6)
    masked = with_vectors_dropped(whole, choice.dropped)
    pruned = merged(masked).traced
    close(pruned, masked)
    cost, before = count(pruned), count(dense)
    assert (cost.params, cost.macs) == (choice.counts.merged.params, choice.counts.merged.macs)
    assert (before.params, before.macs) == (choice.counts.single.params, choice.counts.single.macs)
    assert 0.59 * before.params <= cost.params <= 0.6 * before.params

    # Channels go behind it, or in front of it, by the plan of whatever graph is there; the Pipeline holds the cut to
    # the masked model.
    for start in (pruned, masked):
        plan = make_plan(start, macs=0.6, protect=["*.basis.weight"])
        assert not any(name.endswith("scales") for name in plan.removed)
        both = Pipeline([PruneChannels(plan), MergeBasis(), CalibrateBatchNorm([value]), FuseBatchNorm()])(start).traced
        assert count(both).params < cost.params
    small = Pipeline([DecomposeBasis(exclude=[head], reorthonormalize=True), MergeBasis()])(both).traced
    assert count(small).params <= count(both).params

    # The same in the precision that ships.
    single = trace(model.float(), image.float())
    whole = Pipeline([DecomposeBasis(exclude=[head])])(single).traced
    masked = with_vectors_dropped(whole, choice.dropped)
    passes = [PruneChannels(plan), MergeBasis(), CalibrateBatchNorm([value.float()]), FuseBatchNorm()]
    shipped = Pipeline(passes)(masked).traced
    report = export_onnx(shipped, tmp_path / "model.onnx")
    check_parity(shipped, report.path).require(1e-4)


def test_exported_with_scales_and_as_pairs(tmp_path: Path) -> None:
    layers = nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 5)
    traced = Pipeline([DecomposeBasis()])(trace(nn.Sequential(*layers).eval(), IMAGE.float())).traced
    masked = with_vectors_dropped(traced, {"0": [3, 7], "2": [2, 3, 4, 5]})
    for number, each in enumerate((masked, merged(masked).traced)):
        report = export_onnx(each, tmp_path / f"{number}.onnx")
        check_parity(each, report.path).require(1e-5)
    assert (tmp_path / "1.onnx").stat().st_size < (tmp_path / "0.onnx").stat().st_size


@pytest.mark.parametrize("step", [MergeBasis(most=0.0), DecomposeBasis(reorthonormalize=True)])
def test_a_layer_that_holds_something_else_too_stays(step: MergeBasis | DecomposeBasis) -> None:
    """The slope of the activation behind it would go with the container."""
    decomposed = network(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    traced = Pipeline([LinearizeActivations(["0.mix"], share=0.3)])(decomposed).traced
    result = Pipeline([step])(traced)
    assert "0 also holds mix_activation" in next(skip.why for skip in result.report[0].skips if skip.place == "0")
    close(result.traced, traced)
