"""torchvision's detectors with seeded random weights that detect something, and images and targets for them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection

from tools._zoo_models import _blur, randomize

NAMES = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
_SMALL = {"min_size": 160, "max_size": 224}
SCORE = 0.001
"""Scores from which a box counts: with random weights none of the classes is likely."""

_LAST = re.compile(
    r"(cls_logits|cls_score|bbox_reg|bbox_pred|bbox_ctrness|mask_fcn_logits|kps_score_lowres|module_list\.\d+(\.1)?)$"
)
_BatchNorm = nn.modules.batchnorm._BatchNorm


def build(name: str, seed: int = 0, **options: Any) -> nn.Module:
    """Build a detector in eval mode; images are scaled to about 200 pixels, but for SSD, whose size is fixed."""
    small = {} if name.startswith("ssd") else _SMALL
    torch.manual_seed(seed)
    model: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None, **small, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if hasattr(module, "score_thresh"):
            module.score_thresh = SCORE  # type: ignore[assignment]
    randomize(model, seed + 1)
    _calibrate(model, seed)
    _moderate(model, seed)
    return model


@torch.no_grad()
def _calibrate(model: nn.Module, seed: int) -> None:
    """Give batch norms the statistics of one batch of images, each channel's a little off."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    model(images(seed=seed + 2))
    generator = torch.Generator().manual_seed(seed + 3)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
        _blur(norm, generator)


@torch.no_grad()
def _moderate(model: nn.Module, seed: int) -> None:
    """Scale what the heads say to a deviation of 0.7: no score is sure, and no box is all of the image or nothing."""
    layers = [module for path, module in model.named_modules() if _LAST.search(path) and hasattr(module, "weight")]
    said: dict[nn.Module, list[float]] = {layer: [] for layer in layers}
    handles = [layer.register_forward_hook(lambda m, _, out: said[m].append(float(out.std()))) for layer in layers]
    model(images(seed=seed + 2))
    for handle in handles:
        handle.remove()
    for layer, deviations in said.items():
        found = max(deviations, default=0.0)
        for parameter in layer.parameters():
            parameter.mul_(0.7 / found if found > 0 else 1.0)


def images(seed: int = 7) -> list[Tensor]:
    """Return two images of unlike sizes, each with a colour and a gradient of its own under the noise."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for height, width in ((160, 200), (180, 160)):
        slope = torch.linspace(-1, 1, width) * torch.randn(3, 1, 1, generator=generator)
        noise = torch.randn((3, height, width), generator=generator)
        made.append((0.5 + 0.25 * (torch.randn(3, 1, 1, generator=generator) + slope + noise)).clamp(0, 1))
    return made


def targets(pictures: list[Tensor]) -> list[dict[str, Tensor]]:
    """Return two boxes per image, with masks and keypoints."""
    boxes = torch.tensor([[10.0, 10.0, 90.0, 120.0], [40.0, 30.0, 150.0, 140.0]])
    made = []
    for picture in pictures:
        masks = torch.zeros((2, *picture.shape[1:]), dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        points = boxes[:, None, :2] + torch.rand(2, 17, 2, generator=torch.Generator().manual_seed(0)) * 60
        keypoints = torch.cat([points, torch.ones(2, 17, 1)], 2)
        made.append({"boxes": boxes, "labels": torch.tensor([1, 1]), "masks": masks, "keypoints": keypoints})
    return made
