"""torchvision's detectors: pruned by region, they find what their masked originals find, and train."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxprune
from fxprune import passes
from fxprune.capture.regions import hosted
from fxprune.surgery.masked_regions import masked_regions
from tools import detectors
from tools._detector_models import NAMES, build, images, targets


def check(model: nn.Module, regions: list[str], cut: list[str]) -> None:
    """Prune a detector to half its MACs, and compare all that it returns with its masked original."""
    traced = fxprune.trace(model, (images(),))
    assert traced.regions is not None
    assert traced.regions.paths == regions
    assert traced.batch_is_dynamic
    groups = fxprune.find_groups(traced)
    plan = fxprune.make_plan(traced, macs=0.5, groups=groups)
    assert 0.49 <= plan.after.macs / plan.before.macs <= 0.5
    assert {path for path in regions for name in plan.removed if name.startswith(path)} == set(cut)
    pruned = copy.deepcopy(model).train()
    result = fxprune.Pipeline([passes.PruneChannels(plan)])(traced)
    assert result.apply_to(pruned).max_relative_error <= 1e-9
    pictures, original = [picture.double() for picture in images()], copy.deepcopy(model).double()
    with torch.no_grad():
        dense = original(pictures)
        with hosted(original, traced, masked_regions(traced, plan, groups)):
            expected = original(pictures)
        found = copy.deepcopy(pruned).eval().double()(pictures)
    for one, wanted, unmasked in zip(found, expected, dense, strict=True):
        assert len(wanted["boxes"]) >= 20
        assert len(set(wanted["scores"].tolist())) >= 20
        assert wanted["boxes"].shape != unmasked["boxes"].shape or (wanted["boxes"] - unmasked["boxes"]).abs().max() > 1
        for name, value in wanted.items():
            assert one[name].shape == value.shape
            assert float((one[name] - value).abs().max()) <= 1e-9 * max(1.0, float(value.abs().max()))
    folded = passes.FuseBatchNorm()(result.traced)
    assert folded.report.changed > 10
    assert folded.apply_to(copy.deepcopy(model)).max_relative_error <= 1e-6  # weights were rounded
    losses = pruned(images(), targets(images()))
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    gradients = [parameter.grad for parameter in pruned.parameters() if parameter.grad is not None]
    assert len(gradients) > 20
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_ssdlite() -> None:
    """Its head is depthwise, so that each of its channels is on a border."""
    check(build("ssdlite320_mobilenet_v3_large", num_classes=3), ["backbone", "head"], ["backbone"])


@pytest.mark.slow
def test_two_stages() -> None:
    regions = ["backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"]
    check(build("fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=3), regions, regions[:-1])


@pytest.mark.slow
def test_frozen_norms() -> None:
    """What torchvision builds around a trained backbone."""
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.resnet import resnet18
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(0)
    body = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    backbone = _resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    model = RetinaNet(backbone, num_classes=3, min_size=160, max_size=224, score_thresh=0.001).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, FrozenBatchNorm2d):
            for buffer in module.buffers():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    check(model, ["backbone", "head"], ["backbone", "head"])


def test_the_tool_knows_all_detectors_of_torchvision() -> None:
    from torchvision import models

    assert sorted(NAMES) == models.list_models(module=models.detection)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("scores", torch.tensor([0.5, 0.5]), 0.0),
        ("scores", torch.tensor([0.5, 0.25]), 0.5),
        ("scores", torch.tensor([0.5, torch.nan]), float("inf")),
        ("scores", torch.tensor([0.5]), float("inf")),
        ("labels", torch.tensor([90, 91]), float("inf")),
    ],
)
def test_the_tool_tells_detections_apart(name: str, value: torch.Tensor, error: float) -> None:
    expected = [{"scores": torch.tensor([0.5, 0.5]), "labels": torch.tensor([90, 90])}]
    assert detectors._difference([{**expected[0], name: value}], expected) == error
    assert detectors._difference([{"scores": expected[0]["scores"]}], expected) == float("inf")
