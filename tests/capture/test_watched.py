"""What a sub-module takes and gives by another way than its inputs and outputs, or computes by more than its inputs."""

from __future__ import annotations

import pytest
import torch
from capture.detectors import normal
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import passes
from fxprune.capture import Traced, trace
from fxprune.capture.regions import Call, hosted, part


def assert_split(model: nn.Module, example: Tensor, path: str, reason: str, regions: tuple[str, ...]) -> Traced:
    """Hold that a sub-module is no region, why, and that those in its place compute what it does."""
    traced = trace(model.eval(), example)
    assert traced.regions is not None
    assert tuple(traced.regions.paths) == regions
    assert any(note.startswith(f"{path} is no region as a whole: ") and reason in note for note in traced.notes)
    assert reason in traced.regions.left[path]

    def run(call: Call, leaves: list[Tensor]) -> list[Tensor]:
        return part(traced, call).run(tuple(leaves))

    with torch.no_grad():
        expected = model(example.clone())
        with hosted(model, traced, run):
            found = model(example.clone())
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    return traced


class Net(nn.Module):
    """Keeps a value in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 6)
        self.last = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        kept = F.relu(self.a(x))
        self.last = kept
        found: Tensor = self.b(kept)
        return found


class Around(nn.Module):
    """Reads what a sub-module kept in an attribute or what a hook did, by an operation or as an output as it is."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.kept = how, torch.zeros(())
        self.net = Net()
        self.seen = nn.Linear(16, 3)
        if how == "hook":
            self.net.a.register_forward_hook(lambda module, inputs, output: setattr(self, "kept", output))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.net(x)
        if float(y.sum()) > 1e9:
            return (y,)
        if self.how == "attribute":
            return y, self.net.last.mean(0)
        if self.how == "hook":
            return y, self.kept.mean(0)
        return (y, self.net.last) if self.how == "returned" else (y, self.seen(self.net.last))


@pytest.mark.parametrize(
    ("how", "regions"),
    [
        ("attribute", ("net.a", "net.b")),
        ("hook", ("net.a", "net.b")),
        ("given to a region", ("net.a", "net.b", "seen")),
    ],
)
def test_what_is_made_inside_and_read_outside(how: str, regions: tuple[str, ...]) -> None:
    model = Around(how)
    traced = assert_split(model, normal(2, 6), "net", "makes a tensor that is read elsewhere", regions)
    assert not fxprune.find_groups(traced).families


def test_what_is_made_inside_and_returned_as_it_is() -> None:
    traced = trace(Around("returned").eval(), normal(2, 6))
    assert traced.regions is not None
    assert "net" in traced.regions.left


class Reader(nn.Module):
    """Reads what another module kept."""

    def __init__(self, other: Net) -> None:
        super().__init__()
        self.other, self.c = (other,), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.c(self.other[0].last) + x.sum()
        return found


class Readers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.reader = Reader(self.net)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.net(x)
        return (y,) if float(y.sum()) > 1e9 else (y, self.reader(x))


def test_a_region_that_reads_what_another_kept() -> None:
    """Its graph would hold the value of the example as a constant."""
    reason = "reads a tensor that is made elsewhere and is none of its inputs"
    assert_split(Readers(), normal(2, 6), "reader", reason, ("net.a", "net.b", "reader.c"))


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x.add_(self.b(F.relu(self.a(x))))
        return x.mean(1)


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.writes = nn.Linear(6, 6), Writes()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.before(x)
        z = self.writes(y)
        return (z,) if float(z.sum()) > 1e9 else (z, y.mean(1))


def test_a_region_that_writes_into_what_is_read_behind_it() -> None:
    reason = "writes into an input that is read again behind it"
    assert_split(Written(), normal(2, 6), "writes", reason, ("before", "writes.a", "writes.b"))


class Flagged(nn.Module):
    """Computes something else when a flag is set, or in every second call."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 6)
        self.flag, self.counts = False, counts

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        flag, self.flag = self.flag, self.flag ^ self.counts
        found: Tensor = self.b(y.flip(-1) if flag else y)
        return found


class Top(nn.Module):
    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.inner, self.counts = Flagged(counts), counts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.inner.flag = False
        y = self.inner(x)
        if float(y.sum()) > 1e9:
            return (y,)
        if not self.counts:
            self.inner.flag = True
        return y, self.inner(x)


@pytest.mark.parametrize("counts", [False, True])
def test_a_region_that_computes_something_else_in_another_call(counts: bool) -> None:
    reason = "call 1 of 2 returned (a relative difference"
    assert_split(Top(counts), normal(2, 6), "inner", reason, ("inner.a", "inner.b"))


class Noisy(nn.Module):
    """Adds noise in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        found: Tensor = self.b(y) + torch.randn_like(x)
        return found


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.noisy = Noisy()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.noisy(x)
        return y if float(y.sum()) > 1e9 else y + self.noisy(x)


def test_random_numbers_are_no_other_function() -> None:
    traced = trace(Noise(), normal(2, 6))
    assert traced.regions is not None
    assert list(traced.regions.paths) == ["noisy"]


class Packs(nn.Module):
    """Packs a sequence for its recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 6))
        self.gru, self.out = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.into(x), lengths, batch_first=True, enforce_sorted=False)
        found: Tensor = self.out(self.gru(packed)[1][-1])
        return found


def test_a_packed_sequence_is_captured_around() -> None:
    model = Packs().eval()
    given = (normal(3, 5, 4), torch.tensor([5, 2, 3]))
    traced = trace(model, given)
    assert traced.regions is not None
    assert list(traced.regions.paths) == ["into", "out"]
    assert "packed sequence" in traced.regions.left["gru"]
    plan = fxprune.make_plan(traced, macs=0.6, round_to=1)
    fxprune.Pipeline([passes.PruneChannels(plan)])(traced).apply_to(model)
    assert model.get_parameter("into.0.weight").shape[0] < 12
