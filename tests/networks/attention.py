"""Attention: separate, packed, grouped, windowed, linear, with positions, and as a product written out."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import HEAD, QKV, Body, Heads
from tests.networks.registry import IMAGE, TOKENS, network


@network(IMAGE, "patch.weight:0 token:2 position:2 up.weight:0 down.weight:0 head.weight:1", HEAD, zero_keeps=False)
class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token, self.position = (
            nn.Conv2d(3, 6, 4, 4),
            nn.Parameter(torch.zeros(1, 1, 6)),
            nn.Parameter(torch.zeros(1, 5, 6)),
        )
        self.norm, self.up, self.down, self.head = nn.LayerNorm(6), nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x[:, 0])


@network(TOKENS, QKV, HEAD)
class AttentionSeparate(Heads):
    """Matrix products and softmax by hand."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(4)).softmax(-1)
        return self.merge(weights @ v)


@network(TOKENS, QKV, HEAD)
class AttentionSdpa(Heads):
    def forward(self, x: Tensor) -> Tensor:
        return self.merge(
            F.scaled_dot_product_attention(self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x)))
        )


@network(TOKENS, QKV, HEAD)
class AttentionCausal(Heads):
    """Keys are reused by a boolean mask, and queries come first in the product."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        weights = torch.matmul(q * 0.5, k.mT).masked_fill(~mask, float("-inf")).softmax(-1)
        return self.merge(torch.matmul(weights, v))


@network(TOKENS, "qkv.weight:0 qkv.bias:0 proj.weight:1 proj.weight:0", HEAD)
class AttentionPacked(nn.Module):
    """One linear layer for all three projections, as timm's ViT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.head = nn.Linear(6, 36), nn.Linear(12, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, scale=0.7)
        return self.head(self.proj(x.transpose(1, 2).reshape(x.shape[0], 5, 12)))


@network(TOKENS, "mlp.weight:0")
class AttentionModule(nn.Module):
    """``nn.MultiheadAttention`` with a residual stream through it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.attention = nn.Linear(6, 12), nn.MultiheadAttention(12, 3, batch_first=True)
        self.mlp, self.head = nn.Linear(12, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(F.relu(self.mlp(x)))


@network(TOKENS, "layers.0.linear1.weight:0 layers.0.self_attn.out_proj.weight:1", zero_keeps=False)
def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 3, 8, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


@network(TOKENS, QKV, HEAD)
class AttentionGrouped(Heads):
    """Four query heads on two key and value heads: a key head leaves together with its two query heads."""

    def __init__(self) -> None:
        super().__init__(kv_heads=2)
        self.q, self.proj = nn.Linear(6, 16), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        k, v = (self.split(layer(x), 2).repeat_interleave(2, dim=1) for layer in (self.k, self.v))
        x = F.scaled_dot_product_attention(self.split(self.q(x), 4), k, v)
        return self.head(self.proj(x.transpose(1, 2).reshape(x.shape[0], 5, 16)))


@network(TOKENS, "q.weight:0 proj.weight:1 proj.weight:0", HEAD, zero_keeps=False)
class AttentionGroupedExpand(AttentionGrouped):
    """The same with Llama's ``repeat_kv``: a key head may go, or one query head of each key head."""

    def forward(self, x: Tensor) -> Tensor:
        k, v = (
            self.split(layer(x), 2)[:, :, None].expand(-1, 2, 2, 5, 4).reshape(-1, 4, 5, 4)
            for layer in (self.k, self.v)
        )
        x = F.scaled_dot_product_attention(self.split(self.q(x), 4), k, v)
        return self.head(self.proj(x.transpose(1, 2).reshape(-1, 5, 16)))


@network(IMAGE, "qkv.weight:0 table:1 proj.weight:1 proj.weight:0")
class AttentionWindowed(Body):
    """Swin's: windows become batch entries, a table of relative positions has a column per head."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.qkv, self.proj, self.table = nn.Linear(6, 36), nn.Linear(12, 6), nn.Parameter(torch.zeros(49, 3))
        self.register_buffer("index", (torch.arange(16)[:, None] * 3 + torch.arange(16)) % 49)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        windows = x.view(-1, 6, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 6)
        q, k, v = self.qkv(windows).reshape(-1, 16, 3, 3, 4).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(16, 16, 3).permute(2, 0, 1)
        y = ((q * 0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(-1, 16, 12)).view(-1, 2, 2, 4, 4, 6)
        return self.classify(x + y.permute(0, 5, 1, 3, 2, 4).reshape(-1, 6, 8, 8))


@network(IMAGE, "q.weight:0 k.weight:0 v.weight:0 proj.weight:1")
class AttentionPooled(Body):
    """MViT's: batch and heads are merged; a depthwise convolution, shared by the heads, pools keys and values."""

    def __init__(self) -> None:
        super().__init__(6, 7)
        self.q, self.k, self.v, self.proj = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 7)
        self.pool = nn.Conv2d(4, 4, 2, 2, groups=4, bias=False)

    def shrink(self, x: Tensor) -> Tensor:
        """Return keys or values on a quarter of the positions."""
        x = x.view(-1, 64, 3, 4).permute(0, 2, 3, 1).reshape(-1, 4, 8, 8)
        return self.pool(x).view(-1, 3, 4, 16).transpose(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q = self.q(x).view(-1, 64, 3, 4).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, self.shrink(self.k(x)), self.shrink(self.v(x)))
        return self.head(self.proj(y.transpose(1, 2).reshape(-1, 64, 12)).mean(1))


@network(TOKENS, "proj.weight:0", HEAD, zero_keeps=False)
class AttentionChannels(Heads):
    """XCiT's cross-covariance attention: channels attend to channels, so softmax runs over them."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)).transpose(-2, -1) for layer in (self.q, self.k, self.v))
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1)
        return self.merge((weights @ v).transpose(-2, -1))


@network(TOKENS, QKV, HEAD)
class AttentionRotary(Heads):
    """Rotary positions: halves of each head are swapped and negated."""

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(5)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        q, k = (self.rotate(self.split(layer(x)), angle) for layer in (self.q, self.k))
        return self.merge(F.scaled_dot_product_attention(q, k, self.split(self.v(x))))

    @staticmethod
    def rotate(x: Tensor, angle: Tensor) -> Tensor:
        """Rotate pairs ``(i, i + 2)`` by the angles of their position."""
        return x * angle.cos() + torch.cat([-x[..., 2:], x[..., :2]], -1) * angle.sin()


@network(TOKENS, QKV, HEAD)
class EinsumAttention(Heads):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 5, 3, 4) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return self.merge(torch.einsum("bhqk,bkhd->bhqd", weights, v))


@network(TOKENS, "query.weight:0 memory.weight:0 head.weight:1", HEAD, zero_keeps=False)
class CrossAttention(nn.Module):
    """Learned queries attend to tokens of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.query, self.memory = nn.Parameter(torch.zeros(3, 8)), nn.Linear(8, 12), nn.Linear(6, 10)
        self.attention = nn.MultiheadAttention(12, 3, kdim=10, vdim=10, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        queries, memory = self.query(self.start).expand(x.shape[0], -1, -1), self.memory(x)
        return self.head(self.attention(queries, memory, memory)[0])


@network(TOKENS, "q.weight:0 proj.weight:1 proj.weight:0", HEAD)
class AttentionLinear(Heads):
    """Linear attention: keys meet values first, so no softmax over tokens is in between."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(F.relu(self.q(x))), self.split(F.relu(self.k(x))), self.split(self.v(x))
        return self.merge(q @ (k.transpose(-2, -1) @ v) / 5)


@network(TOKENS, QKV, HEAD)
class AttentionInterleaved(Heads):
    """Rotary positions on neighbouring pairs, by strided slices and a stack."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = (self.rotate(self.split(layer(x))) for layer in (self.q, self.k))
        return self.merge(F.scaled_dot_product_attention(q, k, self.split(self.v(x)), is_causal=True))

    @staticmethod
    def rotate(x: Tensor) -> Tensor:
        """Turn each pair by an angle that grows with the position."""
        angle = torch.arange(5, dtype=x.dtype)[:, None]
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack(
            [even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()], -1
        ).flatten(-2)


@network(TOKENS, "q.weight:0 k.weight:0 v.weight:0 proj.weight:1", HEAD)
class AttentionOfPairs(Heads):
    """Two dimensions before the tokens, and both are channels of the projections."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 5, 3, 2, 4).permute(0, 2, 3, 1, 4) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.head(self.proj(x.permute(0, 3, 1, 2, 4).flatten(2)))


@network(TOKENS, "q.weight:0 k.weight:0 proj.weight:1", {"memory:0": "softmax", "ask:0": "position"}, zero_keeps=False)
class AttentionLearnedTokens(Heads):
    """Learned tokens: one set is read, and every softmax counts it; the other asks causally, by its position."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.ask = nn.Parameter(torch.zeros(7, 6)), nn.Parameter(torch.zeros(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        memory, ask = (t[None].expand(x.shape[0], -1, -1) for t in (self.memory, self.ask))
        q, k, v = (t.view(x.shape[0], -1, 3, 4).transpose(1, 2) for t in (self.q(x), self.k(memory), self.v(memory)))
        y = F.scaled_dot_product_attention(q, k, v)
        asked = self.q(ask).view(x.shape[0], -1, 3, 4).transpose(1, 2)
        z = F.scaled_dot_product_attention(asked, y, y, is_causal=True).mean(2, keepdim=True)
        return self.merge(y + z)


@network(TOKENS, "q.weight:0 k.weight:0 v.weight:0 proj.weight:1", HEAD, zero_keeps=False)
class AttentionFewKeys(Heads):
    """Llama's again, with more channels in a head than there are heads of keys: heads go all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        q = self.q(x).view(b, t, 4, 4).transpose(1, 2)
        k, v = (
            layer(x).view(b, t, 2, 1, 4).expand(-1, -1, -1, 2, -1).reshape(b, t, 4, 4).transpose(1, 2)
            for layer in (self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(F.relu(self.proj(y)).mean(1))


@network(TOKENS, QKV, HEAD)
class AttentionRotaryComplex(Heads):
    """Rotary positions as complex numbers: neighbours in a head are real and imaginary part."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(x.shape[0], -1, 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        angles = torch.arange(5, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (
            torch.view_as_real(torch.view_as_complex(part.reshape(*part.shape[:-1], 2, 2)) * turn).flatten(3)
            for part in (q, k)
        )
        return self.merge(F.scaled_dot_product_attention(q, k, v))
