"""Rules of the grammar for random networks: layers that are rarer, and weights that are computed."""

from __future__ import annotations

from tools._fuzz_program import Value, Writer, operation


@operation("tokens")
def cells(w: Writer, x: Value) -> Value | None:
    width, kind = w.width(), w.pick(("GRUCell", "RNNCell", "LSTMCell"))
    layer = w.layer(f"nn.{kind}({x.channels}, {width}, bias={w.pick((True, False))})")
    start = f"{x.name}.new_zeros({x.name}.shape[0], {layer}.weight_hh.shape[1])"
    state = f"({start}, {start})" if kind == "LSTMCell" else start
    for step in range(2):
        state = w.let(f"{layer}({x.name}[:, {step}], {state})", "vector", (width,)).name
    return w.let(f"{state}[0]" if kind == "LSTMCell" else state, "vector", (width,))


@operation("vector", "tokens")
def bilinear(w: Writer, x: Value) -> Value | None:
    width, other = w.width(), w.partner(x) or x
    layer = w.layer(f"nn.Bilinear({x.channels}, {other.channels}, {width})")
    return w.let(f"{layer}({x.name}, {other.name}.tanh())", x.kind, x.of(width))


@operation("image")
def deformable(w: Writer, x: Value) -> Value | None:
    runs = w.pick((1, 2))
    if x.channels % (2 * runs):
        return None
    groups, width = w.pick((1, 2)), w.pick((4, 6))
    where = w.layer(f"nn.Conv2d({x.channels}, {18 * runs}, 3, padding=1)")
    layer = w.layer(f"__import__('torchvision').ops.DeformConv2d({x.channels}, {width}, 3, padding=1, groups={groups})")
    return w.let(f"{layer}({x.name}, {where}({x.name}))", "image", x.of(width))


@operation("image")
def modulated(w: Writer, x: Value) -> Value | None:
    width = w.width()
    weight = w.layer(f"nn.Parameter(torch.randn({width}, {x.channels}, 3, 3))")
    style = w.layer(f"nn.Linear({x.channels}, {x.channels})")
    each = w.let(f"{weight} * {style}({x.name}.mean((2, 3)))[:, None, :, None, None]", "image", x.sizes).name
    if w.integer(0, 1):
        each = w.let(f"{each} * torch.rsqrt({each}.pow(2).sum((2, 3, 4), keepdim=True) + 1e-4)", "image", x.sizes).name
    samples = f"F.conv2d({x.name}.flatten(0, 1)[None], {each}.flatten(0, 1), padding=1, groups={x.name}.shape[0])"
    return w.let(f"{samples}.unflatten(1, ({x.name}.shape[0], -1))[0]", "image", x.of(width))


@operation("vector")
def bag(w: Writer, x: Value) -> Value | None:
    width, mode = w.width(), w.pick(("sum", "mean", "max"))
    layer = w.layer(f"nn.EmbeddingBag(2, {width}, mode={mode!r})")
    return w.let(f"{layer}(({x.name} > 0).long())", "vector", (width,))


@operation("vector", "tokens")
def triangle(w: Writer, x: Value) -> Value | None:
    weight = w.layer(f"nn.Parameter(torch.randn({x.channels}, {x.channels}))")
    form = w.pick(("{0}.tril()", "{0}.triu() + {0}.triu(1).t()", "{0}.triu(1)", "{0}.tril(1)"))
    return w.same(f"F.linear({x.name}, {form.format(weight)})", x)


@operation("image")
def spectral(w: Writer, x: Value) -> Value | None:
    width = w.width()
    layer = w.layer(f"torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d({x.channels}, {width}, 1))")
    return w.let(f"{layer}({x.name})", "image", x.of(width))


@operation("tokens")
def filtered(w: Writer, x: Value) -> Value | None:
    steps = x.sizes[0]
    weight = w.layer(f"nn.Parameter(torch.randn({steps // 2 + 1}, {x.channels}, 2))")
    spectrum = f"torch.fft.rfft({x.name}, dim=1) * torch.view_as_complex({weight})"
    return w.same(f"torch.fft.irfft({spectrum}, n={steps}, dim=1)", x)


@operation("tokens", repeats=True)
def token_convolution(w: Writer, x: Value) -> Value | None:
    layer = w.layer(f"nn.Conv1d({x.sizes[0]}, {x.sizes[0]}, 1)")
    return w.same(f"{layer}({x.name})", x)


@operation("tokens", reads=True)
def token_norm(w: Writer, x: Value) -> Value | None:
    kind = w.pick(("GroupNorm(1, {})", "InstanceNorm1d({})", "BatchNorm1d({}, track_running_stats=False)"))
    return w.same(f"{w.layer('nn.' + kind.format(x.sizes[0]))}({x.name})", x)


@operation("tokens", reads=True)
def experts(w: Writer, x: Value) -> Value | None:
    width, count = w.width(), w.pick((2, 3))
    route = w.layer(f"nn.Linear({x.channels}, {count})")
    up = w.layer(f"nn.Parameter(torch.randn({count}, {x.channels}, {width}))")
    down = w.layer(f"nn.Parameter(torch.randn({count}, {width}, {x.channels}))")
    hidden = f"F.gelu(torch.einsum('btd,edh->bteh', {x.name}, {up}))"
    mixed = f"torch.einsum('bteh,ehd,bte->btd', {hidden}, {down}, {route}({x.name}).softmax(-1))"
    return w.same(f"{x.name} + {mixed}", x)
