"""Oddities from other fields: points and graphs, flows and codes, diffusion, filters that are computed."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools._oddity_images import Stem
from tools._oddity_table import IMAGE, SERIES, TOKENS, VECTOR, ids, normal, oddity

# ---------------------------------------------------------------- points, sets and graphs


@oddity("PointNet: a learned 3 x 3 transform, and a maximum over points", (normal(2, 3, 10),))
class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.look, self.turn = nn.Conv1d(3, 8, 1), nn.Linear(8, 9)
        self.a, self.norm, self.b = nn.Conv1d(3, 12, 1), nn.BatchNorm1d(12), nn.Conv1d(12, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn(F.relu(self.look(x)).amax(2)).view(-1, 3, 3) + torch.eye(3)
        x = torch.bmm(turn, x)
        return self.head(self.b(F.relu(self.norm(self.a(x)))).amax(2))


@oddity("PointNet++: each point beside the maximum over all", (normal(2, 3, 10),))
class PointSegmentation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 12, 1), nn.Conv1d(20, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = F.relu(self.a(x))
        far = self.b(near).amax(2, keepdim=True).expand(-1, -1, x.shape[2])
        return self.c(torch.cat((near, far), 1))


@oddity("graph convolution with a dense adjacency", (normal(2, 7, 6), (normal(2, 7, 7) > 0).float()))
class GraphConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        edges = edges / edges.sum(2, keepdim=True).clamp(min=1)
        return self.head(edges @ self.b(F.relu(edges @ self.a(x))))


@oddity("message passing by `index_add` over a list of edges", (normal(9, 6), ids(2, 14, below=9)))
class MessagePassing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message, self.update = nn.Linear(6, 8), nn.Linear(16, 12), nn.Linear(20, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        messages = F.relu(self.message(torch.cat((x[edges[0]], x[edges[1]]), 1)))
        total = messages.new_zeros(x.shape[0], messages.shape[1]).index_add(0, edges[1], messages)
        return self.head(F.relu(self.update(torch.cat((x, total), 1))))


@oddity("slot attention: learned slots, a GRU cell", TOKENS)
class SlotAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slots, self.norm, self.norm_slots = nn.Parameter(torch.randn(1, 3, 8)), nn.LayerNorm(6), nn.LayerNorm(8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.cell, self.up, self.down = nn.GRUCell(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        k, v, slots = self.k(x), self.v(x), self.slots.expand(x.shape[0], -1, -1)
        for _ in range(2):
            weights = (k @ self.q(self.norm_slots(slots)).transpose(1, 2) / 8**0.5).softmax(2) + 1e-8
            weights = weights / weights.sum(1, keepdim=True)
            slots = self.cell((weights.transpose(1, 2) @ v).flatten(0, 1), slots.flatten(0, 1)).unflatten(0, (-1, 3))
            slots = slots + self.down(F.relu(self.up(slots)))
        return self.head(slots.mean(1))


@oddity("Perceiver: latents that ask the input", TOKENS)
class Perceiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, 12))
        self.ask = nn.MultiheadAttention(12, 3, kdim=6, vdim=6, batch_first=True)
        self.think = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True, norm_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(x.shape[0], -1, -1)
        latents = latents + self.ask(latents, x, x, need_weights=False)[0]
        return self.head(self.think(latents).mean(1))


@oddity("`nn.Transformer`, encoder and decoder", (normal(2, 5, 12), normal(2, 4, 12, seed=1)))
class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(12, 3, 1, 1, 24, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(4)
        return self.head(self.transformer(x, y, tgt_mask=mask, tgt_is_causal=True))


# ---------------------------------------------------------------- flows, codes, diffusion


@oddity("normalising flow: coupling layers (RealNVP)", (normal(2, 8),))
class Couplings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for net in self.nets:
            a, b = x.chunk(2, 1)
            scale, shift = net(a).chunk(2, 1)
            x = torch.cat((b * torch.exp(scale.tanh()) + shift, a), 1)
            total = total + scale.tanh().sum(1)
        return x, total


@oddity("Glow: squeeze, activation norm, an invertible 1 x 1 convolution", IMAGE)
class Glow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(1, 12, 1, 1)), nn.Parameter(torch.ones(1, 12, 1, 1))
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(12, 12))[0])
        self.net = nn.Sequential(nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = (F.pixel_unshuffle(x, 2) + self.shift) * self.scale
        x = F.conv2d(x, self.mix[..., None, None])
        a, b = x.chunk(2, 1)
        scale, shift = self.net(a).chunk(2, 1)
        volume = torch.linalg.slogdet(self.mix)[1] * 16
        return torch.cat((a, b * scale.sigmoid() + shift), 1), volume + scale.sigmoid().log().sum((1, 2, 3))


@oddity("variational autoencoder: mean and variance by `chunk`, noise by `randn_like`", VECTOR)
class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.latent = nn.Linear(6, 16), nn.Linear(16, 16)
        self.leave, self.out = nn.Linear(8, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.latent(F.relu(self.enter(x))).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * spread).exp() * self.training
        return self.out(F.relu(self.leave(z)))


@oddity("codebook: the nearest vector by `argmin` (VQ-VAE)", IMAGE)
class Codebook(Stem):
    def __init__(self) -> None:
        super().__init__(12, 12)
        self.enter, self.codes, self.leave = nn.Conv2d(12, 8, 1), nn.Embedding(16, 8), nn.Conv2d(8, 12, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        z = self.enter(x).permute(0, 2, 3, 1)
        flat = z.reshape(-1, z.shape[-1])
        distances = (
            flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.codes.weight.t() + self.codes.weight.pow(2).sum(1)
        )
        return self.leave(self.codes(distances.argmin(1)).view_as(z).permute(0, 3, 1, 2))


@oddity(
    "diffusion U-Net: time by FiLM, group norm, attention over space", (normal(2, 3, 8, 8), torch.tensor([3.0, 7.0]))
)
class Diffusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 32))
        self.enter, self.norm, self.conv = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.Conv2d(16, 16, 3, 1, 1),
        )
        self.norm2, self.qkv, self.proj = nn.GroupNorm(4, 16), nn.Conv1d(16, 48, 1), nn.Conv1d(16, 16, 1)
        self.leave = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(4) / 4)
        scale, shift = self.time(torch.cat((angles.sin(), angles.cos()), 1))[:, :, None, None].chunk(2, 1)
        x = self.enter(x)
        x = x + self.conv(F.silu(self.norm(x) * (1 + scale) + shift))
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm2(x).reshape(b, c, h * w)).reshape(b * 2, -1, h * w).chunk(3, 1)
        weights = torch.einsum("bct,bcs->bts", q, k).softmax(-1)
        y = self.proj(torch.einsum("bts,bcs->bct", weights, v).reshape(b, -1, h * w))
        return self.leave(x + y.reshape(b, c, h, w))


@oddity("capsules: routing by agreement", IMAGE)
class Capsules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, 2, 1)
        self.votes = nn.Parameter(torch.randn(64, 3, 6, 4) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.first(x)))
        x = x.view(x.shape[0], 4, 4, 16).permute(0, 1, 3, 2).reshape(x.shape[0], 64, 4)
        votes = torch.einsum("bid,iokd->biok", x, self.votes)
        routes = torch.zeros_like(votes[..., 0])
        for _ in range(2):
            s = (routes.softmax(2)[..., None] * votes).sum(1)
            norm = s.norm(dim=-1, keepdim=True)
            s = s * norm / (1 + norm.pow(2))
            routes = routes + (votes * s[:, None]).sum(-1)
        return s.norm(dim=-1)


@oddity("SegNet: `max_unpool2d` with the places of the maxima", IMAGE)
class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.max_pool2d(F.relu(self.a(x)), 2, return_indices=True)
        return self.c(F.max_unpool2d(F.relu(self.b(x)), places, [2, 2]))


# ---------------------------------------------------------------- filters and recurrences that are computed


@oddity("SincNet: filters from two numbers each", SERIES)
class Sinc(nn.Module):
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.low, self.band = nn.Parameter(torch.rand(8, 1) / 4), nn.Parameter(torch.rand(8, 1) / 4)
        self.register_buffer("steps", torch.arange(-3.0, 4.0))
        self.mix, self.head = nn.Conv1d(8, 12, 3, padding=1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low.abs()
        high = low + self.band.abs()
        filters = 2 * high * torch.sinc(2 * high * self.steps) - 2 * low * torch.sinc(2 * low * self.steps)
        x = F.conv1d(x.mean(1, keepdim=True), filters[:, None], padding=3)
        return self.head(F.relu(self.mix(x.abs())).mean(2))


@oddity("Hyena: long convolutions by Fourier transform, filters from a network of positions", TOKENS)
class Hyena(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.head = nn.Linear(6, 24), nn.Linear(8, 8), nn.Linear(8, 4)
        self.short = nn.Conv1d(24, 24, 3, padding=2, groups=24)
        self.filters = nn.Sequential(nn.Linear(1, 10), nn.GELU(), nn.Linear(10, 8))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        a, b, v = self.short(self.enter(x).transpose(1, 2))[..., :n].chunk(3, 1)
        filters = self.filters(torch.linspace(0, 1, n)[:, None]).t()
        spectrum = torch.fft.rfft(v * a, n=2 * n) * torch.fft.rfft(filters, n=2 * n)
        y = torch.fft.irfft(spectrum, n=2 * n)[..., :n] * b
        return self.head(self.leave(y.transpose(1, 2)).mean(1))


@oddity("diagonal complex recurrence (LRU, S4D)", TOKENS)
class ComplexRecurrence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decay, self.turn = nn.Parameter(torch.randn(10)), nn.Parameter(torch.randn(10))
        self.enter = nn.Parameter(torch.randn(10, 6, dtype=torch.cfloat))
        self.leave = nn.Parameter(torch.randn(8, 10, dtype=torch.cfloat))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        rate = torch.polar(torch.exp(-F.softplus(self.decay)), self.turn)
        u = x.to(self.enter.dtype) @ self.enter.t()
        h, outputs = torch.zeros_like(u[:, 0]), []
        for t in range(x.shape[1]):
            h = rate * h + u[:, t]
            outputs.append((h @ self.leave.t()).real)
        return self.head(torch.stack(outputs, 1).mean(1))


@oddity("retention: decays by position, heads by einsum", TOKENS)
class Retention(nn.Module):
    decay: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 24)
        self.norm, self.gate = nn.GroupNorm(3, 24), nn.Linear(6, 24)
        self.out, self.head = nn.Linear(24, 8), nn.Linear(8, 4)
        self.register_buffer("decay", 1 - 2.0 ** (-5 - torch.arange(3.0)))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        steps = torch.arange(n)
        lag = (steps[:, None] - steps[None]).clamp(min=0)
        mask = torch.where(steps[:, None] >= steps[None], self.decay[:, None, None] ** lag, 0.0)
        y = torch.einsum("bnhd,bmhd,hnm,bmhe->bnhe", q, k, mask, v)
        y = self.norm(y.flatten(2).flatten(0, 1)).view(b, n, -1)
        return self.head(self.out(F.silu(self.gate(x)) * y).mean(1))


@oddity("a Conformer's convolution module", TOKENS)
class Conformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.up, self.depth, self.batch, self.down = (
            nn.Conv1d(8, 24, 1), nn.Conv1d(12, 12, 3, padding=1, groups=12), nn.BatchNorm1d(12), nn.Conv1d(12, 8, 1)
        )  # fmt: skip
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = F.glu(self.up(self.norm(x).transpose(1, 2)), 1)
        return self.head((x + self.down(F.silu(self.batch(self.depth(y)))).transpose(1, 2)).mean(1))


@oddity("highway: a gate between a layer and its input", VECTOR)
class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
        self.layers, self.gates = (nn.ModuleList(nn.Linear(12, 12) for _ in range(2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            t = gate(x).sigmoid()
            x = torch.lerp(x, F.relu(layer(x)), t)
        return self.head(x)


@oddity("octave convolution: two resolutions of one layer", IMAGE)
class Octave(Stem):
    def __init__(self) -> None:
        super().__init__(12, 12)
        self.hh, self.hl, self.lh, self.ll = (
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((12, 8), (12, 6), (6, 8), (6, 6))
        )
        self.last = nn.Conv2d(14, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        low = F.relu(self.hl(F.avg_pool2d(x, 2)))
        high = F.relu(self.hh(x) + F.interpolate(self.lh(low), scale_factor=2))
        low = F.relu(self.ll(low))
        return self.last(torch.cat((high, F.interpolate(low, scale_factor=2)), 1))


@oddity("LSTM with projections, two layers, both directions", TOKENS)
class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, 2, batch_first=True, bidirectional=True, proj_size=5)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


@oddity("attention of a decoder over an encoder (Bahdanau), GRU cells", (normal(2, 5, 6), normal(2, 3, 6, seed=1)))
class Bahdanau(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell = nn.GRU(6, 8, batch_first=True), nn.GRUCell(14, 8)
        self.q, self.k, self.score, self.head = nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(10, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory, h = self.encoder(x)
        h, keys, outputs = h[0], self.k(memory), []
        for t in range(y.shape[1]):
            weights = self.score((keys + self.q(h)[:, None]).tanh()).softmax(1)
            context = (weights * memory).sum(1)
            h = self.cell(torch.cat((y[:, t], context), 1), h)
            outputs.append(self.head(torch.cat((h, context), 1)))
        return torch.stack(outputs, 1)


@oddity("scatter over channels by value (sparse features)", VECTOR)
class KeepLargest(nn.Module):
    """A sparse autoencoder: only the largest features of each sample pass."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        values, places = x.topk(5, 1)
        return self.head(F.relu(self.down(torch.zeros_like(x).scatter(1, places, values))))


@oddity("masked autoencoder: tokens picked by `gather`, put back among learned ones", (*TOKENS, normal(2, 5, seed=3)))
class MaskedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(6, 12), nn.Parameter(torch.randn(1, 5, 12))
        self.encode = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
        self.narrow, self.missing = nn.Linear(12, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.decode, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 6)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        order = noise.argsort(1)
        x = self.embed(x) + self.place
        kept = torch.gather(x, 1, order[:, :3, None].repeat(1, 1, 12))
        y = self.narrow(self.encode(kept))
        y = torch.cat((y, self.missing.repeat(x.shape[0], 2, 1)), 1)
        y = torch.gather(y, 1, order.argsort(1)[..., None].expand(-1, -1, 8))
        return self.head(self.decode(y))
