"""Oddities that read sequences: recurrence, scans, attention, experts, text and speech."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools._oddity_table import SERIES, TOKENS, VECTOR, ids, normal, oddity

WORDS = (ids(2, 7, below=11),)

# ---------------------------------------------------------------- recurrence


@oddity("LSTM", TOKENS)
class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Linear(6, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0][:, -1])


@oddity("GRU that starts from a state of its own", TOKENS)
class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(6, 12, 2, batch_first=True), nn.Linear(12, 4)
        self.start = nn.Parameter(torch.randn(2, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x, self.start.expand(-1, x.shape[0], -1).contiguous())[0][:, -1])


@oddity("bidirectional LSTM, final states read", TOKENS)
class Bidirectional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True, bidirectional=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, (h, _) = self.lstm(x)
        return self.head(torch.cat((out.mean(1), h[0], h[1]), 1))


class _Cells(nn.Module):
    def __init__(self, cell: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(6, 8), cell(8, 10), nn.Linear(10, 4)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.cell.weight_hh.shape[1])
        for t in range(x.shape[1]):
            h = self.cell(F.relu(self.embed(x[:, t])), h)
        return self.head(h)


@oddity("`nn.GRUCell` in a loop", TOKENS)
def gru_cells() -> nn.Module:
    return _Cells(nn.GRUCell)


@oddity("`nn.RNNCell` in a loop", TOKENS)
def rnn_cells() -> nn.Module:
    return _Cells(nn.RNNCell)


@oddity("`nn.LSTMCell` in a loop", TOKENS)
class LstmCells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.LSTMCell(6, 10), nn.LSTMCell(10, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = None, None
        for t in range(x.shape[1]):
            one = self.first(x[:, t], one)
            other = self.second(one[0], other)
        assert other is not None
        return self.head(other[0])


@oddity("an LSTM cell written out", TOKENS)
class LstmByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 10
        self.gates, self.head = nn.Linear(16, 40), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.width)
        for t in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat((x[:, t], h), 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


@oddity("selective scan (Mamba)", TOKENS)
class SelectiveScan(nn.Module):
    """Mamba's block: gate, short depthwise convolution, a scan whose step, input and output depend on the data."""

    def __init__(self) -> None:
        super().__init__()
        width, inner, state, rank = 6, 16, 4, 3
        self.rank, self.state = rank, state
        self.norm = nn.RMSNorm(width)
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.select = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.decay = nn.Parameter(torch.log(torch.arange(1.0, state + 1).repeat(inner, 1)))
        self.skip = nn.Parameter(torch.ones(inner))
        self.leave, self.head = nn.Linear(inner, width, bias=False), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        u, gate = self.enter(self.norm(x)).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., :length].transpose(1, 2))
        rank, b, c = self.select(u).split((self.rank, self.state, self.state), -1)
        delta = F.softplus(self.step(rank))
        kept = torch.exp(delta[..., None] * -torch.exp(self.decay))  # (batch, time, inner, state)
        added = delta[..., None] * b[:, :, None] * u[..., None]
        h, outputs = torch.zeros_like(added[:, 0]), []
        for t in range(length):
            h = kept[:, t] * h + added[:, t]
            outputs.append(torch.einsum("bds,bs->bd", h, c[:, t]))
        y = torch.stack(outputs, 1) + u * self.skip
        return self.head((x + self.leave(y * F.silu(gate))).mean(1))


# ---------------------------------------------------------------- attention


class _Mixed(nn.Module):
    """A query projection, other keys and values, and ``nn.MultiheadAttention`` between them."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed, self.mlp = nn.Linear(6, 12), nn.Linear(12, 16)
        self.attend = nn.MultiheadAttention(12, 3, batch_first=True, **options)
        self.keys = nn.Linear(6, options.get("kdim", 12))
        self.values = nn.Linear(6, options.get("vdim", 12))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        q = self.embed(x)
        y = q + self.attend(q, self.keys(x), self.values(x), need_weights=False)[0]
        return self.head(F.relu(self.mlp(y)).mean(1))


@oddity("`nn.MultiheadAttention` with `kdim`, `vdim`", TOKENS)
def attention_kdim_vdim() -> nn.Module:
    return _Mixed(kdim=8, vdim=10)


@oddity("`nn.MultiheadAttention` with `add_bias_kv`", TOKENS)
def attention_bias_kv() -> nn.Module:
    return _Mixed(add_bias_kv=True)


@oddity("`nn.MultiheadAttention` with `add_zero_attn`", TOKENS)
def attention_zero() -> nn.Module:
    return _Mixed(add_zero_attn=True)


@oddity("attention with rotary embedding", TOKENS)
class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 3, 8
        self.embed = nn.Linear(6, 10)
        self.q, self.k, self.v = nn.Linear(10, 24), nn.Linear(10, 24), nn.Linear(10, 24)
        self.out, self.head = nn.Linear(24, 10), nn.Linear(10, 4)

    def turned(self, x: Tensor) -> Tensor:
        half = self.size // 2
        angles = torch.arange(x.shape[2])[:, None] * 100.0 ** (-torch.arange(half) / half)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (part(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.head((x + self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


@oddity("attention with rotary embedding in complex numbers", TOKENS)
class RotaryComplex(Rotary):
    def turned(self, x: Tensor) -> Tensor:
        half = self.size // 2
        angles = torch.arange(x.shape[2])[:, None] * 100.0 ** (-torch.arange(half) / half)
        pairs = torch.view_as_complex(x.unflatten(-1, (half, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


@oddity("gMLP", TOKENS)
class GMlp(nn.Module):
    """Gates of tokens by tokens: half of the width, mixed over positions, multiplies the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(12, 8)
        self.gate_norm, self.mix = nn.LayerNorm(12), nn.Conv1d(5, 5, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, -1)
        return self.head((x + self.down(u * self.mix(self.gate_norm(v)))).mean(1))


@oddity("MLP-Mixer", (normal(2, 3, 8, 8),))
class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.norm1, self.tokens1, self.tokens2 = nn.LayerNorm(12), nn.Linear(4, 8), nn.Linear(8, 4)
        self.norm2, self.channels1, self.channels2 = nn.LayerNorm(12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens2(F.gelu(self.tokens1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.channels2(F.gelu(self.channels1(self.norm2(x))))).mean(1))


# ---------------------------------------------------------------- experts


@oddity("mixture of experts, dense, stacked weights, einsum", TOKENS)
class ExpertsEinsum(nn.Module):
    """Every expert sees every token, and a softmax weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router = nn.Linear(6, 8), nn.Linear(8, 4, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 12)), nn.Parameter(torch.randn(4, 12, 8))
        self.bias, self.head = nn.Parameter(torch.randn(4, 12)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights = self.router(x).softmax(-1)
        hidden = F.gelu(torch.einsum("btd,edh->bteh", x, self.up) + self.bias)
        return self.head((x + torch.einsum("bteh,ehd,bte->btd", hidden, self.down, weights)).mean(1))


@oddity("mixture of experts, dense, stacked weights, `bmm`", TOKENS)
class ExpertsBmm(nn.Module):
    """Llama 4's way: tokens are repeated for each expert, and packed gate and up weights multiply them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = 4
        self.embed, self.router = nn.Linear(6, 8), nn.Linear(8, 4)
        self.gate_up = nn.Parameter(torch.randn(4, 8, 24) / 3)
        self.down, self.head = nn.Parameter(torch.randn(4, 12, 8) / 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        flat = x.flatten(0, 1)
        scores = self.router(flat).sigmoid().t()
        gate, up = torch.bmm(flat.expand(self.experts, -1, -1) * scores[..., None], self.gate_up).chunk(2, -1)
        y = torch.bmm(F.silu(gate) * up, self.down).sum(0)
        return self.head((x + y.view_as(x)).mean(1))


@oddity("mixture of experts as a list of modules, dense", TOKENS)
class ExpertsList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router = nn.Linear(6, 8), nn.Linear(8, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 8)) for width in (8, 12, 16)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights = self.router(x).softmax(-1)
        for index, expert in enumerate(self.experts):
            x = x + weights[..., index : index + 1] * expert(x)
        return self.head(x.mean(1))


@oddity("mixture of experts, the two best of four by `topk` and `gather`", TOKENS)
class ExpertsTopk(nn.Module):
    """Every token runs through the stacked weights of its best experts, which are picked from the stack."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router = nn.Linear(6, 8), nn.Linear(8, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 12)), nn.Parameter(torch.randn(4, 12, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        hidden = F.relu(torch.einsum("btd,btkdh->btkh", x, self.up[chosen]))
        y = torch.einsum("btkh,btkhd,btk->btd", hidden, self.down[chosen], weights)
        return self.head((x + y).mean(1))


def _experts(config: str, model: str, **options: Any) -> nn.Module:
    import transformers

    settings = getattr(transformers, config)(
        vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, use_cache=False, **options,
    )  # fmt: skip
    return getattr(transformers, model)(settings)


@oddity("Mixtral (Hugging Face): rows sorted by expert, a grouped product", WORDS, "transformers")
def mixtral() -> nn.Module:
    return _experts("MixtralConfig", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2)


@oddity("Qwen3-MoE (Hugging Face): the same, with norms of queries and keys", WORDS, "transformers")
def qwen3_moe() -> nn.Module:
    return _experts(
        "Qwen3MoeConfig", "Qwen3MoeForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
        head_dim=4,
    )  # fmt: skip


# ---------------------------------------------------------------- text and speech


class _Bag(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(11, 8, mode=mode), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.bag(x, *rest))))


@oddity("`nn.EmbeddingBag`, sum", WORDS)
def embedding_bag_sum() -> nn.Module:
    return _Bag("sum")


@oddity("`nn.EmbeddingBag`, mean", WORDS)
def embedding_bag_mean() -> nn.Module:
    return _Bag("mean")


@oddity("`nn.EmbeddingBag`, max", WORDS)
def embedding_bag_max() -> nn.Module:
    return _Bag("max")


@oddity("`nn.EmbeddingBag` with offsets", (ids(9, below=11), torch.tensor([0, 4])))
def embedding_bag_offsets() -> nn.Module:
    return _Bag("mean")


@oddity("`nn.EmbeddingBag` with a weight per word", (*WORDS, normal(2, 7)))
class EmbeddingBagWeighted(_Bag):
    def __init__(self) -> None:
        super().__init__("sum")

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.bag(x, per_sample_weights=rest[0]))))


@oddity("speech: convolutions, LSTM, CTC head", (normal(2, 8, 24),))
class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(8, 12, 5, 2, 2), nn.BatchNorm1d(12)
        self.conv2, self.norm2 = nn.Conv1d(12, 16, 5, 2, 2), nn.BatchNorm1d(16)
        self.lstm = nn.LSTM(16, 10, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x))).transpose(1, 2)
        return self.head(self.lstm(x)[0]).log_softmax(-1).transpose(0, 1)  # (time, batch, letters)


@oddity("WaveNet: dilated causal 1-D convolutions, gates and skips", SERIES)
class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(3, 8, 1)
        self.both = nn.ModuleList(nn.Conv1d(8, 20, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(10, 8, 1) for _ in range(2))
        self.skip = nn.ModuleList(nn.Conv1d(10, 12, 1) for _ in range(3))
        self.head = nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.enter(x), x.new_zeros(())
        for i in range(3):
            a, b = self.both[i](F.pad(x, (2**i, 0))).chunk(2, 1)
            y = a.tanh() * b.sigmoid()
            total = total + self.skip[i](y)
            x = x + self.residual[i](y) if i < 2 else x
        return self.head(F.relu(total))


# ---------------------------------------------------------------- functions of features


@oddity("KAN: a table of splines per edge, by einsum", VECTOR)
class Kan(nn.Module):
    """Kolmogorov-Arnold layers: radial basis functions of each input, weighed per edge, beside a linear part."""

    knots: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("knots", torch.linspace(-2, 2, 5))
        self.splines1, self.base1 = nn.Parameter(torch.randn(10, 6, 5) / 4), nn.Linear(6, 10)
        self.splines2, self.base2 = nn.Parameter(torch.randn(4, 10, 5) / 4), nn.Linear(10, 4)

    def layer(self, x: Tensor, splines: Tensor, base: nn.Module) -> Tensor:
        basis = torch.exp(-((x[..., None] - self.knots) ** 2))
        return base(F.silu(x)) + torch.einsum("big,oig->bo", basis, splines)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x, self.splines1, self.base1), self.splines2, self.base2)


@oddity("random Fourier features of coordinates (NeRF), a layer that reads its input again", (normal(2, 3),))
class Nerf(nn.Module):
    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(3.0))
        self.a, self.b, self.c = nn.Linear(18, 12), nn.Linear(30, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.frequencies).flatten(1)
        features = torch.cat((angles.sin(), angles.cos()), -1)
        hidden = F.relu(self.a(features))
        return self.c(F.relu(self.b(torch.cat((hidden, features), -1))))


@oddity("`nn.Bilinear`", VECTOR)
class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 10)
        self.both, self.head = nn.Bilinear(8, 10, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.both(self.left(x).tanh(), self.right(x).tanh())))


@oddity("global filter: complex weights between `rfft` and `irfft`", TOKENS)
class Fourier(nn.Module):
    """GFNet and FNO: a complex weight per frequency and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out, self.head = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 4)
        self.weight = nn.Parameter(torch.randn(3, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        spectrum = torch.fft.rfft(x, dim=1) * torch.view_as_complex(self.weight)
        x = x + torch.fft.irfft(spectrum, n=x.shape[1], dim=1)
        return self.head(F.gelu(self.out(x)).mean(1))


@oddity("Fourier mixing over channels (FNet)", TOKENS)
class FNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + torch.fft.fft2(x).real
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))
