"""Rules of the grammar for random networks: tokens, whose channels come last, attention and recurrence."""

from __future__ import annotations

from tools._fuzz_program import Value, Writer, operation


@operation("tokens", "vector", reads=True)
def layer_norm(w: Writer, x: Value) -> Value | None:
    kind = w.pick(("LayerNorm", "RMSNorm"))
    return w.same(f"{w.layer(f'nn.{kind}({x.channels})')}({x.name})", x)


@operation("tokens", reads=True)
def rms_by_hand(w: Writer, x: Value) -> Value | None:
    scale = w.layer(f"nn.Parameter(torch.randn({x.channels}))")
    return w.same(f"{x.name} * torch.rsqrt({x.name}.pow(2).mean(-1, keepdim=True) + 1e-6) * {scale}", x)


@operation("tokens", "vector")
def mlp(w: Writer, x: Value) -> Value | None:
    width = w.width()
    up, down = w.layer(f"nn.Linear({x.channels}, {width})"), w.layer(f"nn.Linear({width}, {x.channels})")
    return w.same(f"{x.name} + {down}(F.gelu({up}({x.name})))", x)


@operation("tokens")
def swiglu(w: Writer, x: Value) -> Value | None:
    width = w.width()
    gate, up = (w.layer(f"nn.Linear({x.channels}, {width})") for _ in range(2))
    down = w.layer(f"nn.Linear({width}, {x.channels})")
    return w.same(f"{x.name} + {down}(F.silu({gate}({x.name})) * {up}({x.name}))", x)


@operation("tokens")
def swiglu_packed(w: Writer, x: Value) -> Value | None:
    width = w.width()
    both, down = w.layer(f"nn.Linear({x.channels}, {2 * width})"), w.layer(f"nn.Linear({width}, {x.channels})")
    return w.same(f"{x.name} + {down}(F.glu({both}({x.name}), -1))", x)


@operation("tokens", reads=True)
def attention(w: Writer, x: Value) -> Value | None:
    heads, size = w.pick((2, 3)), w.pick((2, 4))
    inner = heads * size
    parts = [w.layer(f"nn.Linear({x.channels}, {inner})") for _ in range(3)]
    q, k, v = (f"{part}({x.name}).unflatten(2, (-1, {size})).transpose(1, 2)" for part in parts)
    out = w.layer(f"nn.Linear({inner}, {x.channels})")
    causal = w.pick(("", ", is_causal=True"))
    mixed = f"F.scaled_dot_product_attention({q}, {k}, {v}{causal})"
    return w.same(f"{x.name} + {out}({mixed}.transpose(1, 2).flatten(2))", x)


@operation("tokens", reads=True)
def attention_packed(w: Writer, x: Value) -> Value | None:
    heads, size = w.pick((2, 3)), w.pick((2, 4))
    inner = heads * size
    packed, out = w.layer(f"nn.Linear({x.channels}, {3 * inner})"), w.layer(f"nn.Linear({inner}, {x.channels})")
    parts = w.let(f"{packed}({x.name}).unflatten(2, (3, -1, {size})).permute(2, 0, 3, 1, 4)", "tokens", x.sizes)
    scores = f"({parts.name}[0] @ {parts.name}[1].transpose(-2, -1) * {size**-0.5}).softmax(-1)"
    return w.same(f"{x.name} + {out}(({scores} @ {parts.name}[2]).transpose(1, 2).flatten(2))", x)


@operation("tokens", reads=True)
def attention_grouped(w: Writer, x: Value) -> Value | None:
    shared, each, size = w.pick((2, 3)), 2, w.pick((2, 4))  # one alone would lose a part of its width
    heads = shared * each
    q = w.layer(f"nn.Linear({x.channels}, {heads * size})")
    k, v = (w.layer(f"nn.Linear({x.channels}, {shared * size})") for _ in range(2))
    out = w.layer(f"nn.Linear({heads * size}, {x.channels})")
    queries = f"{q}({x.name}).unflatten(2, (-1, {size})).transpose(1, 2)"
    keys, values = (
        f"{part}({x.name}).unflatten(2, (-1, {size})).transpose(1, 2).repeat_interleave({each}, 1)" for part in (k, v)
    )
    mixed = f"F.scaled_dot_product_attention({queries}, {keys}, {values})"
    return w.same(f"{x.name} + {out}({mixed}.transpose(1, 2).flatten(2))", x)


@operation("tokens", reads=True, bakes=True)
def attention_layer(w: Writer, x: Value) -> Value | None:
    heads = w.divisor(x.channels)
    if heads is None:
        return None
    layer = w.layer(f"nn.MultiheadAttention({x.channels}, {heads}, batch_first=True)")
    return w.same(f"{x.name} + {layer}({x.name}, {x.name}, {x.name}, need_weights=False)[0]", x)


@operation("tokens", reads=True)
def linear_attention(w: Writer, x: Value) -> Value | None:
    size = w.width()
    q, k, v = (w.layer(f"nn.Linear({x.channels}, {size})") for _ in range(3))
    summary = f"torch.einsum('btk,btv->bkv', {k}({x.name}).softmax(1), {v}({x.name}))"
    return w.let(f"torch.einsum('btk,bkv->btv', {q}({x.name}), {summary})", "tokens", x.of(size))


@operation("tokens")
def positions(w: Writer, x: Value) -> Value | None:
    return w.same(f"{x.name} + {w.layer(f'nn.Parameter(torch.randn(1, {x.sizes[0]}, {x.channels}))')}", x)


@operation("tokens")
def class_token(w: Writer, x: Value) -> Value | None:
    token = w.layer(f"nn.Parameter(torch.randn(1, 1, {x.channels}))")
    code = f"torch.cat(({token}.expand({x.name}.shape[0], -1, -1), {x.name}), 1)"
    return w.let(code, "tokens", (x.sizes[0] + 1, x.channels))


@operation("tokens")
def token_mixing(w: Writer, x: Value) -> Value | None:
    mix = w.layer(f"nn.Linear({x.sizes[0]}, {x.sizes[0]})")
    return w.same(f"{x.name} + {mix}({x.name}.transpose(1, 2)).transpose(1, 2)", x)


@operation("tokens")
def tied_back(w: Writer, x: Value) -> Value | None:
    layer = w.layer(f"nn.Linear({x.channels}, {w.width()}, bias=False)")
    return w.same(f"F.linear(F.relu({layer}({x.name})), {layer}.weight.t())", x)


@operation("tokens", reads=True)
def recurrent(w: Writer, x: Value) -> Value | None:
    kind, width, both = w.pick(("GRU", "LSTM", "RNN")), w.width(), w.pick((False, True))
    layers = w.pick((1, 2))
    layer = w.layer(f"nn.{kind}({x.channels}, {width}, {layers}, batch_first=True, bidirectional={both})")
    return w.let(f"{layer}({x.name})[0]", "tokens", x.of(2 * width if both else width))


@operation("tokens")
def tokens_averaged(w: Writer, x: Value) -> Value | None:
    return w.let(w.pick(("{}.mean(1)", "{}[:, 0]", "{}.amax(1)", "{}.sum(1)")).format(x.name), "vector", (x.channels,))


@operation("tokens")
def tokens_to_series(w: Writer, x: Value) -> Value | None:
    return w.let(f"{x.name}.transpose(1, 2)", "series", (x.channels, x.sizes[0]))


@operation("series")
def series_to_tokens(w: Writer, x: Value) -> Value | None:
    return w.let(f"{x.name}.permute(0, 2, 1)", "tokens", (x.sizes[1], x.channels))


@operation("tokens", bakes=True)
def grouped_features(w: Writer, x: Value) -> Value | None:
    groups = w.divisor(x.channels)
    if groups is None:
        return None
    size, width = x.channels // groups, w.pick((2, 3))
    weight = w.layer(f"nn.Parameter(torch.randn({groups}, {size}, {width}))")
    code = f"torch.einsum('btgi,gio->btgo', {x.name}.unflatten(2, ({groups}, {size})), {weight}).flatten(2)"
    return w.let(code, "tokens", x.of(groups * width))


@operation("vector", bakes=True)
def bilinear_sum(w: Writer, x: Value) -> Value | None:
    width = w.width()
    left, right = (w.layer(f"nn.Linear({x.channels}, {width})") for _ in range(2))
    product = f"{left}({x.name})[:, :, None] * {right}({x.name})[:, None, :]"
    last = w.layer(f"nn.Linear({width * width}, {x.channels})")
    return w.same(f"{last}(({product}).flatten(1))", x)
