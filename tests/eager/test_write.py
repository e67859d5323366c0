"""Results written back into the user's own class: equal to the graph, or refused with the line and nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import passes
from fxprune.eager import apply_to
from fxprune.errors import InputError, VerifyError


class Residual(nn.Module):
    """A residual branch with a norm, dropped at random in training, and a second output for training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.b = nn.Conv2d(24, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        keep = 1.0 if not self.training else float(torch.rand(()) < 0.5)
        x = x + keep * self.b(self.a(x))
        x = self.depthwise(x).mean((2, 3))
        return (self.head(x), x.sum()) if self.training else self.head(x)


class Baked(nn.Module):
    """Has a width written into its code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Linear(16 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).reshape(-1, 16 * 36))  # the baked line


class Scaled(nn.Module):
    """Runs at any width, but scales by the one that it was built with."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x[:, : self.width] / x.shape[1])


class Tied(nn.Module):
    """Embeds and projects with one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.a, self.b = nn.Linear(16, 24), nn.Linear(24, 16)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out(self.norm(x + self.b(F.gelu(self.a(x)))))


class Recurrent(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.b = nn.Linear(5, 12), nn.LSTM(12, 10, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.lstm(self.a(x))[0])


class Norm2d(nn.LayerNorm):
    """A layer norm over channels of images, as torchvision's ConvNeXt has."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


IMAGE, VECTOR = torch.randn(2, 3, 8, 8), torch.randn(2, 6)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "residual": (Residual, IMAGE),
    "tied": (Tied, torch.randint(0, 11, (2, 7))),
    "recurrent": (Recurrent, torch.randn(2, 6, 5)),
    "a subclass of a norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), Norm2d(16), nn.Conv2d(16, 4, 1)),
        IMAGE,
    ),
    "transposed and grouped": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 16, 2), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 3, 1)
        ),
        IMAGE,
    ),
}  # fmt: skip


def pruned(build: Callable[[], nn.Module], example: Tensor) -> tuple[nn.Module, fxprune.Traced, Any]:
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    traced = fxprune.trace(copy.deepcopy(model), example)
    plan = fxprune.make_plan(traced, channels=0.6, round_to=1, allocation="uniform")
    assert plan.removed
    return model, traced, fxprune.Pipeline([passes.PruneChannels(plan)])(traced)


def state(model: nn.Module) -> dict[str, Any]:
    """Return all that undoing has to bring back."""
    sizes = {
        f"{path}:{key}": value
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | tuple)
    }
    return {**{key: value.clone() for key, value in model.state_dict().items()}, **sizes}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(a, other[key]) if isinstance(a, Tensor) else a == other[key] for key, a in one.items()
    )


@pytest.mark.parametrize(("build", "example"), MODELS.values(), ids=MODELS)
def test_the_class_computes_what_the_graph_computes(build: Callable[[], nn.Module], example: Tensor) -> None:
    model, traced, result = pruned(build, example)
    before = sum(parameter.numel() for parameter in model.parameters())
    applied = result.apply_to(model)
    assert applied.max_relative_error <= 1e-9
    assert applied.dtype == "float64"
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    args, kwargs = traced.inputs(batch=3, seed=5)
    with torch.no_grad():
        expected, found = result.traced.run(args, kwargs)[0], model(*args, **kwargs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    again = apply_to(result.traced, model)
    assert again.tensors == []


def test_sizes_and_ties_are_kept() -> None:
    model, _, result = pruned(Tied, MODELS["tied"][1])
    result.apply_to(model)
    assert model.out.weight is model.embed.weight
    assert model.embed.embedding_dim == model.embed.weight.shape[1] == model.norm.normalized_shape[0]
    model, _, result = pruned(Residual, IMAGE)
    result.apply_to(model)
    assert (model.a[0].in_channels, model.a[0].out_channels) == tuple(model.a[0].weight.shape[1::-1])
    assert model.depthwise.groups == model.depthwise.in_channels == model.depthwise.weight.shape[0]
    assert model.a[1].num_features == len(model.a[1].running_mean)


def test_training_goes_on_as_the_code_says() -> None:
    model, _, result = pruned(Residual, IMAGE)
    model.train()
    result.apply_to(model)
    assert model.training
    logits, extra = model(IMAGE)  # the branch of the code that the graph never saw
    (logits.sum() + extra).backward()
    assert model.stem.weight.grad is not None


class Headed(nn.Module):
    """An auxiliary head and a buffer, both for training alone, read what the trunk of the graph computes."""

    def __init__(self, head: str = "") -> None:
        super().__init__()
        self.kind = head
        self.a, self.b, self.out = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)
        self.auxiliary = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
        self.register_buffer("centre", torch.rand(16))

    def forward(self, x: Tensor) -> Any:
        inner = self.a(x).relu()
        if self.training and self.kind == "labels":
            raise ValueError("labels are missing")
        y = self.out(self.b(inner).mean((2, 3)))
        inner = inner.mean((2, 3))
        if self.training and self.kind == "head":
            return y, self.auxiliary(inner)
        return (y, (inner - self.centre).square().sum()) if self.training and self.kind == "buffer" else y


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "head",
            r"in training mode Headed runs as it was, and not with the new sizes: auxiliary\.1 stops with .*protect",
        ),
        ("buffer", r"not with the new sizes: the model's own code stops with .*centre.*protect"),
        ("labels", r"nobody can tell .* does not use auxiliary\.1, and in .* does not run on the example .*labels are"),
    ],
)
def test_a_head_for_training_that_reads_what_was_removed(kind: str, message: str) -> None:
    model, _, result = pruned(lambda: Headed(kind), IMAGE)
    before = state(model)
    with pytest.raises(VerifyError, match=message):
        result.apply_to(model)
    assert same(before, state(model))
    model.train()
    generator = torch.get_rng_state()
    apply_to(result.traced, model, training=False)
    assert torch.equal(generator, torch.get_rng_state())
    assert model.a.out_channels < 16
    assert model.training


def test_a_head_for_training_that_is_fed_by_protected_layers() -> None:
    torch.manual_seed(0)
    model = Headed("head").eval()
    traced = fxprune.trace(copy.deepcopy(model), IMAGE)
    plan = fxprune.make_plan(traced, macs=0.8, round_to=1, protect="a.*")
    assert apply_to(fxprune.cut(traced, plan), model).notes == []
    assert [value.shape for value in model.train()(IMAGE)] == [(2, 5), (2, 5)]
    assert model.b.out_channels < 16


def test_training_that_cannot_be_checked_is_told() -> None:
    """Without a head that the graph does not use there is nothing that reads what it should not."""
    model = nn.Sequential(nn.Linear(6, 16), Refuses(), nn.Linear(16, 4))
    traced = fxprune.trace(copy.deepcopy(model), VECTOR)
    [note] = apply_to(fxprune.cut(traced, fxprune.make_plan(traced, macs=0.5, round_to=1)), model).notes
    assert "whether Sequential runs in training mode was not checked" in note
    assert "no training here" in note


class Refuses(nn.Module):
    """Does not run in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("no training here")
        return x.relu()


class Rounding(nn.Module):
    """Casts as the norms of Hugging Face do, and holds a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(6, 16), nn.Linear(16, 4), torch.tensor([0.1, 0.3, 0.7, 0.9])
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        y = self.b(self.weight * y.to(x.dtype)).softmax(-1, dtype=torch.float32)
        z = torch.zeros(4)
        z[1:].add_(y.sum(0)[1:])
        return y * self.scale + z + torch.tensor([0.1, 0.2, 0.3, 0.7]).half()


class Halved(nn.Module):
    """A trunk in half precision under a head in single."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12)).bfloat16()
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x.bfloat16()).float())


@pytest.mark.parametrize("build", [Rounding, Halved])
def test_casts_in_the_code_do_not_round(build: Callable[[], nn.Module]) -> None:
    model, _, result = pruned(build, VECTOR)
    applied = result.apply_to(model)
    assert applied.max_relative_error <= 1e-12
    assert applied.dtype == "float64"
    model, _, result = pruned(build, VECTOR)
    last = model.b if isinstance(model, Rounding) else model.head
    last.register_forward_hook(lambda module, args, output: output * (1 + 1e-7))
    with pytest.raises(VerifyError, match="computes something else than the graph"):
        result.apply_to(model)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrappers_that_were_traced(wrap: Callable[[nn.Module], nn.Module]) -> None:
    inner = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    model = wrap(inner)
    traced = fxprune.trace(model, VECTOR)
    result = fxprune.Pipeline([passes.PruneChannels(fxprune.make_plan(traced, macs=0.5, round_to=1))])(traced)
    assert result.apply_to(model).max_relative_error <= 1e-9
    assert inner[0].out_features == inner[2].in_features < 16


def test_another_model_is_named_as_such() -> None:
    _, _, result = pruned(Residual, IMAGE)
    with pytest.raises(InputError, match=r"stem.weight is in the graph and not in Tied: it is not the model that was"):
        result.apply_to(Tied())


def test_folded_norms_become_identities() -> None:
    model, _, result = pruned(Residual, IMAGE)
    folded = fxprune.Pipeline([passes.FuseBatchNorm()])(result.traced)
    applied = folded.apply_to(model)
    assert applied.removed == ["a.1"]
    assert isinstance(model.a[1], nn.Identity)
    assert model.a[0].bias is not None
    assert applied.max_relative_error <= 1e-9


@pytest.mark.parametrize(
    ("build", "example", "message"),
    [
        (Baked, IMAGE, r"does not run with the new sizes.*test_write.py:\d+ \(return self.b\(self.a\(x\).reshape"),
    ],
)
def test_a_width_in_the_code_is_refused_with_its_line(
    build: Callable[[], nn.Module], example: Tensor, message: str
) -> None:
    model, _, result = pruned(build, example)
    before = state(model)
    with pytest.raises(VerifyError, match=message):
        result.apply_to(model)
    assert same(before, state(model))
    model(example)


def test_code_that_computes_something_else_is_refused() -> None:
    model, _, result = pruned(Residual, IMAGE)
    before = state(model)
    model.head.register_forward_hook(lambda module, args, output: output * 1.001)  # not in the capture
    with pytest.raises(VerifyError, match="computes something else than the graph"):
        result.apply_to(model)
    assert same(before, state(model))


def test_widths_that_are_part_of_the_function() -> None:
    """The graph goes on dividing by the width that was captured, as masking does; the code would divide by the new."""
    model, _, result = pruned(Scaled, VECTOR)
    with pytest.raises(VerifyError, match="computes something else"):
        result.apply_to(model)


def test_other_layers_are_refused() -> None:
    model, traced, _ = pruned(Residual, IMAGE)
    before = state(model)
    expanded = fxprune.Pipeline([passes.OverParameterize(rate=2)])(traced)
    with pytest.raises(InputError, match="apply the result before that pass"):
        expanded.apply_to(model)
    assert same(before, state(model))


def test_a_recurrent_layer_runs_after_undoing() -> None:
    model, _, result = pruned(Recurrent, MODELS["recurrent"][1])
    example = MODELS["recurrent"][1]
    expected = model(example)
    hook = model.b.register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(VerifyError):
        result.apply_to(model)
    hook.remove()
    torch.testing.assert_close(model(example), expected)


def test_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision", reason="the model is torchvision's")
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small(weights=None).eval()
    traced = fxprune.trace(copy.deepcopy(model), torch.randn(2, 3, 64, 64))
    plan = fxprune.make_plan(traced, macs=0.5)
    applied = apply_to(fxprune.cut(traced, plan), model)
    assert applied.max_relative_error <= 1e-9
    assert model.features[0][0].out_channels <= 16


class Hidden(nn.Module):
    """Gives a number that is none in its second output, in its own code alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.b(x), x.mean() * (torch.nan if self.a.out_features != 16 else 1.0)


def test_what_is_no_number_is_no_agreement() -> None:
    model = Hidden()
    traced = fxprune.trace(model, torch.randn(2, 6))
    pruned = fxprune.cut(traced, fxprune.make_plan(traced, macs=0.5, round_to=1))
    with pytest.raises(VerifyError, match="relative error inf"):
        apply_to(pruned, model)
    assert model.a.out_features == 16


class Telling(nn.Module):
    """Its second output is told another value by its own code once a layer is narrower; graphs keep the old one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.b(torch.relu(self.a(x)))
        narrower = int(self.a.out_features != 16)
        if self.kind == "integers":
            return y, y.argmax(1) + narrower
        if self.kind == "booleans":
            return y, (y > 0) ^ bool(narrower)
        return 1e6 * y, 1e-2 * (y.tanh() + 1e-2 * narrower)


@pytest.mark.parametrize("kind", ["integers", "booleans", "small"])
def test_integers_and_outputs_next_to_large_ones_are_compared_too(kind: str) -> None:
    model = Telling(kind).eval()
    traced = fxprune.trace(model, torch.randn(2, 6))
    pruned = fxprune.cut(traced, fxprune.make_plan(traced, macs=0.5, round_to=1))
    with pytest.raises(VerifyError, match="computes something else than the graph"):
        apply_to(pruned, model)
    assert model.a.out_features == 16


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(x, x, x, need_weights=False)[0])


def test_an_attention_layer_that_lost_heads_is_named() -> None:
    """Its code has one width for queries, output and heads; the graph has three."""
    model, _, result = pruned(Attending, torch.randn(2, 5, 12))
    before = state(model)
    with pytest.raises(VerifyError, match=r"attend is nn.MultiheadAttention, which has one width.*Protect its param"):
        result.apply_to(model)
    assert same(before, state(model))


class Stepping(nn.Module):
    """A cell, a bag and a layer of two inputs keep their sizes beside their weights, and no layer of the graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.cell = nn.EmbeddingBag(9, 12), nn.LSTMCell(12, 10)
        self.both, self.head = nn.Bilinear(10, 12, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bag(x)
        state = self.cell(y)
        return self.head(self.both(self.cell(y, state)[0], y))


def test_layers_that_the_graph_takes_apart_have_their_sizes_too() -> None:
    model, _, result = pruned(Stepping, torch.arange(10).reshape(2, 5) % 9)
    assert result.apply_to(model).max_relative_error <= 1e-9
    assert model.cell.hidden_size == model.cell.weight_hh.shape[1] < 10
    assert model.cell.input_size == model.bag.embedding_dim == model.both.in2_features < 12
    assert (model.both.out_features, model.both.in1_features) == model.both.weight.shape[:2]


class Idle(nn.Module):
    """Runs a layer whose result nobody reads, as the last residual of a WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.unread, self.b = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.unread(x)
        return self.b(x)


def test_a_layer_that_no_output_depends_on_is_named() -> None:
    model, _, result = pruned(Idle, VECTOR)
    with pytest.raises(VerifyError, match=r"no output depends on unread, which therefore kept all channels"):
        result.apply_to(model)


class DeadAtFirst(nn.Module):
    """Its second layer gives zeros unless an input is small enough."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        with torch.no_grad():
            self.b.weight.copy_(-torch.eye(4))
            self.b.bias.fill_(bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(F.relu(self.b(F.relu(self.a(x)))))
        return found


def test_code_is_compared_where_the_outputs_move() -> None:
    """Without its first layer the code still has that layer's activation, which shows only where the next is alive."""
    example = torch.randn(2, 4)
    lows = [float(trace_of(DeadAtFirst(0.0), example).inputs(seed=seed)[0][0].min()) for seed in range(1, 5)]
    later = min(lows[1:])
    assert later < lows[0] < 0
    model = DeadAtFirst((later + lows[0]) / 2)
    traced = passes.RemoveLayers(["a"], verify=False)(trace_of(model, example)).traced
    with pytest.raises(VerifyError, match="cannot do without the removed layers"):
        apply_to(traced, model)


@pytest.mark.parametrize(("bias", "notes"), [(-100.0, 1), (100.0, 0)])
def test_code_whose_outputs_never_move_is_written_with_a_note(bias: float, notes: int) -> None:
    model = DeadAtFirst(bias)
    applied = apply_to(trace_of(model, torch.randn(2, 4)), model)
    assert sum("the same for every input that was tried" in note for note in applied.notes) == notes


def trace_of(model: nn.Module, example: Tensor) -> fxprune.Traced:
    return fxprune.trace(model.eval(), example)
