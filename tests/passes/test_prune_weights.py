"""Which weights go, what stands in their place, and that the cheap form is the same function."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune.capture import Traced, trace
from fxprune.deploy.onnx import export_onnx
from fxprune.deploy.parity import check_parity
from fxprune.errors import InputError, PreconditionError
from fxprune.linear.sparsity import (
    CHANGED,
    FILLS,
    NEAR_ZERO,
    PRUNED,
    Fill,
    filled,
    lamp_scores,
    masks_of,
    note_masks,
    pruned_of,
    smallest,
)
from fxprune.passes import (
    CalibrateBatchNorm,
    DecomposeBasis,
    FuseBatchNorm,
    OverParameterize,
    PruneChannels,
    PruneWeights,
)
from fxprune.pipeline import Pass, Pipeline
from fxprune.planning import make_plan
from fxprune.runner import Runner
from fxprune.testing import check_pass

IMAGE = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A stem, one convolution of each kind with norms between them, and a linear end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.grouped = nn.Conv2d(12, 8, (1, 2), groups=4, dilation=2)
        self.point = nn.Conv2d(8, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.grouped(self.depthwise(self.wide(self.stem(x)))).relu())
        result: Tensor = self.head(x.relu().mean((2, 3)))
        return result


def lively(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for name, value in layer.state_dict().items():
                if value.ndim:
                    value.copy_(torch.rand(value.shape, generator=generator) + 0.5 * ("var" in name))
    return model.eval()


def net() -> Traced:
    torch.manual_seed(0)
    return trace(lively(Net()), IMAGE)


def pruned_share(traced: Traced, path: str) -> float:
    return float(masks_of(traced.module, PRUNED)[path].double().mean())


LEFT = {"stem.0": "first convolution", "depthwise": "depthwise"}
DONE = ["wide.0", "grouped", "point", "head"]


@pytest.mark.parametrize("form", ["dense", "cheap"])
@pytest.mark.parametrize("options", [{}, {"scope": "global"}, {"scope": "global", "criterion": "lamp"}], ids=str)
@pytest.mark.parametrize("fill", ["filter", "layer"])
def test_it_is_a_pass_in_both_forms(form: Any, options: dict[str, Any], fill: Any) -> None:
    result = check_pass(
        PruneWeights(0.5, form=form, fill=fill, **options), lively(Net()), IMAGE, changed=DONE, skipped=LEFT
    )
    total = sum(mask.numel() for mask in masks_of(result.traced.module, PRUNED).values())
    gone = sum(int(mask.sum()) for mask in masks_of(result.traced.module, PRUNED).values())
    assert abs(gone - total / 2) <= (2 if "scope" not in options else 1)


@pytest.mark.parametrize("fill", ["zero", "sign"])
def test_other_fills(fill: Any) -> None:
    result = check_pass(PruneWeights(0.4, fill=fill), lively(Net()), IMAGE, changed=DONE, skipped=LEFT)
    weight = result.traced.module.get_parameter("wide.0.weight").detach()
    mask = masks_of(result.traced.module, PRUNED)["wide.0"]
    for row, where in zip(weight, mask, strict=True):
        assert len({abs(float(value)) for value in row[where]}) <= 1
    assert bool((weight[mask] == 0).all()) == (fill == "zero")


def test_what_is_pruned_and_what_stands_in_its_place() -> None:
    traced = net()
    before = traced.module.get_parameter("head.weight").detach().double()
    after = PruneWeights({"head": 0.3})(traced).traced.module.get_parameter("head.weight").detach()
    order = before.abs().flatten().sort().values
    threshold = (order[14] + order[15]) / 2  # 15 of 50 go
    for row, new in zip(before, after, strict=True):
        gone = row.abs() < threshold
        assert torch.equal(new[~gone], row[~gone].float())
        torch.testing.assert_close(new[gone].double(), row[gone].mean().expand(int(gone.sum())), rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------- means


@given(
    rows=st.lists(st.lists(st.floats(-4, 4), min_size=6, max_size=6), min_size=1, max_size=4),
    other=st.floats(-4, 4),
    bits=st.integers(0, 63),
)
@settings(max_examples=60, deadline=None)
def test_the_mean_is_the_least_squared_error(rows: list[list[float]], other: float, bits: int) -> None:
    weight = torch.tensor(rows, dtype=torch.float64)
    mask = torch.tensor([bits >> n & 1 for n in range(6)]).bool().expand_as(weight)

    def error(new: Tensor) -> Tensor:
        return (new - weight).square().sum(1)

    anything = torch.where(mask, torch.full_like(weight, other), weight)
    signed = torch.where(mask, torch.where(weight < 0, -abs(other), abs(other)), weight)
    assert bool((error(filled(weight, mask, "filter")) <= error(anything) + 1e-12).all())
    assert bool((error(filled(weight, mask, "filter")) <= error(filled(weight, mask, "zero")) + 1e-12).all())
    assert float(error(filled(weight, mask, "layer")).sum()) <= float(error(anything).sum()) + 1e-12
    assert bool((error(filled(weight, mask, "sign")) <= error(signed) + 1e-12).all())


def test_the_mean_is_the_least_error_of_outputs_too() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 40, dtype=torch.float64, generator=generator)
    inputs = torch.rand(4000, 40, dtype=torch.float64, generator=generator)  # none is negative, as behind a relu
    mask = smallest(weight, 320)

    def error(new: Tensor) -> float:
        return float((inputs @ (new - weight).T).square().mean())

    errors = {fill: error(filled(weight, mask, fill)) for fill in ("zero", "layer", "filter")}  # type: ignore[arg-type]
    assert errors["filter"] < 0.6 * errors["zero"]
    assert errors["filter"] < errors["layer"]
    best = filled(weight, mask, "filter")
    for step in (-0.01, 0.01):
        assert error(torch.where(mask, best + step, best)) > errors["filter"]


# ---------------------------------------------------------------- the cheap form


CONVS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
    {"kernel_size": (3, 2), "stride": (1, 3), "padding": (0, 1), "bias": False},
    {"kernel_size": 3, "padding": 1, "groups": 3, "padding_mode": "reflect"},
    {"kernel_size": 2, "padding": "same", "dilation": 2, "groups": 2, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": "valid", "groups": 6},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "padding": 1, "groups": 2},
]


@pytest.mark.parametrize("fill", ["filter", "layer"])
@pytest.mark.parametrize("options", CONVS, ids=str)
def test_the_cheap_form_is_the_dense_one(options: dict[str, Any], fill: Any) -> None:
    layer = nn.Conv2d(6, 12, **options).double()
    inputs = torch.randn(2, 6, 9, 8, dtype=torch.float64) + 1
    _same(trace(nn.Sequential(layer).eval(), inputs), inputs, fill)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(7, 5), (2, 7)),
        (nn.Linear(7, 5, bias=False), (2, 4, 7)),
        (nn.Conv1d(6, 4, 3, padding=1, groups=2), (2, 6, 9)),
        (nn.Conv3d(4, 6, 2, stride=2, padding=1), (2, 4, 5, 5, 5)),
    ],
    ids=str,
)
def test_of_every_rank(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, dtype=torch.float64) + 1
    _same(trace(nn.Sequential(layer.double()).eval(), inputs), inputs, "filter")


def _same(traced: Traced, inputs: Tensor, fill: Any) -> None:
    amount = {"0": 0.6}
    dense = Pipeline([PruneWeights(amount, fill=fill)])(traced).traced
    cheap = Pipeline([PruneWeights(amount, fill=fill, form="cheap")])(traced).traced
    sparse = cheap.module.get_parameter("0.sparse.weight")
    assert float((sparse == 0).double().mean()) == pytest.approx(0.6, abs=0.06)
    (expected,), (found,), (whole,) = dense.run((inputs,)), cheap.run((inputs,)), traced.run((inputs,))
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-12
    assert float((whole - expected).abs().max()) > 1e-3  # not for want of anything pruned
    assert set(cheap.module.state_dict()) >= {"0.sparse.weight", "0.fill.weight"}


def test_a_dense_model_is_split_later_and_pruned_further_when_it_is() -> None:
    traced = net()
    first = Pipeline([PruneWeights(0.4), FuseBatchNorm()])(traced).traced
    split = Pipeline([PruneWeights(0.4, form="cheap")])(first)
    assert [change.place for change in split.report[0].changes] == DONE
    assert all("of their norm" not in change.what for change in split.report[0].changes)
    torch.testing.assert_close(split.traced.run((IMAGE,)), first.run((IMAGE,)), rtol=1e-4, atol=1e-5)
    further = Pipeline([PruneWeights(0.6, form="cheap")])(split.traced)
    assert [change.place for change in further.report[0].changes] == DONE
    dense = Pipeline([PruneWeights(0.6)])(first).traced
    torch.testing.assert_close(further.traced.run((IMAGE,)), dense.run((IMAGE,)), rtol=1e-4, atol=1e-5)
    assert not PruneWeights(0.6, form="cheap")(further.traced).report.changed
    with pytest.raises(InputError, match="holds one value per filter"):
        PruneWeights(0.8, fill="sign")(further.traced)


@pytest.mark.parametrize("later", [DecomposeBasis(), OverParameterize()], ids=lambda later: later.name)
def test_parts_of_a_split_layer_are_no_layers_of_their_own(later: Pass) -> None:
    split = PruneWeights(0.6, form="cheap")(net()).traced
    found = Pipeline([later])(split)
    parts = {"wide.0.sparse", "wide.0.box", "wide.0.fill", "grouped.sum", "point.sparse", "point.fill", "head.fill"}
    skipped = {skip.place: skip.why for skip in found.report[0].skips}
    assert parts <= set(skipped)
    assert all(f"part of {part.rpartition('.')[0]}, which PruneWeights wrote" in skipped[part] for part in parts)
    assert {change.place for change in found.report[0].changes} <= set(LEFT)
    again = PruneWeights(0.8, form="cheap", fill="filter")(found.traced)
    assert {change.place for change in again.report[0].changes} >= set(DONE)
    names = {name for name, _ in again.traced.module.named_modules()}
    assert not any("fill." in name or "box." in name or "sum." in name for name in names)


def test_norms_are_calibrated_and_channels_pruned_behind_it() -> None:
    cheap = Pipeline([PruneWeights(0.5, form="cheap"), CalibrateBatchNorm([IMAGE])])(net()).traced
    plan = make_plan(cheap, macs=0.7, round_to=1)
    smaller = Pipeline([PruneChannels(plan)])(cheap).traced
    assert plan.removed["wide.0.sparse.weight"]
    assert PruneWeights(0.5)(smaller).traced.run((IMAGE,))[0].shape == (2, 5)


def test_what_cannot_be_split_says_so() -> None:
    zero = PruneWeights(0.5, fill="zero", form="cheap")(net())
    assert "what was pruned is zero" not in str(zero.report)  # pruning was a change
    again = PruneWeights(0.5, fill="zero", form="cheap")(zero.traced)
    assert "what was pruned is zero" in str(again.report)
    signs = PruneWeights(0.5, fill="sign")(net()).traced
    mixed = PruneWeights(0.5, form="cheap")(signs)
    assert "box sum" in str(mixed.report)  # another fill was asked for: means of what is there


# ---------------------------------------------------------------- which weights go


def _lamp(weight: Tensor) -> list[float]:
    values = weight.flatten().tolist()
    order = sorted(range(len(values)), key=lambda n: values[n] ** 2)
    scores = [0.0] * len(values)
    for rank, number in enumerate(order):
        scores[number] = values[number] ** 2 / sum(values[other] ** 2 for other in order[rank:])
    return scores


def test_lamp_scores_are_those_of_plain_loops() -> None:
    weight = torch.randn(4, 9, dtype=torch.float64)
    assert lamp_scores(weight).flatten().tolist() == pytest.approx(_lamp(weight), rel=1e-12)
    assert float(lamp_scores(weight).max()) == 1.0
    gone = smallest(weight, 10)
    assert lamp_scores(weight, gone)[~gone].tolist() == pytest.approx(_lamp(weight[~gone]), rel=1e-12)
    assert not lamp_scores(weight, gone)[gone].any()
    assert not lamp_scores(torch.zeros(3, 3)).any()


@pytest.mark.parametrize("criterion", ["magnitude", "lamp"])
def test_layers_compete(criterion: Any) -> None:
    traced = net()
    traced.module.get_parameter("point.weight").data *= 0.01
    result = PruneWeights(0.5, criterion=criterion, scope="global")(traced).traced
    weights = {path: traced.module.get_parameter(f"{path}.weight").detach() for path in DONE}
    scored = sorted(
        (score, path)
        for path, weight in weights.items()
        for score in (_lamp(weight.double()) if criterion == "lamp" else weight.abs().flatten().tolist())
    )
    first = [path for _, path in scored[: round(0.5 * len(scored))]]
    for path, weight in weights.items():
        count = min(first.count(path), weight.numel() - 1)
        assert torch.equal(masks_of(result.module, PRUNED)[path], smallest(weight, count))
    assert (pruned_share(result, "point") > 0.9) == (criterion == "magnitude")


def test_pruning_by_steps_keeps_what_was_gone_and_means_over_all_of_it() -> None:
    traced = net()
    steps = traced
    for amount in (0.2, 0.5, 0.7):
        steps = PruneWeights(amount)(steps).traced
    once = PruneWeights(0.7)(traced).traced
    old, new = masks_of(PruneWeights(0.2)(traced).traced.module, PRUNED), masks_of(steps.module, PRUNED)
    assert all(bool((~old[path] | new[path]).all()) for path in DONE)
    for path in DONE:
        assert pruned_share(steps, path) == pruned_share(once, path) == pytest.approx(0.7, abs=0.02)
        torch.testing.assert_close(steps.module.get_parameter(f"{path}.weight"),
                                   once.module.get_parameter(f"{path}.weight"), rtol=1e-4, atol=1e-6)  # fmt: skip
    assert not PruneWeights(0.5)(steps).report.changed  # more than that is gone
    assert PruneWeights(0.7, fill="zero")(steps).report.changed == len(DONE)


def test_weights_that_were_changed_since_are_pruned_as_if_they_never_were() -> None:
    result = PruneWeights(0.5)(net()).traced
    weight = result.module.get_parameter("head.weight")
    weight.data += 0.1 * torch.randn(5, 10, generator=torch.Generator().manual_seed(3))
    assert pruned_of(result.module).lost == {"head": CHANGED}
    report = PruneWeights(0.5)(result)
    assert [change.place for change in report.report[0].changes] == ["head"]
    assert "record of an earlier pruning was dropped" in report.report[0].changes[0].what
    assert torch.equal(pruned_of(report.traced.module).masks["head"], smallest(weight, 25))
    assert not pruned_of(report.traced.module).lost


def test_a_record_of_a_layer_that_is_left_alone_is_dropped_with_a_word() -> None:
    result = PruneWeights(0.5)(net()).traced
    result.module.get_parameter("head.weight").data.normal_()
    report = PruneWeights(0.5, exclude=["head", "stem*"])(result)
    assert [skip.why for skip in report.report[0].skips if skip.place == "head" and "dropped" in skip.why]
    assert "head" not in report.traced.module.meta[PRUNED]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("form", ["dense", "cheap"])
def test_a_record_counts_while_exactly_what_was_filled_in_is_there(fill: Fill, form: Any) -> None:
    if form == "cheap" and fill == "sign":
        return
    traced = PruneWeights({"head": 0.2}, fill=fill, form=form)(net()).traced
    assert set(pruned_of(traced.module).masks) == {"head"}
    assert set(pruned_of(Pipeline([FuseBatchNorm()])(traced).traced.module).masks) == {"head"}
    mask = masks_of(traced.module, PRUNED)["head"]
    name = "head.sparse.weight" if "head.sparse.weight" in traced.module.state_dict() else "head.weight"
    row = int(mask.sum(1).argmax())  # several of it are pruned: a mean of one is that one, whatever it is
    traced.module.get_parameter(name).data[row, int(mask[row].int().argmax())] += 1e-6
    assert pruned_of(traced.module).lost == {"head": CHANGED}


def test_zeros_that_are_filled_by_sign_are_filled() -> None:
    zero = PruneWeights(0.3, fill="zero")(net()).traced
    signs = PruneWeights(0.6, fill="sign")(zero).traced
    assert set(pruned_of(signs.module).masks) == set(DONE)
    assert not PruneWeights(0.6, fill="sign")(signs).report.changed


def test_zeros_are_known_from_means_of_one() -> None:
    traced = PruneWeights({"head": 0.02}, fill="zero")(net()).traced  # one weight of all
    traced.module.get_parameter("head.weight").data += 1.0
    assert pruned_of(traced.module).lost == {"head": CHANGED}


def test_the_trained_set() -> None:
    traced = net()
    with pytest.raises(PreconditionError, match="Hyperspherical"):
        PruneWeights(criterion="trained")(traced)
    mask = torch.rand(traced.module.get_parameter("wide.0.weight").shape) < 0.3
    note_masks(traced.module, NEAR_ZERO, {"wide.0": mask, "head": torch.ones(3, 3).bool(), "gone": mask})
    result = Pipeline([PruneWeights(criterion="trained", form="cheap")])(traced)
    assert torch.equal(masks_of(result.traced.module, PRUNED)["wide.0"], mask)
    assert not PruneWeights(criterion="trained", form="cheap")(result.traced).report.changed


def test_patterns() -> None:
    result = PruneWeights({"wide.*": 0.9, "*": 0.25, "head": 0.5}, exclude="point")(net())
    shares = {path: round(pruned_share(result.traced, path), 2) for path in masks_of(result.traced.module, PRUNED)}
    assert shares == {"stem.0": 0.25, "wide.0": 0.9, "depthwise": 0.25, "grouped": 0.25, "head": 0.24}
    everything = PruneWeights(0.5, exclude=())(net())
    assert everything.report.changed == 6
    with pytest.raises(InputError, match=r"'body\.\*' of amount matches no"):
        PruneWeights({"body.*": 0.5})(net())


def test_layers_that_others_read_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.twice = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.up = nn.ConvTranspose1d(4, 4, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.twice(self.twice(self.b(self.a(x))))
            result: Tensor = self.up(x[:, :, None])
            return result

    skipped = {"a": "shares its weights", "b": "shares its weights", "twice": "called 2 times", "up": "transposed"}
    check_pass(PruneWeights(0.5), Tied(), torch.randn(2, 4), skipped=skipped)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"amount": 1.0}, "from 0 to below 1"),
        ({"amount": {"*": -0.1}}, "from 0 to below 1"),
        ({"amount": True}, "from 0 to below 1"),
        ({}, "criterion='trained'"),
        ({"amount": 0.5, "criterion": "trained"}, "criterion='trained'"),
        ({"amount": 0.5, "criterion": "snip"}, "'magnitude', 'lamp', 'trained'"),
        ({"amount": {"*": 0.5}, "scope": "global"}, "one amount"),
        ({"amount": 0.5, "fill": "sign", "form": "cheap"}, "two values"),
        ({"amount": 0.5, "fill": "median"}, "'zero', 'filter'"),
        ({"amount": 0.5, "form": "sparse"}, "'dense', 'cheap'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        PruneWeights(**options)


# ---------------------------------------------------------------- in the file that ships


@pytest.mark.parametrize("form", ["dense", "cheap"])
def test_onnx_of_both_forms(form: Any, tmp_path: Path) -> None:
    traced = net()
    before = copy.deepcopy(traced.module.state_dict())
    pruned = Pipeline([PruneWeights(0.7, form=form), FuseBatchNorm()])(traced).traced
    export_onnx(pruned, tmp_path / "model.onnx")
    parity = check_parity(pruned, tmp_path / "model.onnx")
    assert parity.max_relative_error < 1e-5
    with torch.no_grad():
        wide = Runner(pruned.module, double=True).flat([IMAGE])[0]
    torch.testing.assert_close(pruned.run((IMAGE,))[0].double(), wide, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in traced.module.state_dict().items())
