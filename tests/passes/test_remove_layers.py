"""Whole layers go from real networks, and the rest goes on as it was."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models import convnext, efficientnet, regnet

from fxprune.capture import Traced, trace
from fxprune.deploy.onnx import export_onnx
from fxprune.deploy.parity import check_parity
from fxprune.depth import find_layers, make_layer_plan, verify_removal
from fxprune.errors import InputError, PlanError, PreconditionError, VerifyError
from fxprune.passes import DecomposeBasis, FuseBatchNorm, OverParameterize, PruneChannels, RemoveLayers
from fxprune.pipeline import Pipeline
from fxprune.planning import make_plan
from fxprune.testing import check_pass
from tests.depth.networks import CrossAttention, Residual, Tail, conv, ready

IMAGE = torch.randn(2, 3, 8, 8)


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    branches = (Residual(nn.Sequential(conv(4, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), nn.ReLU()) for _ in range(3))
    return ready(nn.Sequential(conv(3, 4), *branches, conv(4, 4), Tail(4)))


def test_layers_go_by_name() -> None:
    result = check_pass(RemoveLayers(["1.branch", "4.0"]), network(), IMAGE, changed=["1.branch", "4.0"])
    assert {key.split(".")[0] for key in result.traced.module.state_dict()} == {"0", "2", "3", "5"}
    said = result.report[0].changes[0].what
    assert "adds nothing to add any more: 184 parameters (21.8%)" in said


def test_layers_go_for_a_budget() -> None:
    model = network()
    plan = make_layer_plan(trace(model.double(), IMAGE.double()), macs=0.5)
    assert 0 < len(plan.layers) < 4
    places = [*plan.layers]
    skipped = {plan.model: "more than 1 % below the budget"} if plan.notes else {}
    check_pass(RemoveLayers(macs=0.5), model, IMAGE, changed=places, skipped=skipped)
    check_pass(RemoveLayers(plan), model, IMAGE, changed=places, skipped=skipped)


def test_other_names_may_go_later() -> None:
    traced = trace(network(), IMAGE)
    once = Pipeline([RemoveLayers(["1.branch"])])(traced)
    twice = Pipeline([RemoveLayers(["1.branch", "2.branch"])])(once.traced)
    assert [change.place for change in twice.report[0].changes] == ["2.branch"]


# ---------------------------------------------------------------- real networks


def _vision() -> tuple[nn.Module, Any]:
    options = {"num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 5}
    return tv.VisionTransformer(image_size=16, patch_size=8, **options), images(16)


def _swin() -> tuple[nn.Module, Any]:
    model = tv.SwinTransformer([4, 4], 16, [1, 2], [2, 2], [2, 2], num_classes=5, stochastic_depth_prob=0.5)
    return model, images(32)


def _efficientnet() -> tuple[nn.Module, Any]:
    block = functools.partial(efficientnet.MBConvConfig, width_mult=1.0, depth_mult=1.0)
    settings = [block(1, 3, 1, 8, 8, 1), block(4, 5, 2, 8, 16, 3)]
    return tv.EfficientNet(settings, dropout=0.2, stochastic_depth_prob=0.5, num_classes=5), images()


def _convnext() -> tuple[nn.Module, Any]:
    settings = [convnext.CNBlockConfig(8, 16, 2), convnext.CNBlockConfig(16, None, 2)]
    return tv.ConvNeXt(settings, stochastic_depth_prob=0.5, num_classes=5), images()


def _regnet() -> tuple[nn.Module, Any]:
    params = regnet.BlockParams([2, 3], [8, 16], [4, 4], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return tv.RegNet(params, stem_width=8, num_classes=5), images()


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], int]] = {
    "resnet18": (lambda: (tv.resnet18(num_classes=5), images()), 5),
    "resnet50": (lambda: (tv.resnet50(num_classes=5), images()), 12),
    "vgg11_bn": (lambda: (nn.Sequential(tv.vgg11_bn().features, Tail(512)), images()), 4),
    "mobilenet_v2": (
        lambda: (tv.MobileNetV2(5, inverted_residual_setting=[[1, 16, 1, 1], [4, 16, 3, 2]]), images()),
        2,
    ),
    "efficientnet": (_efficientnet, 3),
    "convnext": (_convnext, 4),
    "regnet_y": (_regnet, 3),
    "shufflenet_v2": (lambda: (tv.ShuffleNetV2([3, 3, 2], [8, 16, 32, 64, 48], num_classes=5), images()), 4),
    "vision transformer": (_vision, 6),
    "swin transformer": (_swin, 6),
}
LARGE = {
    "efficientnet_b0": 9,
    "convnext_tiny": 18,
    "regnet_y_400mf": 12,
    "shufflenet_v2_x0_5": 13,
    "mobilenet_v2": 10,
    "swin_t": 24,
}


@pytest.mark.parametrize("name", MODELS)
def test_half_of_the_layers_of_torchvision(name: str) -> None:
    build, count = MODELS[name]
    _half(*build(), count)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_half_of_the_layers_of_torchvision_at_full_size(name: str) -> None:
    _half(getattr(tv, name)(num_classes=5), images(64), LARGE[name])


def _half(model: nn.Module, example: Any, count: int) -> None:
    traced = trace(ready(model), example)
    layers = find_layers(traced)
    assert len(layers) == count
    for layer in layers:
        assert not any(word in layer.name for word in ("downsample", "proj.0", "stem"))
    half = random.Random(0).sample(layers.names, count // 2)
    result = RemoveLayers(half)(traced)
    check = verify_removal(traced, result.traced, layers.named(half))
    assert check.max_relative_error <= 1e-9
    assert not torch.allclose(traced.run((example,))[0], result.traced.run((example,))[0], rtol=1e-3)
    gone = {key for layer in layers.named(half) for key in layer.parameters}
    before = {key for key, _ in traced.module.named_parameters()}
    assert {key for key, _ in result.traced.module.named_parameters()} == before - gone


def test_nothing_goes_from_densenet() -> None:
    traced = trace(tv.DenseNet(8, (2, 2), 16, num_classes=5).eval(), images())
    assert not len(find_layers(traced))
    with pytest.raises(InputError, match=r"DenseNet has no layer that can be removed\. The nearest misses"):
        RemoveLayers(macs=0.5)(traced)


def test_resnet_without_blocks_is_resnet_whose_blocks_pass_on() -> None:
    model = ready(tv.resnet18(num_classes=5)).double()
    traced = trace(model, images().double())
    result = Pipeline([RemoveLayers(["layer1.1", "layer3.1", "layer4.1"])])(traced)
    for layer in (model.layer1, model.layer3, model.layer4):
        layer[1] = nn.Identity()
    for batch in (2, 3):
        inputs = traced.inputs(batch, seed=batch)[0]
        assert torch.allclose(result.traced.run(inputs)[0], model(*inputs), rtol=0, atol=1e-12)


def test_a_transformer_without_branches_is_one_whose_parts_give_zeros() -> None:
    model = ready(MODELS["vision transformer"][0]()[0]).double()
    traced = trace(model, images(16).double())
    prefix = "encoder.layers.encoder_layer_"
    result = Pipeline([RemoveLayers([f"{prefix}0.self_attention", f"{prefix}2.mlp"])])(traced)
    for part in (model.encoder.layers[0].self_attention.out_proj, model.encoder.layers[2].mlp[3]):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    assert torch.allclose(result.traced.run((images(16).double(),))[0], model(images(16).double()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", ["layer", "block"])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_transformers(family: str, level: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    size = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        config = transformers.GPT2Config(n_layer=3, n_head=2, n_embd=16, n_positions=16, use_cache=False, **size)
        model, path = transformers.GPT2Model(config), "h"
    else:
        config = transformers.BertConfig(
            num_hidden_layers=3,
            num_attention_heads=2,
            hidden_size=16,
            intermediate_size=24,
            max_position_embeddings=16,
            **size,
        )
        model, path = transformers.BertModel(config, add_pooling_layer=False), "encoder.layer"
    tokens = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    traced = trace(ready(model), tokens)
    layers = find_layers(traced, level)  # type: ignore[arg-type]
    assert len(layers) == (6 if level == "layer" else 3)
    names = [layers.names[0], layers.names[-1]]
    result = Pipeline([RemoveLayers(names, level=level)])(traced)  # type: ignore[arg-type]
    if level == "block":
        del model.get_submodule(path)[2], model.get_submodule(path)[0]
        expected = model.double()(tokens).last_hidden_state
        found = result.traced.run((tokens,))[0]
        assert torch.allclose(found.double(), expected, atol=1e-5)


# ---------------------------------------------------------------- with other passes


def test_with_other_passes() -> None:
    traced = trace(network(), IMAGE)
    layers = RemoveLayers(["2.branch"])
    steps = [layers, PruneChannels(make_plan(layers(traced).traced, macs=0.6, round_to=1)), FuseBatchNorm()]
    result = Pipeline(steps)(traced)
    assert all(report.changes for report in result.report)
    after = Pipeline([DecomposeBasis(), OverParameterize(rate=2)])(layers(traced).traced)
    assert all(report.changes for report in after.report)
    cut = PruneChannels(make_plan(traced, macs=0.6, round_to=1))(traced).traced
    both = Pipeline([RemoveLayers(["2.branch", "3.branch"])])(cut)
    assert len(both.report[0].changes) == 2


def test_the_file_computes_the_same(tmp_path: Path) -> None:
    result = Pipeline([RemoveLayers(["1.branch", "3.branch"])])(trace(network(), IMAGE))
    export_onnx(result.traced, tmp_path / "model.onnx")
    assert check_parity(result.traced, tmp_path / "model.onnx").max_relative_error < 1e-4


# ---------------------------------------------------------------- into the model's own class


@pytest.mark.parametrize(
    ("name", "level", "layers"),
    [
        ("resnet18", "layer", ["layer1.0", "layer3.1"]),
        ("mobilenet_v2", "layer", ["features.3.conv"]),
        ("vgg11_bn", "layer", ["0.11"]),
        ("vision transformer", "block", ["encoder.layers.encoder_layer_1"]),
    ],
)
def test_into_the_eager_class(name: str, level: str, layers: list[str]) -> None:
    model, example = MODELS[name][0]()
    traced = trace(ready(model), example)
    result = Pipeline([RemoveLayers(layers, level=level)])(traced)  # type: ignore[arg-type]
    applied = result.apply_to(model)
    assert applied.max_relative_error <= 1e-9
    assert set(model.state_dict()) == set(result.traced.module.state_dict())
    assert applied.removed
    model.train()
    model(example).sum().backward()


def test_a_sum_in_the_code_is_refused_and_the_model_as_it_was() -> None:
    model, example = MODELS["vision transformer"][0]()
    traced = trace(ready(model), example)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    result = Pipeline([RemoveLayers(["encoder.layers.encoder_layer_1.mlp"])])(traced)
    with pytest.raises(VerifyError, match=r"cannot do without the removed layers.*level=\"block\""):
        result.apply_to(model)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one budget"),
        ({"layers": "1.branch"}, "give a LayerPlan, a list of names"),
        ({"layers": ["1.branch"], "macs": 0.5}, "not both"),
        ({"layers": 0.5, "macs": 0.5}, "exactly one budget"),
        ({"macs": 2.0}, r"outside \(0, 1\]"),
        ({"macs": 0.5, "importance": "tailor"}, "Did you mean 'taylor'"),
        ({"macs": 0.5, "allocation": "even"}, "allocation='even'"),
        ({"macs": 0.5, "level": "stage"}, "level='stage'"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RemoveLayers(**options)


def test_an_unknown_name_and_another_models_plan() -> None:
    traced = trace(network(), IMAGE)
    with pytest.raises(InputError, match=r"no removable layer '1\.brunch'.*Nearest are 1\.branch"):
        Pipeline([RemoveLayers(["1.brunch"])])(traced)
    plan = dataclasses.replace(make_layer_plan(traced, layers=0.8), fingerprint="0" * 64)
    with pytest.raises(PlanError, match="made for another graph"):
        RemoveLayers(plan)(traced)


def test_layers_that_only_together_leave_an_input_unread() -> None:
    traced = trace(ready(CrossAttention(layers=2)), (torch.randn(2, 3, 8), torch.randn(2, 5, 8)))
    assert Pipeline([RemoveLayers(["attention.0"])])(traced).report.changed == 1
    with pytest.raises(PreconditionError, match=r"nothing reads the input context of the model any more"):
        RemoveLayers(["attention.0", "attention.1"])(traced)


def test_a_wrong_pass_would_be_found() -> None:
    traced = trace(network(), IMAGE)

    class Wrong(RemoveLayers):
        name = "wrong-layers"

        def rewrite(self, traced: Traced) -> Any:
            yield from super().rewrite(traced)
            for node in traced.module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)[:1]:
                node.target = torch.ops.aten.tanh.default

    with pytest.raises(VerifyError, match=r"with 1\.branch silenced by .* the first node that differs is relu"):
        Pipeline([Wrong(["1.branch"])])(traced)
