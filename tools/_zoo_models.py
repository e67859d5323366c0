"""The zoo: torchvision's classification, segmentation, video and optical-flow models with seeded random weights."""

from __future__ import annotations

import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

_CATEGORIES = {
    "classification": models,
    "segmentation": models.segmentation,
    "video": models.video,
    "optical flow": models.optical_flow,
}
# The size each model's own weights are made for, where that is not 224 (a ViT built without weights is a 224 one).
_IMAGE_SIZES = {"inception_v3": 299, "swin_v2_*": 256}
# Frames, height, width: the smallest that the architecture takes, where 16 x 112 x 112 does not fit or is not needed.
_CLIP_SIZES = {"mvit_*": (16, 224, 224), "s3d": (16, 224, 224), "swin3d_*": (8, 112, 112)}
_BatchNorm = nn.modules.batchnorm._BatchNorm
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


def catalog() -> dict[str, str]:
    """Return every model name of the zoo with its category; detectors and quantized models are not part of it."""
    return {name: category for category, module in _CATEGORIES.items() for name in models.list_models(module=module)}


def _match(table: dict[str, Any], name: str, default: Any) -> Any:
    return next((value for pattern, value in table.items() if fnmatch.fnmatchcase(name, pattern)), default)


def input_shape(name: str) -> tuple[int, ...]:
    """Return the shape of one input of the model, without the batch."""
    category = catalog()[name]
    if category == "video":
        return (3, *_match(_CLIP_SIZES, name, (16, 112, 112)))
    side = 128 if category == "optical flow" else _match(_IMAGE_SIZES, name, 224)
    return (3, side, side)


def make_inputs(name: str, batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Return fresh random inputs: one tensor, or a pair of images for optical flow."""
    generator = torch.Generator().manual_seed(seed)
    count = 2 if catalog()[name] == "optical flow" else 1
    shape = (batch, *input_shape(name))
    # A colour for each sample: noise alone looks the same in all of them once it is averaged over space.
    colors = (*shape[:2], *(1 for _ in shape[2:]))

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator) + torch.randn(colors, generator=generator)

    return tuple(draw().to(dtype) for _ in range(count))


def build(name: str, seed: int = 0) -> nn.Module:
    """Build a model in eval mode; the same name and seed always give the same weights, none of them trivial.

    Running statistics are near those of real activations, because random ones make a deep network blind to its input.
    """
    options: dict[str, Any] = {"weights": None}
    if catalog()[name] == "segmentation":
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    torch.manual_seed(seed)
    model: nn.Module = models.get_model(name, **options)
    model.eval()
    randomize(model, seed + 1)
    calibrate(model, name, seed)
    return model


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Replace what a fresh model leaves at zero or one: affine norms, biases, all-zero heads.

    With those left alone a wrong cut could go unseen: a zero head hides everything, equal scales hide a permutation.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for module in model.modules():
        if isinstance(module, _NORMS):
            if module.weight is not None:
                module.weight.copy_(uniform(module.weight, 0.5, 1.5))
            if module.bias is not None:
                module.bias.copy_(uniform(module.bias, -0.2, 0.2))
    for parameter in model.parameters():
        if parameter.numel() > 1 and bool(parameter.min() == parameter.max()):
            parameter.copy_(_spread(parameter, generator))


_STATISTICS: dict[tuple[str, int], dict[str, Tensor]] = {}


@torch.no_grad()
def calibrate(model: nn.Module, name: str, seed: int) -> None:
    """Give batch norms the statistics of one random batch, each channel's a little off.

    The first result is kept and used again, so that models built twice in a process are equal to the bit.
    """
    norms = {key: module for key, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if norms and (name, seed) not in _STATISTICS:
        momenta = [module.momentum for module in norms.values()]
        for module in norms.values():
            module.train().momentum = 1.0
        model(*make_inputs(name, 2, seed + 2))
        generator = torch.Generator().manual_seed(seed + 3)
        for module, momentum in zip(norms.values(), momenta, strict=True):
            module.eval().momentum = momentum
            _blur(module, generator)
        _STATISTICS[name, seed] = {key: value.clone() for key, value in model.named_buffers()}
    for key, value in model.named_buffers():
        if norms:
            value.copy_(_STATISTICS[name, seed][key])


def _blur(norm: _BatchNorm, generator: torch.Generator) -> None:
    """Scale each running variance by 0.6 to 1.7 and move each mean by up to 0.2 deviations.

    The factors leave the gain of a layer near one. With 0.5 to 1.5 it is 1.1, and a hundred of those turn rounding
    in float32 into half the output; with 1 to 2 a deep network hardly answers to its input.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factors = torch.rand(norm.running_var.shape, generator=generator)
    shifts = torch.rand(norm.running_mean.shape, generator=generator) * 0.4 - 0.2
    norm.running_mean.add_(shifts * norm.running_var.sqrt())
    norm.running_var.mul_(factors * 1.1 + 0.6).add_(1e-3)


def _spread(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Random values for a constant parameter: near zero for a zero bias or matrix, positive for a scale."""
    if float(parameter.flatten()[0]) != 0.0:
        return torch.rand(parameter.shape, generator=generator) * 0.1 + 0.05
    scale = 0.1 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
    return torch.randn(parameter.shape, generator=generator) * scale


def tensors(output: Any) -> list[Tensor]:
    """Flatten a model's output (tensor, dict, list or tuple of them) into a list of tensors."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in tensors(value)]
