"""Oddities that read images, volumes and series: sampling, reshapes, generators, U-Nets."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools._oddity_table import IMAGE, SERIES, VECTOR, normal, oddity


class Stem(nn.Module):
    """An image stem of 12 channels, and a classifier over the mean of positions."""

    def __init__(self, width: int = 12, out: int = 12) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Linear(out, 4)

    def body(self, x: Tensor) -> Tensor:
        """Return features of the stem's output."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


# ---------------------------------------------------------------- reshapes as einops writes them


@oddity("`b (h p) (w q) c -> b (h w) (p q c)` (patches by reshape)", IMAGE)
class Patches(Stem):
    def __init__(self) -> None:
        super().__init__(8, 12)
        self.mix = nn.Linear(4 * 8, 12)

    def body(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // 4, 4 * c)
        return self.mix(x).transpose(1, 2).reshape(b, -1, h // 2, w // 2)


@oddity("`b (heads d) (h p) (w q) -> (b h w) heads (p q) d` (window attention)", IMAGE)
class Windows(Stem):
    def __init__(self) -> None:
        super().__init__(12, 12)
        self.qkv, self.out = nn.Conv2d(12, 36, 1), nn.Conv2d(12, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        parts = []
        for part in self.qkv(x).chunk(3, 1):
            part = part.reshape(b, 3, 4, h // 4, 4, w // 4, 4).permute(0, 3, 5, 1, 4, 6, 2)
            parts.append(part.reshape(b * (h // 4) * (w // 4), 3, 16, 4))
        y = F.scaled_dot_product_attention(*parts)
        y = y.reshape(b, h // 4, w // 4, 3, 4, 4, 4).permute(0, 3, 6, 1, 4, 2, 5).reshape(b, 12, h, w)
        return x + self.out(y)


@oddity("`b (g c) n -> (b g) c n`, one layer for all groups, and back", SERIES)
class GroupsAsBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Conv1d(3, 12, 3, padding=1), nn.Conv1d(4, 8, 1), nn.Conv1d(24, 10, 1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = F.relu(self.shared(x.reshape(-1, 4, x.shape[2]))).reshape(x.shape[0], 24, -1)
        return self.head(self.last(y).mean(2))


@oddity("space to depth and back by reshape and permute", IMAGE)
class SpaceToDepth(Stem):
    def __init__(self) -> None:
        super().__init__(6, 6)
        self.mix = nn.Conv2d(24, 24, 1)

    def body(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        y = self.mix(y).reshape(b, 2, 2, c, h // 2, w // 2).permute(0, 3, 4, 1, 5, 2).reshape(b, c, h, w)
        return x + y


# ---------------------------------------------------------------- sampling


@oddity("`unfold`, weights per position, `fold` (involution)", IMAGE)
class Involution(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.last = nn.Conv2d(12, 9, 1), nn.Conv2d(12, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        windows = F.unfold(x, 3, padding=1).view(b, c, 9, h, w)
        return self.last((windows * self.kernels(x)[:, None]).sum(2))


@oddity("`unfold`, a linear layer per patch, `fold`", IMAGE)
class UnfoldFold(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(12 * 4, 12 * 4), nn.Conv2d(12, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        patches = self.inner(F.unfold(x, 2, stride=2).transpose(1, 2)).transpose(1, 2)
        return self.last(F.fold(patches, (8, 8), 2, stride=2))


@oddity("`grid_sample` (spatial transformer)", IMAGE)
class SpatialTransformer(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.where, self.last = nn.Linear(12, 6), nn.Conv2d(12, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        theta = self.where(x.mean((2, 3))).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.last(F.grid_sample(x, grid, align_corners=False))


class _Deformable(Stem):
    def __init__(self, groups: int, offset_groups: int, *, masked: bool = False) -> None:
        from torchvision.ops import DeformConv2d

        super().__init__(12, 8)
        self.offset = nn.Conv2d(12, 18 * offset_groups, 3, padding=1)
        self.mask = nn.Conv2d(12, 9 * offset_groups, 3, padding=1) if masked else None
        self.deform, self.last = DeformConv2d(12, 16, 3, padding=1, groups=groups), nn.Conv2d(16, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        mask = None if self.mask is None else self.mask(x).sigmoid()
        return self.last(F.relu(self.deform(x, self.offset(x), mask)))


@oddity("deformable convolution", IMAGE, "torchvision")
def deformable() -> nn.Module:
    return _Deformable(1, 1)


@oddity("deformable convolution with mask, groups and offset groups", IMAGE, "torchvision")
def deformable_groups() -> nn.Module:
    return _Deformable(2, 4, masked=True)


# ---------------------------------------------------------------- generators, U-Nets, 1-D and 3-D


@oddity("generator with modulated convolutions by batch groups (StyleGAN2)", VECTOR)
class StyleGan(nn.Module):
    """The style scales the weights, demodulation scales them back, and each sample is a group of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 10))
        self.start = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.style1, self.weight1 = nn.Linear(10, 8), nn.Parameter(torch.randn(12, 8, 3, 3))
        self.style2, self.weight2 = nn.Linear(10, 12), nn.Parameter(torch.randn(3, 12, 1, 1))

    def modulated(self, x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool) -> Tensor:
        b, c, h, w = x.shape
        weights = weight[None] * style[:, None, :, None, None]
        if demodulate:
            weights = weights * torch.rsqrt(weights.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
        out, k = weight.shape[0], weight.shape[-1]
        x = F.conv2d(x.reshape(1, b * c, h, w), weights.reshape(b * out, c, k, k), padding=k // 2, groups=b)
        return x.reshape(b, out, h, w)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mapping(z)
        x = self.start.expand(z.shape[0], -1, -1, -1)
        x = F.leaky_relu(self.modulated(x, self.weight1, self.style1(z), demodulate=True), 0.2)
        return self.modulated(F.interpolate(x, scale_factor=2), self.weight2, self.style2(z), demodulate=False)


@oddity("generator whose styles scale activations (the same function)", VECTOR)
class StyleScaled(StyleGan):
    def modulated(self, x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool) -> Tensor:
        y = F.conv2d(x * style[:, :, None, None], weight, padding=weight.shape[-1] // 2)
        if demodulate:
            norms = torch.einsum("bi,oi->bo", style.pow(2), weight.pow(2).sum((2, 3)))
            y = y * torch.rsqrt(norms + 1e-8)[:, :, None, None]
        return y


@oddity("generator by transposed convolutions (DCGAN)", (normal(2, 6, 1, 1),))
def dcgan() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(6, 16, 4, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


class _UNet(nn.Module):
    def __init__(self, *, concat: bool) -> None:
        super().__init__()
        self.concat = concat
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(8, 8, 2, 2)
        self.join2 = nn.Conv2d(32 if concat else 16, 8, 3, padding=1)
        self.join1 = nn.Conv2d(16 if concat else 8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def joined(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((a, b), 1) if self.concat else a + b

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.down1(x))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        x = self.up2(F.relu(self.middle(F.max_pool2d(two, 2))))
        x = self.up1(F.relu(self.join2(self.joined(two, x))))
        return self.head(F.relu(self.join1(self.joined(one, x))))


@oddity("U-Net, skips by concatenation", IMAGE)
def unet_concat() -> nn.Module:
    return _UNet(concat=True)


@oddity("U-Net, skips by addition", IMAGE)
def unet_add() -> nn.Module:
    return _UNet(concat=False)


@oddity("1-D residual net", SERIES)
class Net1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(3, 12, 5, padding=2), nn.BatchNorm1d(12)
        self.a, self.b = nn.Conv1d(12, 16, 3, padding=1), nn.Conv1d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.adaptive_avg_pool1d(x + self.b(F.relu(self.a(x))), 1).flatten(1))


@oddity("3-D net with (2+1)-D convolutions", (normal(2, 3, 4, 6, 6),))
class Net3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.space, self.time = nn.Conv3d(3, 10, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(10, 12, (3, 1, 1))
        self.norm, self.last = nn.BatchNorm3d(12), nn.Conv3d(12, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.time(F.relu(self.space(x)))))
        return self.head(self.last(F.max_pool3d(x, 2)).mean((2, 3, 4)))


@oddity("hypernetwork: a layer gives the kernel of a convolution", (*IMAGE, *VECTOR))
class HyperNetwork(Stem):
    """One kernel for the whole batch, from the mean of a second input."""

    def __init__(self) -> None:
        super().__init__(12, 8)
        self.hyper = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8 * 12 * 9))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        kernel = self.hyper(z.mean(0)).view(8, 12, 3, 3)
        return self.head(F.relu(F.conv2d(F.relu(self.stem(x)), kernel, padding=1)).mean((2, 3)))


@oddity("hypernetwork: a layer gives the weights of a linear layer, per sample", (normal(2, 5, 6), normal(2, 7)))
class HyperLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.hyper, self.head = nn.Linear(6, 8), nn.Linear(7, 10 * 8), nn.Linear(10, 4)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        weights = self.hyper(z).unflatten(1, (10, 8))
        return self.head(F.relu(self.first(x) @ weights.transpose(1, 2)).mean(1))


@oddity("dynamic convolution: kernels mixed by attention", IMAGE)
class DynamicConv(Stem):
    """CondConv for a batch of one kernel: the mean over samples chooses."""

    def __init__(self) -> None:
        super().__init__(12, 16)
        self.route, self.kernels = nn.Linear(12, 4), nn.Parameter(torch.randn(4, 16, 12, 3, 3) / 5)

    def body(self, x: Tensor) -> Tensor:
        weights = self.route(x.mean((0, 2, 3))).softmax(0)
        return F.relu(F.conv2d(x, torch.einsum("k,koihw->oihw", weights, self.kernels), padding=1))
