"""Networks for random pipelines: the grammar of ``tools/_fuzz_*.py``, and rules for what passes look for.

These are linear chains and branches, norms beside layers, blocks that repeat, and what computes nothing: rare where
channels are cut, and all that most passes work on.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

import torch
from torch import nn

from tools import _fuzz_layers, _fuzz_tokens  # noqa: F401  (they register the rules of the grammar)
from tools._fuzz_images import ALL, DIMS, GRIDS
from tools._fuzz_program import Choices, Operation, Program, Value, Writer, operation, write_program

OWN: dict[str, Operation] = {}
MOST = 7  # operations of a network
_WEIGHT = 4  # how often a rule of this file is drawn, for each time that one of the grammar is


def write_network(choices: Choices) -> Program:
    """Write a random network; most are made of what passes look for, and some have their layers in containers."""
    size, weight = choices.integer(0, 2), choices.integer(0, 2)
    more = choices.integer(0, 5)
    program = write_program(choices, MOST, tuple(OWN.values()) * (_WEIGHT if weight else 0))
    source = _in_containers(program.source, size) if size else program.source
    return replace(program, source=_with_more_outputs(source, more - 3))


def _with_more_outputs(source: str, which: int) -> str:
    """Return a value within the network too, or the same output twice."""
    *lines, last = source.rstrip("\n").split("\n")
    values = [found[1] for line in lines if (found := re.match(r" +(v\d+) = ", line))]
    if which == 1 and values:
        last += f", {values[-1]}"
    elif which == 2:
        last = f"{last.replace('return ', 'y = ')}\n        return y, y"
    return "\n".join([*lines, last, ""])


VALUES = ("any", "rounded", "twice", "dead", "frozen")
"""What the weights of a network are: see :func:`set_values`."""


def set_values(model: nn.Module, kind: str, seed: int) -> None:
    """Give the tensors of a network values, or a state, in which passes may go wrong.

    ``rounded``: multiples of a quarter, so that many are equal and some are zero. ``twice``: each filter of a layer is
    there twice, so that a kernel has half the rank. ``dead``: some filters are zero, with their biases. ``frozen``:
    some parameters are not trained.
    """
    rng = random.Random(seed)
    for parameter in model.parameters():
        chosen = torch.tensor([rng.randint(0, 2) == 2 for _ in range(len(parameter))]) if parameter.ndim else None
        with torch.no_grad():
            if kind == "rounded" and parameter.ndim > 1:
                parameter.copy_((parameter * 4).round() / 4)
            elif kind == "twice" and parameter.ndim > 1:
                parameter[len(parameter) // 2 :] = parameter[: (len(parameter) + 1) // 2].clone()
            elif kind == "dead" and chosen is not None and len(parameter) > 1:
                parameter[chosen] = 0.0
        if kind == "frozen":
            parameter.requires_grad = rng.randint(0, 1) == 1


def _in_containers(source: str, size: int) -> str:
    """Put the layers into containers of so many numbers each."""
    numbers = sorted({int(number) for number in re.findall(r"\bself\.l(\d+)\b", source)})
    source = re.sub(r"\bself\.l(\d+)\b", lambda m: f"self.p{int(m[1]) // size}.l{m[1]}", source)
    source = re.sub(
        r'self\.register_buffer\("l(\d+)"', lambda m: f'self.p{int(m[1]) // size}.register_buffer("l{m[1]}"', source
    )
    made = "".join(f"\n        self.p{part} = nn.Module()" for part in sorted({number // size for number in numbers}))
    return source.replace("super().__init__()", f"super().__init__(){made}", 1)


def _conv(w: Writer, x: Value, width: int, form: str = "3, padding=1", **options: object) -> str:
    extra = "".join(f", {name}={value!r}" for name, value in options.items())
    return w.layer(f"nn.Conv{DIMS[x.kind]}({x.channels}, {width}, {form}{extra})")


def _norm(w: Writer, kind: str, channels: int, **options: object) -> str:
    extra = "".join(f", {name}={value!r}" for name, value in options.items())
    return w.layer(f"nn.BatchNorm{DIMS.get(kind, '1d')}({channels}{extra})")


# ---------------------------------------------------------------- layers with norms


@operation(*GRIDS, table=OWN)
def conv_norm(w: Writer, x: Value) -> Value | None:
    width, bias = w.width(), w.pick((True, False))
    form = w.pick(("3, padding=1", "1", "5, padding=2", "3, padding=1, padding_mode='circular'", "3, padding='same'"))
    layer, norm = _conv(w, x, width, form, bias=bias), _norm(w, x.kind, width, affine=w.pick((True, False)))
    act = w.pick(("F.relu({})", "{}", "F.hardtanh({})", "torch.sigmoid({})"))
    return w.let(act.format(f"{norm}({layer}({x.name}))"), x.kind, x.of(width))


@operation(*GRIDS, table=OWN)
def norm_conv(w: Writer, x: Value) -> Value | None:
    width, groups = w.width(), w.pick((1, 2))
    form = w.pick(("1", "3, padding=1", "3, padding=1, padding_mode='replicate'"))
    if x.channels % groups or width % groups:
        return None
    norm, layer = _norm(w, x.kind, x.channels), _conv(w, x, width, form, groups=groups)
    return w.let(f"{layer}({norm}({x.name}))", x.kind, x.of(width))


@operation("vector", table=OWN)
def linear_norm(w: Writer, x: Value) -> Value | None:
    width = w.width()
    layer, norm = w.layer(f"nn.Linear({x.channels}, {width}, bias={w.pick((True, False))})"), _norm(w, x.kind, width)
    order = w.pick(("F.relu({1}({0}({2})))", "{1}({0}({2}))"))
    return w.let(order.format(layer, norm, x.name), x.kind, x.of(width))


@operation("image", table=OWN)
def depthwise_separable(w: Writer, x: Value) -> Value | None:
    width = w.width()
    deep = _conv(w, x, x.channels, "3, padding=1", groups=x.channels, bias=False)
    norm, point = _norm(w, x.kind, x.channels), _conv(w, x, width, "1", bias=w.pick((True, False)))
    act = w.pick(("F.relu({})", "{}"))
    return w.let(f"{point}({act.format(f'{norm}({deep}({x.name}))')})", x.kind, x.of(width))


@operation("image", table=OWN)
def transposed_norm(w: Writer, x: Value) -> Value | None:
    if max(x.sizes[1:]) > 8:
        return None
    width = w.width()
    layer = w.layer(f"nn.ConvTranspose2d({x.channels}, {width}, 2, 2, bias={w.pick((True, False))})")
    return w.let(f"{_norm(w, x.kind, width)}({layer}({x.name}))", x.kind, (width, *(2 * s for s in x.sizes[1:])))


# ---------------------------------------------------------------- what is one layer


@operation(*GRIDS, table=OWN)
def chain(w: Writer, x: Value) -> Value | None:
    """Layers in a row without an activation; exact as one layer or not, by biases and padding."""
    inner, width = w.width(), w.width()
    forms = ("1", "3", "3, padding=1", "3, padding=1, stride=2")
    first, second = w.pick(forms), w.pick(forms)
    sizes = list(x.sizes[1:])
    for form in (first, second):
        sizes = [_size(size, form) for size in sizes]
    if min(sizes) < 1 or min(_size(size, first) for size in x.sizes[1:]) < 1:
        return None
    one = _conv(w, x, inner, first, bias=w.pick((True, False)))
    middle = Value(x.name, x.kind, (inner, *x.sizes[1:]))
    two = _conv(w, middle, width, second, bias=w.pick((True, False)))
    return w.let(f"{two}({one}({x.name}))", x.kind, (width, *sizes))


def _size(size: int, form: str) -> int:
    kernel, padding, stride = int(form[0]), int("padding=1" in form), 1 + ("stride" in form)
    return (size + 2 * padding - kernel) // stride + 1


@operation("vector", "tokens", table=OWN)
def linear_chain(w: Writer, x: Value) -> Value | None:
    inner, width = w.pick((2, 4, 12)), w.width()
    one = w.layer(f"nn.Linear({x.channels}, {inner}, bias={w.pick((True, False))})")
    two = w.layer(f"nn.Linear({inner}, {width})")
    return w.let(f"{two}({one}({x.name}))", x.kind, x.of(width))


@operation("image", table=OWN)
def branches(w: Writer, x: Value) -> Value | None:
    """A RepVGG block, or one of its kin."""
    stays = w.integer(0, 1) == 0
    width, bias = x.channels if stays else w.width(), w.pick((False, True))
    terms = [f"{_norm(w, x.kind, width)}({_conv(w, x, width, bias=bias)}({x.name}))"]
    terms.append(f"{_norm(w, x.kind, width)}({_conv(w, x, width, '1', bias=bias)}({x.name}))")
    if stays:
        third = ("{}", "self.N({})", "F.avg_pool2d({}, 3, 1, 1)", "2.0 * {}")
        code = w.pick(third)
        code = code.replace("self.N", _norm(w, x.kind, width)) if "self.N" in code else code
        terms.append(code.format(x.name))
    total = " + ".join(terms)
    return w.let(w.pick(("F.relu({})", "{}")).format(total), x.kind, x.of(width))


@operation("image", "vector", table=OWN)
def affine_by_hand(w: Writer, x: Value) -> Value | None:
    sizes = (1, x.channels, *[1] * (len(x.sizes) - 1))
    scale, shift = w.layer(f"nn.Parameter(torch.randn{sizes})"), w.buffer(f"torch.randn{sizes}")
    return w.same(w.pick(("{0} * {1} + {2}", "({0} - {2}) * {1}", "{2} - {0}")).format(x.name, scale, shift), x)


@operation("image", table=OWN)
def frozen_norm(w: Writer, x: Value) -> Value | None:
    width = w.width()
    layer = _conv(w, x, width, w.pick(("1", "3, padding=1")), bias=w.pick((True, False)))
    norm = w.layer(f"__import__('torchvision').ops.FrozenBatchNorm2d({width})")
    return w.let(f"{norm}({layer}({x.name}))", x.kind, x.of(width))


# ---------------------------------------------------------------- blocks and layers that can go


@operation("image", table=OWN)
def residual_norm(w: Writer, x: Value) -> Value | None:
    width = w.width()
    one = _conv(w, x, width, bias=False)
    two = _conv(w, Value(x.name, x.kind, x.of(width)), x.channels, bias=False)
    first, second = _norm(w, x.kind, width), _norm(w, x.kind, x.channels)
    inner = f"{second}({two}(F.relu({first}({one}({x.name})))))"
    return w.same(w.pick(("F.relu({1} + {0})", "{0} + {1}", "{1} + 0.5 * {0}")).format(x.name, inner), x)


@operation("image", table=OWN)
def stacked(w: Writer, x: Value) -> Value | None:
    """The same block several times."""
    act = w.pick(("F.relu", "F.silu", "torch.tanh"))
    value = x
    for _ in range(w.pick((2, 3))):
        layer = f"{_norm(w, x.kind, x.channels)}({_conv(w, x, x.channels)}({value.name}))"
        value = w.same(f"{act}({layer})", x)
    return value


@operation("vector", "tokens", table=OWN)
def stacked_linear(w: Writer, x: Value) -> Value | None:
    value = x
    for _ in range(w.pick((2, 3))):
        value = w.same(f"F.relu({w.layer(f'nn.Linear({x.channels}, {x.channels})')}({value.name}))", x)
    return value


@operation("tokens", table=OWN)
def parallel_branches(w: Writer, x: Value) -> Value | None:
    one, two = (w.layer(f"nn.Linear({x.channels}, {x.channels})") for _ in range(2))
    return w.same(f"{x.name} + {one}(torch.tanh({x.name})) + {two}({x.name})", x)


# ---------------------------------------------------------------- shared, tied, and nothing at all


@operation("image", "vector", table=OWN)
def shared_norm(w: Writer, x: Value) -> Value | None:
    norm = _norm(w, x.kind, x.channels)
    return w.same(f"{norm}({x.name}) + {norm}(torch.tanh({x.name}))", x)


@operation("image", table=OWN)
def tied_convs(w: Writer, x: Value) -> Value | None:
    layer = _conv(w, x, x.channels)
    other = w.layer(f"nn.Parameter(torch.randn({x.channels}))")
    return w.same(f"F.conv2d(F.relu({layer}({x.name})), {layer}.weight, {other}, padding=1)", x)


@operation(*ALL, table=OWN)
def does_nothing(w: Writer, x: Value) -> Value | None:
    forms = (
        "{} * 1.0", "{}.reshape({}.shape)", "{} + 0", "{}.clone()", "nn.Dropout(0.3).eval()({})", "torch.cat([{}])",
        "{}.flatten(0, 0)", "{}[:, :]", "{}.view_as({})",
    )  # fmt: skip
    form = w.pick(forms)
    return w.same(form.replace("{}", x.name), x)


@operation("image", table=OWN)
def wide_kernel(w: Writer, x: Value) -> Value | None:
    width, form = w.width(), w.pick(("5, padding=2", "7, padding=3", "(1, 5), padding=(0, 2)", "5, 2, 2"))
    sizes = [(size - 1) // 2 + 1 for size in x.sizes[1:]] if form.startswith("5, 2") else x.sizes[1:]
    layer = _conv(w, x, width, form, bias=w.pick((True, False)))
    return w.let(f"{layer}({x.name})", "image", (width, *sizes))
