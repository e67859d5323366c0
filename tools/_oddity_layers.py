"""Oddities in how layers hold their weights: computed, normalised, shared, listed, subclassed."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import itertools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tools._oddity_images import Stem
from tools._oddity_table import IMAGE, TOKENS, VECTOR, oddity

# ---------------------------------------------------------------- weights that are computed


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: every filter has zero mean and unit variance."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True) + 1e-5
        return F.conv2d(x, (self.weight - mean) / std, self.bias, self.stride, self.padding)


class _Second(Stem):
    """A layer between the stem and the last convolution."""

    def __init__(self, layer: nn.Module, out: int = 16) -> None:
        super().__init__(12, 8)
        self.layer, self.last = layer, nn.Conv2d(out, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.layer(x)))


@oddity("weight standardisation and group norm (BiT)", IMAGE)
def standardised() -> nn.Module:
    return _Second(nn.Sequential(StandardisedConv(12, 16, 3, padding=1), nn.GroupNorm(4, 16)))


class ScaledStandardisedConv(nn.Conv2d):
    """NFNet's, as timm writes it: by ``F.batch_norm`` on the weights, with a gain per filter."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight[0].numel() ** -0.5
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, weight=(self.gain * scale).view(-1),
            training=True, momentum=0.0, eps=1e-5,
        ).reshape_as(self.weight)  # fmt: skip
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@oddity("scaled weight standardisation by `F.batch_norm` (NFNet)", IMAGE)
def standardised_by_batch_norm() -> nn.Module:
    return _Second(ScaledStandardisedConv(12, 16, 3, padding=1))


@oddity("`parametrizations.weight_norm`", IMAGE)
def weight_norm() -> nn.Module:
    return _Second(parametrizations.weight_norm(nn.Conv2d(12, 16, 3, padding=1)))


@oddity("`nn.utils.weight_norm` (the old one, by a hook)", IMAGE)
def weight_norm_by_hook() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Second(nn.utils.weight_norm(nn.Conv2d(12, 16, 3, padding=1)))


@oddity("`parametrizations.spectral_norm`", IMAGE)
def spectral_norm() -> nn.Module:
    return _Second(parametrizations.spectral_norm(nn.Conv2d(12, 16, 3, padding=1)))


@oddity("`nn.utils.spectral_norm` (the old one, by a hook)", IMAGE)
def spectral_norm_by_hook() -> nn.Module:
    return _Second(nn.utils.spectral_norm(nn.Conv2d(12, 16, 3, padding=1)))


@oddity("`parametrizations.orthogonal`", VECTOR)
def orthogonal() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), parametrizations.orthogonal(nn.Linear(12, 12)), nn.Linear(12, 4))


class _Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).t()


@oddity("a parametrisation of one's own: a symmetric weight", VECTOR)
def symmetric() -> nn.Module:
    layer = nn.Linear(12, 12)
    nn.utils.parametrize.register_parametrization(layer, "weight", _Symmetric())
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), layer, nn.ReLU(), nn.Linear(12, 4))


@oddity("LoRA: a low-rank product beside the weight", VECTOR)
class Lora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 16), nn.Linear(16, 4)
        self.down, self.up = nn.Parameter(torch.randn(4, 12)), nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.c(F.relu(F.linear(x, self.b.weight + 0.5 * self.up @ self.down, self.b.bias)))


# ---------------------------------------------------------------- weights that are shared, joined, listed


@oddity("`nn.ParameterList`: a layer per entry, by `F.linear`", VECTOR)
class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = (6, 12, 16, 4)
        self.weights = nn.ParameterList(torch.randn(o, i) / i**0.5 for i, o in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.randn(o) for o in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = F.linear(torch.tanh(x), weight, bias)
        return x


@oddity("`nn.ParameterDict` of scales", IMAGE)
class Scales(Stem):
    def __init__(self) -> None:
        super().__init__(12, 12)
        self.scales = nn.ParameterDict({"a": torch.randn(12, 1, 1), "b": torch.randn(12, 1, 1)})
        self.last = nn.Conv2d(12, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x * self.scales["a"] + self.scales["b"])


@oddity("`F.linear` with concatenated weights", VECTOR)
class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(12, 6)
        self.head = nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat((self.a.weight, self.b.weight))
        return self.head(F.relu(F.linear(F.relu(self.first(x)), weight, torch.cat((self.a.bias, self.b.bias)))))


@oddity("queries, keys and values by one concatenated weight", TOKENS)
class JoinedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(12, 12) / 3) for _ in range(3))
        self.bias, self.out, self.head = nn.Parameter(torch.randn(12)), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        bias = torch.cat((self.bias, torch.zeros_like(self.bias), self.bias))  # BEiT's: keys have none
        packed = F.linear(x, torch.cat((self.q, self.k, self.v)), bias)
        q, k, v = packed.reshape(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(y)).mean(1))


@oddity("tied autoencoder: the decoder is the transposed encoder", VECTOR)
class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 8)
        self.bias_a, self.bias_b = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.b(F.relu(self.a(x))))
        hidden = F.relu(F.linear(code, self.b.weight.t(), self.bias_a))
        return F.linear(hidden, self.a.weight.t(), self.bias_b)


@oddity("tied convolutional autoencoder: `conv_transpose2d` with the same weights", IMAGE)
class TiedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.b(F.relu(self.a(x))))
        return F.conv_transpose2d(F.relu(F.conv_transpose2d(code, self.b.weight, padding=1)), self.a.weight, padding=1)


@oddity("recurrent depth: one block three times (ALBERT)", TOKENS)
class SharedDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(3):
            x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


# ---------------------------------------------------------------- subclasses, as timm and others write them


class SameConv(nn.Conv2d):
    """TensorFlow's padding: worked out in ``forward``."""

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        pads = [max((-(-size // s) - 1) * s + k - size, 0) for size in x.shape[-2:]]
        x = F.pad(x, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class BatchNormAct(nn.BatchNorm2d):
    """A norm that has its activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(y)


class LayerNormImage(nn.LayerNorm):
    """ConvNeXt's: over channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


@oddity("subclasses: `Conv2dSame`, `BatchNormAct2d`, `LayerNorm2d` (timm)", IMAGE)
def subclasses() -> nn.Module:
    return _Second(nn.Sequential(SameConv(12, 16, 3, 2), BatchNormAct(16), LayerNormImage(16)))


class MixedConv(nn.Module):
    """MixConv: every part of the channels has a kernel of its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.splits = (4, 8)
        self.parts = nn.ModuleList(nn.Conv2d(n, n, k, padding=k // 2, groups=n) for n, k in ((4, 3), (8, 5)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(y) for part, y in zip(self.parts, x.split(self.splits, 1), strict=True)], 1)


@oddity("mixed depthwise kernels by `split` (MixNet)", IMAGE)
def mixed_kernels() -> nn.Module:
    return _Second(MixedConv(), 12)


class SplitAttention(nn.Module):
    """ResNeSt's radix attention: groups of channels, weighed against each other and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 32, 3, padding=1, groups=2)
        self.down, self.up = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = F.relu(self.conv(x)).reshape(b, 2, 16, *x.shape[2:])
        weights = self.up(F.relu(self.down(x.sum(1).mean((2, 3), keepdim=True))))
        weights = weights.view(b, 1, 2, 16).transpose(1, 2).softmax(1).reshape(b, 2, 16, 1, 1)
        return (x * weights).sum(1)


@oddity("split attention (ResNeSt)", IMAGE)
def split_attention() -> nn.Module:
    return _Second(SplitAttention())


class HaloPositions(nn.Module):
    """BoTNet's: relative positions of rows and columns, by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 2, 6
        self.qkv = nn.Conv2d(12, 36, 1, bias=False)
        self.rows, self.columns = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, self.heads, self.size, h * w).unbind(1)
        scores = q.transpose(-2, -1) @ k * self.size**-0.5
        at = q.reshape(b, self.heads, self.size, h, w)
        rows = torch.einsum("bndij,kd->bnijk", at, self.rows)[..., None]
        columns = torch.einsum("bndij,kd->bnijk", at, self.columns)[..., None, :]
        scores = scores + (rows + columns).reshape(b, self.heads, h * w, h * w)
        return (v @ scores.softmax(-1).transpose(-2, -1)).reshape(b, -1, h, w)


@oddity("attention with positions of rows and columns (BoTNet)", IMAGE)
def positions_of_rows() -> nn.Module:
    return _Second(HaloPositions(), 12)


@oddity("efficient channel attention: a 1-D convolution along the channels (ECA)", IMAGE)
class ChannelConv(Stem):
    def __init__(self) -> None:
        super().__init__(12, 8)
        self.along, self.last = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Conv2d(12, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        weights = self.along(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None]
        return self.last(x * weights)


@oddity("global response norm (ConvNeXt V2)", IMAGE)
class ResponseNorm(Stem):
    def __init__(self) -> None:
        super().__init__(12, 12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.gamma, self.beta = nn.Parameter(torch.randn(24)), nn.Parameter(torch.randn(24))

    def body(self, x: Tensor) -> Tensor:
        y = F.gelu(self.up(x.permute(0, 2, 3, 1)))
        length = y.norm(p=2, dim=(1, 2), keepdim=True)
        y = y + torch.addcmul(self.beta, self.gamma, y * (length / (length.mean(-1, keepdim=True) + 1e-6)))
        return x + self.down(y).permute(0, 3, 1, 2)
