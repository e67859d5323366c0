"""Models without a graph as a whole: which regions are captured, how they are called, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from capture.detectors import Baked, Branches, Detector, Experts, Fixed, Holder, Kinds, Shared, images, normal
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune import passes
from fxprune.capture import Traced, trace
from fxprune.capture.regions import Call, hosted, part
from fxprune.eager import apply_to
from fxprune.errors import CaptureError, InputError, VerifyError
from fxprune.surgery.masked_regions import masked_regions


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector().eval()


@pytest.fixture(scope="module")
def traced(detector: Detector) -> Traced:
    return trace(detector, images())


def by_path(traced: Traced) -> dict[str, list[Call]]:
    assert traced.regions is not None
    return {path: [c for c in traced.regions.calls if c.path == path] for path in traced.regions.paths}


def graphs(traced: Traced) -> Any:
    """Compute every region by its graph."""
    return lambda call, leaves: part(traced, call).run(tuple(leaf for leaf in leaves if isinstance(leaf, Tensor)))


# ---------------------------------------------------------------- which


def test_the_largest_sub_modules_that_have_a_graph(traced: Traced) -> None:
    assert list(by_path(traced)) == ["backbone", "head", "inner", "classes"]
    assert traced.regions is not None
    assert list(traced.regions.left) == [""]
    assert "detectors.py" in traced.regions.left[""]
    assert "by region" in traced.notes[0]
    assert "detectors.py" in traced.notes[0]
    assert "never" in traced.notes[1]


def test_names_and_parameters_are_the_models(traced: Traced, detector: Detector) -> None:
    assert list(traced.module.state_dict()) == list(detector.state_dict())
    own = dict(detector.named_parameters())
    assert all(tensor is own[name] for name, tensor in traced.module.named_parameters())
    targets = {str(node.target) for node in traced.module.graph.find_nodes(op="call_module")}
    assert {"backbone.stem.0", "backbone.wide.0", "head.hidden", "inner.2", "classes.2"} <= targets


def test_one_graph_for_all_sizes_of_a_region(traced: Traced) -> None:
    calls = by_path(traced)["head"]
    assert [call.variant for call in calls] == [0, 0, 0]
    sizes = [[tuple(leaf.shape) for leaf in traced.args[call.inputs]] for call in calls]
    assert sizes == [[(2, 8, side, side), ()] for side in (16, 8, 4)]
    assert all(call.free == ((0, 2, 3), ()) for call in calls)


def test_the_region_behind_gets_as_many_samples_as_there_were(traced: Traced, detector: Detector) -> None:
    with torch.no_grad():
        rows = detector(*images())["rows"]
    (call,) = by_path(traced)["inner"]
    assert traced.args[call.inputs][0].shape == rows.shape
    assert len(rows) > 100


def test_regions_compute_what_the_model_computes(traced: Traced, detector: Detector) -> None:
    for given in (images(), images(3)):
        with torch.no_grad():
            expected = detector(*given)
            with hosted(detector, traced, graphs(traced)):
                found = detector(*given)
        for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
            assert torch.equal(one, other)
    assert not any("forward" in vars(module) for module in detector.modules())


def test_inputs_that_a_region_was_not_captured_for(traced: Traced, detector: Detector) -> None:
    larger = ([normal(3, 20, 20)],)
    with hosted(detector, traced, graphs(traced)), pytest.raises(InputError, match="backbone was not captured"):
        detector(*larger)


class Types(nn.Module):
    """Decides by values, and calls one that decides by dtype with bytes and with floats of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ByType()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner((x * 10).to(torch.uint8)) + self.inner(x)
        return y if float(y.sum()) > 1e6 else y[:, :2]


class ByType(nn.Module):
    """Takes bytes for tenths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x.float() / 10 if x.dtype == torch.uint8 else x)
        return found


def test_a_region_that_is_called_with_several_dtypes_is_computed_by_the_graph_for_each() -> None:
    model, x = Types().eval(), torch.rand(3, 6)
    traced = trace(model, torch.rand(2, 6))
    assert len(by_path(traced)["inner"]) == 2
    with torch.no_grad(), hosted(model, traced, graphs(traced)):
        found = model(x)
        with pytest.raises(InputError, match=r"inner was not captured for inputs torch.int64 of \[2, 6\]"):
            model.inner(torch.ones(2, 6, dtype=torch.int64))
    assert torch.allclose(found, model(x), atol=1e-5)


class AloneByName(nn.Module):
    """Takes one sample, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, *, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x.view(1, 6))
        return found


def test_a_region_that_takes_one_sample_by_name() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = AloneByName()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x=x)
            return y if float(y.sum()) > 1e6 else y[:, :2]

    traced = trace(Around().eval(), normal(1, 6))
    assert list(by_path(traced)) == ["inner"]
    assert by_path(traced)["inner"][0].free == ((),)


def test_macs_are_those_of_one_forward(traced: Traced, detector: Detector) -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        detector(*images())
    assert fxprune.count(traced).macs == counter.get_total_flops() // 2


def test_the_model_is_left_as_it_was() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.layer(x) * self.count

    model = Stateful().train()
    traced = trace(model, normal(2, 6))
    assert list(by_path(traced)) == ["layer"]
    assert float(model.count) == 0
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_without_regions_it_is_refused(detector: Detector) -> None:
    with pytest.raises(
        CaptureError, match=r"the size of what comes out of nonzero .*detectors\.py.* depends on values"
    ):
        trace(detector, images(), regions=False)


def test_a_model_that_has_a_graph_is_captured_whole() -> None:
    assert trace(nn.Sequential(nn.Linear(4, 3)), normal(2, 4)).regions is None


def test_nothing_can_be_captured() -> None:
    with pytest.raises(CaptureError) as caught:
        trace(Holder(), normal(2, 3))
    text = str(caught.value)
    assert "neither whole" in text
    assert "part: " in text
    assert "other.0: " in text
    assert text.count("detectors.py") >= 3
    with pytest.raises(CaptureError, match="cannot be captured as one graph"):
        trace(Branches(), normal(2, 3))


def test_a_model_that_fails_by_itself() -> None:
    with pytest.raises(InputError, match="does not run on inputs"):
        trace(Detector(), ([normal(5, 16, 16)],))


# ---------------------------------------------------------------- kinds of calls


def test_other_numbers_are_other_graphs() -> None:
    traced = trace(Kinds(), normal(2, 6))
    calls = by_path(traced)
    assert [(call.variant, call.name) for call in calls["block"]] == [(0, "block"), (1, "block-2")]
    assert [traced.args[call.inputs][1] for call in calls["block"]] == [1, 2]
    assert calls["fixed"][0].free == ((),)
    assert any(note.startswith("fixed: the batch is static") for note in traced.notes)
    assert traced.batches() == [2, None, 2, None, None]
    shapes = [getattr(leaf, "shape", None) for leaf in traced.inputs(batch=5)[0]]
    assert shapes == [(5, 6), None, (5, 6), None, (2, 6)]
    assert_prunes(traced)


def test_a_batch_that_the_code_fixes_is_static() -> None:
    traced = trace(Fixed(), normal(2, 6))
    assert not traced.batch_is_dynamic
    assert "the batch is static at 2" in traced.notes[0]


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_single_sample(dynamic: bool) -> None:
    model = Shared().eval()
    traced = trace(model, normal(1, 6), dynamic_batch=dynamic)
    assert traced.batch == (2 if dynamic else 1)
    assert traced.batch_is_dynamic == dynamic
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(normal(1, 6))
    assert fxprune.count(traced).macs == counter.get_total_flops() // 2
    assert_prunes(traced)


def test_experts_get_as_many_tokens_as_are_sent_to_them() -> None:
    model = Experts().eval()
    x = normal(2, 12, 8)
    traced = trace(model, x)
    calls = by_path(traced)
    assert list(calls) == ["gate", *(f"experts.{number}" for number in range(4))]
    with torch.no_grad():
        sent = model.gate(x.reshape(-1, 8)).argmax(1).bincount(minlength=4).tolist()
    assert sent[3] == 0
    found = [calls[f"experts.{number}"][0].times * traced.args[calls[f"experts.{number}"][0].inputs][0].shape[0]
             for number in range(4)]  # fmt: skip
    assert found == [*sent[:3], 1]
    apply_to(assert_prunes(traced), model)


def test_no_sample_at_all() -> None:
    model = Detector(threshold=1e9)
    traced = trace(model, images())
    (call,) = by_path(traced)["inner"]
    assert traced.args[call.inputs][0].shape == (2, 8)
    assert call.times == 0.5
    assert_prunes(traced)


def test_more_sizes_than_are_counted() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.Conv1d(8, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            total = sum(self.layer(x[:, :, :length]).sum() for length in range(2, 22))
            return total if float(total) < 1e9 else x

    traced = trace(Growing(), normal(2, 3, 24))
    assert len(by_path(traced)["layer"]) == 16
    assert any("20 sizes; the 16 largest" in note for note in traced.notes)


# ---------------------------------------------------------------- pruning


def assert_prunes(traced: Traced, keep: float = 0.6) -> Traced:
    groups = fxprune.find_groups(traced)
    plan = fxprune.make_plan(traced, macs=keep, round_to=1, groups=groups)
    assert plan.removed
    pruned = fxprune.cut(traced, plan, groups)
    assert fxprune.verify_cut(traced, pruned, plan, groups).max_relative_error <= 1e-9
    return pruned


def test_channels_on_a_border_stay_and_the_interior_goes(traced: Traced) -> None:
    groups = fxprune.find_groups(traced)
    for inside in ("backbone.stem.0.weight", "backbone.wide.0.weight", "head.hidden.weight", "inner.0.weight"):
        assert groups.explain(inside).units > 0, inside
    for border in ("backbone.out.weight", "inner.2.weight", "classes.2.weight", "head.scores.weight"):
        found = groups.explain(border)
        assert found.units == 0
        assert "returns it" in found.reason or border == "head.scores.weight"
    assert groups.explain("classes.0.weight", 1).units == 0


def test_the_pruned_model_detects_what_the_masked_one_does(traced: Traced, detector: Detector) -> None:
    groups = fxprune.find_groups(traced)
    plan = fxprune.make_plan(traced, macs=0.5, groups=groups)
    result = fxprune.Pipeline([passes.PruneChannels(plan)])(traced)
    model = copy.deepcopy(detector)
    applied = result.apply_to(model)
    assert applied.max_relative_error <= 1e-9
    assert {"backbone.stem.0.weight", "head.hidden.weight", "inner.0.weight"} <= set(applied.tensors)
    wide = ([image.double() for image in images()[0]],)
    reference, model = copy.deepcopy(detector).double(), model.double()
    with torch.no_grad():
        dense = reference(*wide)
        with hosted(reference, traced, masked_regions(traced, plan, groups)):
            expected = reference(*wide)
        found = model(*wide)
    assert len(expected["scores"]) > 50
    assert expected["scores"].unique().numel() > 50
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert float((found[name] - value).abs().max()) <= 1e-9
    assert dense["scores"].shape != expected["scores"].shape or not torch.allclose(dense["scores"], expected["scores"])


def test_the_pruned_model_trains(traced: Traced, detector: Detector) -> None:
    model = copy.deepcopy(detector).train()
    plan = fxprune.make_plan(traced, macs=0.5)
    fxprune.Pipeline([passes.PruneChannels(plan)])(traced).apply_to(model)
    assert all(module.training for module in model.modules())
    loss = model(*images(), targets=torch.ones(1, dtype=torch.long))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    for path in ("backbone.stem.0", "inner.0", "classes.2"):
        gradient = model.get_submodule(path).weight.grad
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0


def test_folded_norms_become_identities(traced: Traced, detector: Detector) -> None:
    model = copy.deepcopy(detector)
    steps = [passes.PruneChannels(fxprune.make_plan(traced, macs=0.5)), passes.FuseBatchNorm()]
    applied = fxprune.Pipeline(steps)(traced).apply_to(model)
    assert applied.removed == ["backbone.stem.1"]


def test_compensation(traced: Traced) -> None:
    plan = fxprune.make_plan(traced, macs=0.5, compensate="constant")
    pruned = fxprune.cut(traced, plan, exact=True)
    assert fxprune.verify_cut(traced, pruned, plan).max_relative_error <= 1e-9
    with pytest.raises(InputError, match=r"without compensate="):
        masked_regions(traced, plan)


def test_a_layer_in_two_regions_is_cut_once() -> None:
    model = Shared()
    traced = trace(model, normal(2, 6))
    groups = fxprune.find_groups(traced)
    found = groups.explain("one.1.weight")
    assert found.units > 0
    assert {("one.3.weight", 1), ("other.2.weight", 1)} <= set(found.partners)
    pruned = assert_prunes(traced)
    assert pruned.module.get_submodule("one.1") is pruned.module.get_submodule("other.1")
    apply_to(pruned, model)
    assert model.one[1] is model.other[1]
    assert model.one[1].weight.shape != (16, 16)


def test_what_is_read_outside_of_the_regions_stays() -> None:
    model = Shared(outside=True)
    traced = trace(model, normal(2, 6))
    assert traced.regions is not None
    assert list(traced.regions.pinned) == ["one.0.weight"]
    groups = fxprune.find_groups(traced)
    found = groups.explain("one.0.weight")
    assert found.units == 0
    assert "reads it outside of the captured regions" in found.reason
    assert "detectors.py" in found.reason
    apply_to(assert_prunes(traced, 0.8), model)


def test_a_pass_may_not_change_what_is_read_outside_of_the_regions() -> None:
    model = Shared(outside=True)
    traced = trace(copy.deepcopy(model), normal(2, 6))
    with torch.no_grad():
        traced.module.get_parameter("one.0.weight").mul_(2)
    with pytest.raises(VerifyError, match=r"changed one\.0\.weight.*detectors\.py"):
        apply_to(traced, model)


def test_a_width_in_the_code_around_a_region() -> None:
    model = Baked()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = assert_prunes(trace(model, normal(2, 6)), 0.5)
    with pytest.raises(VerifyError, match=r"does not run with the new sizes.*detectors\.py"):
        apply_to(pruned, model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.region[0].out_features == 16


# ---------------------------------------------------------------- what needs the whole


def test_what_needs_the_whole_model_is_refused(traced: Traced, tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"One ONNX file.*export_regions"):
        fxprune.export_onnx(traced, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"A budget of latency.*macs="):
        fxprune.make_plan(traced, latency=0.5)
    plan = fxprune.make_plan(traced, macs=0.5, compensate="mean")
    with pytest.raises(InputError, match=r"compensate=.mean.*captured by region"):
        fxprune.cut(traced, plan, calibration=[images()])
    whole = trace(nn.Sequential(nn.Linear(4, 3)), normal(2, 4))
    with pytest.raises(InputError, match="captured whole"), hosted(nn.Module(), whole, graphs(whole)):
        pass
    with pytest.raises(InputError, match="captured whole"):
        masked_regions(whole, {})
