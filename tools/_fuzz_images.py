"""Rules of the grammar for random networks: images, series and volumes, whose channels come first."""

from __future__ import annotations

from tools._fuzz_program import Value, Writer, operation

GRIDS = ("image", "series", "volume")
DIMS = {"image": "2d", "series": "1d", "volume": "3d"}
ALL = ("image", "tokens", "vector", "series", "volume")


def _smaller(value: Value, by: int = 2) -> tuple[int, ...] | None:
    """Return its spatial sizes divided, or None where too little would be left."""
    sizes = tuple(size // by for size in value.sizes[1:])
    return sizes if min(sizes) >= 1 and min(value.sizes[1:]) >= by else None


# ---------------------------------------------------------------- layers


@operation(*GRIDS)
def conv(w: Writer, x: Value) -> Value | None:
    width, bias = w.width(), w.pick((True, False))
    layer = w.layer(f"nn.Conv{DIMS[x.kind]}({x.channels}, {width}, 3, padding=1, bias={bias})")
    return w.let(f"{layer}({x.name})", x.kind, x.of(width))


@operation(*GRIDS)
def pointwise(w: Writer, x: Value) -> Value | None:
    width = w.width()
    return w.let(f"{w.layer(f'nn.Conv{DIMS[x.kind]}({x.channels}, {width}, 1)')}({x.name})", x.kind, x.of(width))


@operation("image")
def conv_stride(w: Writer, x: Value) -> Value | None:
    if _smaller(x) is None:
        return None
    width, mode = w.width(), w.pick(("zeros", "circular", "reflect", "replicate"))
    sizes = [(size - 1) // 2 + 1 for size in x.sizes[1:]]
    layer = w.layer(f"nn.Conv2d({x.channels}, {width}, 3, 2, 1, padding_mode={mode!r})")
    return w.let(f"{layer}({x.name})", "image", (width, *sizes)) if min(x.sizes[1:]) > 1 else None


@operation("image", "series")
def conv_dilated(w: Writer, x: Value) -> Value | None:
    width = w.width()
    layer = w.layer(f"nn.Conv{DIMS[x.kind]}({x.channels}, {width}, 3, padding=2, dilation=2)")
    return w.let(f"{layer}({x.name})", x.kind, x.of(width))


@operation(*GRIDS)
def conv_grouped(w: Writer, x: Value) -> Value | None:
    groups = w.divisor(x.channels)
    if groups is None:
        return None
    width = groups * w.pick((2, 3, 1))
    layer = w.layer(f"nn.Conv{DIMS[x.kind]}({x.channels}, {width}, 3, padding=1, groups={groups})")
    return w.let(f"{layer}({x.name})", x.kind, x.of(width))


@operation(*GRIDS)
def conv_depthwise(w: Writer, x: Value) -> Value | None:
    width = x.channels * w.pick((1, 2))
    layer = w.layer(f"nn.Conv{DIMS[x.kind]}({x.channels}, {width}, 3, padding=1, groups={x.channels})")
    return w.let(f"{layer}({x.name})", x.kind, x.of(width))


@operation("image", "series")
def conv_transposed(w: Writer, x: Value) -> Value | None:
    if max(x.sizes[1:]) > 8:
        return None
    width = w.width()
    layer = w.layer(f"nn.ConvTranspose{DIMS[x.kind]}({x.channels}, {width}, 2, 2)")
    return w.let(f"{layer}({x.name})", x.kind, (width, *(2 * size for size in x.sizes[1:])))


@operation("image")
def conv_transposed_grouped(w: Writer, x: Value) -> Value | None:
    groups = w.divisor(x.channels)
    if groups is None:
        return None
    width = 2 * groups
    layer = w.layer(f"nn.ConvTranspose2d({x.channels}, {width}, 3, padding=1, groups={groups})")
    return w.let(f"{layer}({x.name})", x.kind, x.of(width))


@operation("image")
def conv_functional(w: Writer, x: Value) -> Value | None:
    width = w.width()
    weight = w.layer(f"nn.Parameter(torch.randn({width}, {x.channels}, 3, 3))")
    return w.let(f"F.conv2d({x.name}, {weight}, padding=1)", "image", x.of(width))


@operation("image", reads=True)
def conv_standardised(w: Writer, x: Value) -> Value | None:
    width = w.width()
    weight = w.layer(f"nn.Parameter(torch.randn({width}, {x.channels}, 3, 3))")
    code = f"F.conv2d({x.name}, {weight} - {weight}.mean((1, 2, 3), keepdim=True), padding=1)"
    return w.let(code, "image", x.of(width))


@operation("image")
def conv_twice(w: Writer, x: Value) -> Value | None:
    layer = w.layer(f"nn.Conv2d({x.channels}, {x.channels}, 3, padding=1)")
    return w.same(f"{layer}(F.relu({layer}({x.name})))", x)


@operation("image")
def contraction(w: Writer, x: Value) -> Value | None:
    width = w.width()
    weight = w.layer(f"nn.Parameter(torch.randn({width}, {x.channels}))")
    return w.let(f"torch.einsum('bchw,dc->bdhw', {x.name}, {weight})", "image", x.of(width))


@operation("image")
def residual(w: Writer, x: Value) -> Value | None:
    width = w.width()
    first = w.layer(f"nn.Conv2d({x.channels}, {width}, 3, padding=1)")
    second = w.layer(f"nn.Conv2d({width}, {x.channels}, 3, padding=1)")
    return w.same(f"{x.name} + {second}(F.relu({first}({x.name})))", x)


@operation("image")
def inverted(w: Writer, x: Value) -> Value | None:
    width = 2 * x.channels
    first, last = w.layer(f"nn.Conv2d({x.channels}, {width}, 1)"), w.layer(f"nn.Conv2d({width}, {x.channels}, 1)")
    middle = w.layer(f"nn.Conv2d({width}, {width}, 3, padding=1, groups={width})")
    return w.same(f"{x.name} + {last}(F.hardswish({middle}(F.silu({first}({x.name})))))", x)


@operation("image")
def squeeze_excite(w: Writer, x: Value) -> Value | None:
    width = w.pick((4, 6))
    down, up = w.layer(f"nn.Conv2d({x.channels}, {width}, 1)"), w.layer(f"nn.Conv2d({width}, {x.channels}, 1)")
    inner = f"F.relu({down}({x.name}.mean((2, 3), keepdim=True)))"
    return w.same(f"{x.name} * torch.sigmoid({up}({inner}))", x)


@operation("image")
def spatial_gate(w: Writer, x: Value) -> Value | None:
    return w.same(f"{x.name} * torch.sigmoid({w.layer(f'nn.Conv2d({x.channels}, 1, 1)')}({x.name}))", x)


@operation("vector", "tokens")
def linear(w: Writer, x: Value) -> Value | None:
    width, bias = w.width(), w.pick((True, False))
    layer = w.layer(f"nn.Linear({x.channels}, {width}, bias={bias})")
    return w.let(f"{layer}({x.name})", x.kind, x.of(width))


@operation("image")
def channels_last_linear(w: Writer, x: Value) -> Value | None:
    width = w.width()
    layer = w.layer(f"nn.Linear({x.channels}, {width})")
    return w.let(f"{layer}({x.name}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", "image", x.of(width))


# ---------------------------------------------------------------- norms and scales


@operation("image", "series", "volume", "vector")
def batch_norm(w: Writer, x: Value) -> Value | None:
    dims = DIMS.get(x.kind, "1d")
    return w.same(f"{w.layer(f'nn.BatchNorm{dims}({x.channels})')}({x.name})", x)


@operation("image", "series", reads=True)
def group_norm(w: Writer, x: Value) -> Value | None:
    groups = w.divisor(x.channels) or 1
    return w.same(f"{w.layer(f'nn.GroupNorm({groups}, {x.channels})')}({x.name})", x)


@operation("image")
def instance_norm(w: Writer, x: Value) -> Value | None:
    if min(x.sizes[1:]) < 2:
        return None
    return w.same(f"{w.layer(f'nn.InstanceNorm2d({x.channels}, affine=True)')}({x.name})", x)


@operation("image", "series")
def channel_scale(w: Writer, x: Value) -> Value | None:
    sizes = (x.channels, *[1] * (len(x.sizes) - 1))
    return w.same(f"{x.name} * {w.layer(f'nn.Parameter(torch.randn{sizes})')}", x)


@operation("image")
def channel_buffer(w: Writer, x: Value) -> Value | None:
    return w.same(f"{x.name} - {w.buffer(f'torch.randn(1, {x.channels}, 1, 1)')}", x)


@operation("image", "vector", reads=True)
def unit_length(w: Writer, x: Value) -> Value | None:
    return w.same(f"F.normalize({x.name}, dim=1)", x)


@operation("image", "vector", reads=True)
def softmax_channels(w: Writer, x: Value) -> Value | None:
    return w.same(f"{x.name}.softmax(1) + {x.name}", x)


@operation("image", "series", reads=True)
def centred(w: Writer, x: Value) -> Value | None:
    return w.same(f"{x.name} - {x.name}.mean(1, keepdim=True)", x)


@operation("image", "vector", reads=True)
def gated_by_largest(w: Writer, x: Value) -> Value | None:
    return w.same(f"{x.name} * torch.sigmoid({x.name}.amax(1, keepdim=True))", x)


@operation("vector", "series", reads=True)
def cumulated(w: Writer, x: Value) -> Value | None:
    return w.same(f"{x.name}.cumsum(1)", x)


# ---------------------------------------------------------------- channels that move


@operation(*ALL)
def concat(w: Writer, x: Value) -> Value | None:
    dim = 2 if x.kind == "tokens" else 1
    fitting = [
        other for other in reversed(w.values) if other.kind == x.kind and other.of(1) == x.of(1)
    ]  # the value itself is among them
    other = w.pick(fitting)
    if x.channels + other.channels > 40:
        return None
    return w.let(f"torch.cat(({x.name}, {other.name}), {dim})", x.kind, x.of(x.channels + other.channels))


@operation("image", "vector", "series")
def gated_halves(w: Writer, x: Value) -> Value | None:
    if x.channels % 2:
        return None
    form = w.pick(("F.glu({}, 1)", "torch.mul(*{}.chunk(2, 1))", "torch.add(*{}.tensor_split(2, 1))"))
    return w.let(form.format(x.name), x.kind, x.of(x.channels // 2))


@operation("image", bakes=True)
def split(w: Writer, x: Value) -> Value | None:
    if x.channels < 3:
        return None
    first = w.integer(1, x.channels - 1)
    which = w.pick((0, 1))
    code = f"{x.name}.split(({first}, {x.channels - first}), 1)[{which}]"
    return w.let(code, "image", x.of((first, x.channels - first)[which]))


@operation("image", "vector", bakes=True)
def sliced(w: Writer, x: Value) -> Value | None:
    if x.channels < 3:
        return None
    start, step = w.integer(0, x.channels // 2), w.pick((1, 2))
    width = len(range(start, x.channels, step))
    return w.let(f"{x.name}[:, {start}::{step}]", x.kind, x.of(width))


@operation("image", "vector")
def flipped(w: Writer, x: Value) -> Value | None:
    return w.same(f"{x.name}.flip(1) + {x.name}" if w.integer(0, 1) else f"{x.name}.flip(1)", x)


@operation("image", bakes=True)
def rolled(w: Writer, x: Value) -> Value | None:
    return w.same(f"{x.name}.roll({w.integer(1, 3)}, 1)", x)


@operation("image", bakes=True)
def padded_channels(w: Writer, x: Value) -> Value | None:
    before, after = w.integer(0, 2), w.integer(1, 3)
    return w.let(f"F.pad({x.name}, (0, 0, 0, 0, {before}, {after}))", "image", x.of(x.channels + before + after))


@operation("image", bakes=True)
def shuffled(w: Writer, x: Value) -> Value | None:
    groups = w.divisor(x.channels)
    if groups is None:
        return None
    code = f"{x.name}.unflatten(1, ({groups}, {x.channels // groups})).transpose(1, 2).flatten(1, 2)"
    return w.same(code, x)


@operation("image", bakes=True)
def permuted_by_index(w: Writer, x: Value) -> Value | None:
    order = sorted(range(x.channels), key=lambda i: (i * 5 + 3) % (x.channels + 1))
    return w.same(f"{x.name}.index_select(1, {w.buffer(f'torch.tensor({order})')})", x)


@operation("image", "vector", bakes=True)
def repeated(w: Writer, x: Value) -> Value | None:
    if x.channels > 12:
        return None
    form = "{}.repeat(1, 2{})" if w.integer(0, 1) == 0 else "{}.repeat_interleave(2, 1)"
    return w.let(form.format(x.name, ", 1, 1" if x.kind == "image" else ""), x.kind, x.of(2 * x.channels))


@operation("image", bakes=True)
def pixel_shuffled(w: Writer, x: Value) -> Value | None:
    if x.channels % 4 or max(x.sizes[1:]) > 8:
        return None
    sizes = (2 * x.sizes[1], 2 * x.sizes[2])
    return w.let(f"F.pixel_shuffle({x.name}, 2)", "image", (x.channels // 4, *sizes))


@operation("image", bakes=True)
def pixel_unshuffled(w: Writer, x: Value) -> Value | None:
    if any(size % 2 for size in x.sizes[1:]) or x.channels > 8:
        return None
    return w.let(f"F.pixel_unshuffle({x.name}, 2)", "image", (4 * x.channels, *(size // 2 for size in x.sizes[1:])))


@operation("image", "vector", reads=True)
def maxout(w: Writer, x: Value) -> Value | None:
    groups = w.divisor(x.channels)
    if groups is None:
        return None
    return w.let(f"{x.name}.unflatten(1, (-1, {x.channels // groups})).amax(2)", x.kind, x.of(groups))


@operation("image", bakes=True)
def unbound(w: Writer, x: Value) -> Value | None:
    if x.channels > 8:
        return None
    return w.same(f"torch.stack({x.name}.unbind(1)[::-1], 1)", x)


# ---------------------------------------------------------------- element by element


@operation(*ALL)
def activation(w: Writer, x: Value) -> Value | None:
    names = (
        "F.relu", "F.gelu", "torch.sigmoid", "torch.tanh", "F.silu", "F.hardswish", "F.elu", "F.leaky_relu",
        "F.softplus", "F.relu6", "F.mish", "torch.sin", "torch.cos", "torch.abs", "torch.exp",
    )  # fmt: skip
    name = w.pick(names)
    return w.same(f"torch.exp(torch.tanh({x.name}))" if name == "torch.exp" else f"{name}({x.name})", x)


@operation("image", "series", "vector")
def prelu(w: Writer, x: Value) -> Value | None:
    return w.same(f"{w.layer(f'nn.PReLU({w.pick((1, x.channels))})')}({x.name})", x)


@operation(*ALL)
def combined(w: Writer, x: Value) -> Value | None:
    other = w.partner(x)
    if other is None:
        return None
    forms = (
        "{} + {}", "{} * {}", "{} - {}", "torch.maximum({}, {})", "torch.where({} > 0, {}, 0.5)",
        "torch.stack(({}, {})).sum(0)", "torch.lerp({}, {}, 0.3)", "torch.sigmoid({}) * {}",
    )  # fmt: skip
    return w.same(w.pick(forms).format(x.name, other.name), x)


@operation(*ALL)
def by_numbers(w: Writer, x: Value) -> Value | None:
    forms = ("2.0 * {} - 1.0", "{}.clamp(-1.0, 2.0)", "{} / 3.0", "-{}", "{} ** 2", "1.0 / (2.0 + {} ** 2)")
    return w.same(w.pick(forms).format(x.name), x)


@operation(*ALL)
def nothing(w: Writer, x: Value) -> Value | None:
    layer = w.layer(w.pick(("nn.Identity()", "nn.Dropout(0.5)")))
    return w.same(f"{layer}({x.name}).contiguous()", x)


# ---------------------------------------------------------------- space


@operation("image", "series")
def pooled(w: Writer, x: Value) -> Value | None:
    sizes = _smaller(x)
    if sizes is None:
        return None
    name = w.pick(("max_pool", "avg_pool", "lp_pool"))
    extra = "2.0, " if name == "lp_pool" else ""
    return w.let(f"F.{name}{DIMS[x.kind]}({x.name}, {extra}2)", x.kind, (x.channels, *sizes))


@operation("image", "volume")
def adaptive(w: Writer, x: Value) -> Value | None:
    size = w.pick((2, 1, 3))
    name = w.pick(("adaptive_avg_pool", "adaptive_max_pool"))
    sizes = [size] * (len(x.sizes) - 1)
    return w.let(f"F.{name}{DIMS[x.kind]}({x.name}, {size})", x.kind, (x.channels, *sizes))


@operation("image")
def resized(w: Writer, x: Value) -> Value | None:
    if max(x.sizes[1:]) > 8:
        return None
    mode = w.pick(("nearest", "bilinear", "bicubic"))
    sizes = [2 * size for size in x.sizes[1:]]
    return w.let(f"F.interpolate({x.name}, scale_factor=2, mode={mode!r})", "image", (x.channels, *sizes))


@operation("image")
def padded_space(w: Writer, x: Value) -> Value | None:
    sizes = (x.sizes[1] + 1, x.sizes[2] + 2)
    return w.let(f"F.pad({x.name}, (1, 1, 0, 1), value=0.5)", "image", (x.channels, *sizes))


@operation("image")
def cropped(w: Writer, x: Value) -> Value | None:
    if min(x.sizes[1:]) < 3:
        return None
    return w.let(f"{x.name}[:, :, 1:, :-1]", "image", (x.channels, x.sizes[1] - 1, x.sizes[2] - 1))


@operation("image")
def unfolded(w: Writer, x: Value) -> Value | None:
    if x.channels > 6 or max(x.sizes[1:]) > 6:
        return None
    width = w.width()
    layer = w.layer(f"nn.Linear({9 * x.channels}, {width})")
    columns = f"{layer}(F.unfold({x.name}, 3, padding=1).transpose(1, 2))"
    return w.let(columns, "tokens", (x.sizes[1] * x.sizes[2], width))


# ---------------------------------------------------------------- from kind to kind


@operation("image", "series", "volume")
def flattened(w: Writer, x: Value) -> Value | None:
    total = x.channels
    for size in x.sizes[1:]:
        total *= size
    if total > 300:
        return None
    width = w.width()
    return w.let(f"{w.layer(f'nn.Linear({total}, {width})')}({x.name}.flatten(1))", "vector", (width,))


@operation("image", "series")
def averaged(w: Writer, x: Value) -> Value | None:
    dims = tuple(range(2, len(x.sizes) + 1))
    return w.let(f"{x.name}.{w.pick(('mean', 'amax', 'sum'))}({dims})", "vector", (x.channels,))


@operation("image")
def to_tokens(w: Writer, x: Value) -> Value | None:
    return w.let(f"{x.name}.flatten(2).transpose(1, 2)", "tokens", (x.sizes[1] * x.sizes[2], x.channels))


@operation("image")
def to_series(w: Writer, x: Value) -> Value | None:
    return w.let(f"{x.name}.mean(3)", "series", (x.channels, x.sizes[1]))


@operation("image")
def to_volume(w: Writer, x: Value) -> Value | None:
    return w.let(f"torch.stack(({x.name}, {x.name}.relu()), 2)", "volume", (x.channels, 2, *x.sizes[1:]))


@operation("volume")
def to_image(w: Writer, x: Value) -> Value | None:
    return w.let(f"{x.name}.mean(2)", "image", (x.channels, *x.sizes[2:]))


@operation("vector", bakes=True, repeats=True)
def spread(w: Writer, x: Value) -> Value | None:
    code = f"{x.name}[:, :, None, None].expand(-1, -1, 4, 4)"
    return w.let(code, "image", (x.channels, 4, 4))
