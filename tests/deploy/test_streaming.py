"""Models without data: planned, cut from files, and compared a layer at a time, as they would be in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import make_plan, trace
from fxprune.capture import Traced
from fxprune.deploy.streaming import INDEX, Shards, cut_shards, empty_model
from fxprune.errors import InputError, PlanError, VerifyError
from fxprune.surgery import cut

WORDS = torch.arange(12).reshape(2, 6)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm(x)
        q, k, v = (part(seen).unflatten(2, (4, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Language(nn.Module):
    """Tied embeddings, a buffer that no state_dict has, one that it has, and positions made in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("waves", torch.rand(16) + 0.5, persistent=False)
        self.register_buffer("shift", torch.rand(16))

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        x = self.embed(words) + torch.sin(places[:, None] * self.waves) + self.shift
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _factory() -> nn.Module:
    torch.manual_seed(0)
    return Language()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Write the weights in two files, the tied one under one name."""
    state = dict(_factory().state_dict())
    del state["head.weight"]
    folder = tmp_path / "dense"
    folder.mkdir()
    names = sorted(state)
    for number, part in enumerate((names[:10], names[10:])):
        save_file({name: state[name] for name in part}, folder / f"part-{number}.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def empty() -> tuple[Traced, dict[str, Tensor]]:
    model, buffers = empty_model(_factory)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return trace(model, WORDS.to("meta")), buffers


def test_files_are_planned_and_cut_as_the_model_in_memory(
    tmp_path: Path, checkpoint: Path, empty: tuple[Traced, dict[str, Tensor]]
) -> None:
    traced, buffers = empty
    weights = Shards(checkpoint, buffers)
    plan = make_plan(traced, macs=0.5, importance=weights.importance("l2"), round_to=1)
    whole = trace(_factory().eval(), WORDS)
    expected = make_plan(whole, macs=0.5, importance="l2", round_to=1)
    assert plan.after.macs <= 0.5 * plan.before.macs
    assert plan.before == expected.before
    found = cut_shards(traced, plan, weights, tmp_path / "out", example=WORDS)
    assert found.verification is not None
    assert found.verification.max_relative_error <= 1e-12
    assert [file.name for file in found.files] == ["part-0.safetensors", "part-1.safetensors"]
    state = cut(whole, plan.removed).module.state_dict()
    written = {name: value for file in found.files for name, value in load_file(file).items()}
    assert set(written) == set(state) - {"head.weight"}
    assert all(torch.equal(written[name], state[name]) for name in written)
    assert any(value.shape != load_file(file)[name].shape for file in sorted(checkpoint.iterdir())
               for name, value in written.items() if name in load_file(file))  # fmt: skip
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert set(index["weight_map"]) == set(written)
    assert found.bytes == sum(file.stat().st_size for file in found.files)


def test_what_is_shared_stays_shared() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = nn.Parameter(torch.randn(3, 3))
            self.first, self.second = weight, weight
            self.register_buffer("a", torch.ones(2))
            self.b = self.a

    model, buffers = empty_model(lambda: nn.Sequential(_factory(), Shares()))
    assert model[0].head.weight is model[0].embed.weight
    assert model[1].first is model[1].second
    assert set(buffers) == {"0.waves", "0.shift", "1.a"}
    assert not nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_scores_from_files_are_those_of_the_model(
    checkpoint: Path, empty: tuple[Traced, dict[str, Tensor]], name: str
) -> None:
    traced, buffers = empty
    whole = trace(_factory().eval(), WORDS)
    plan = make_plan(traced, macs=0.6, importance=Shards(checkpoint, buffers).importance(name), allocation="uniform")
    assert plan.removed == make_plan(whole, macs=0.6, importance=name, allocation="uniform").removed


def test_a_wrong_file_is_noticed(
    tmp_path: Path, checkpoint: Path, empty: tuple[Traced, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxprune.deploy import streaming

    def shifted(tensor: Tensor, dims: dict[int, Tensor]) -> Tensor:
        return right(tensor, dims).roll(1, 0) if dims else tensor

    right = streaming._cut
    monkeypatch.setattr(streaming, "_cut", shifted)
    traced, buffers = empty
    plan = make_plan(traced, macs=0.5, importance="random")
    with pytest.raises(VerifyError, match="the first node that differs is"):
        cut_shards(traced, plan, Shards(checkpoint, buffers), tmp_path / "out", example=WORDS)


def test_what_is_missing_or_in_the_way(
    tmp_path: Path, checkpoint: Path, empty: tuple[Traced, dict[str, Tensor]]
) -> None:
    traced, buffers = empty
    weights = Shards(checkpoint, buffers)
    plan = make_plan(traced, macs=0.5, importance="random")
    with pytest.raises(InputError, match=r"no data .*importance 'l2' cannot be computed"):
        make_plan(traced, macs=0.5)
    with pytest.raises(InputError, match="importance 'taylor' is not computed from files; give one of l1, l2"):
        weights.importance("taylor")
    with pytest.raises(InputError, match="holds the files that are read"):
        cut_shards(traced, plan, weights, checkpoint)
    with pytest.raises(InputError, match=r"no file has waves; give all files .* buffers="):
        cut_shards(traced, plan, Shards(checkpoint), tmp_path / "out")
    with pytest.raises(PlanError):
        cut_shards(trace(nn.Linear(3, 4), torch.randn(2, 3)), plan, weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    empty_folder = tmp_path / "nothing"
    empty_folder.mkdir()
    with pytest.raises(InputError, match=r"holds no \*.safetensors"):
        Shards(empty_folder)
    (checkpoint / "part-2.safetensors").write_bytes((checkpoint / "part-0.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"is in .*part-0.* and in .*part-2"):
        Shards(checkpoint)
    (checkpoint / "part-2.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"part-2.safetensors cannot be read"):
        Shards(checkpoint)


def test_tensors_of_another_size_are_refused(
    tmp_path: Path, checkpoint: Path, empty: tuple[Traced, dict[str, Tensor]]
) -> None:
    traced, buffers = empty
    file = checkpoint / "part-1.safetensors"
    state = load_file(file)
    name = next(name for name, value in state.items() if value.ndim == 2)
    save_file({**state, name: state[name][:, 1:].contiguous()}, file)
    plan = make_plan(traced, macs=0.5, importance="random")
    with pytest.raises(InputError, match=f"{name} is .* and the model's is"):
        cut_shards(traced, plan, Shards(checkpoint, buffers), tmp_path / "out")
