"""What is read is what was written, bit for bit, in less space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fxprune.capture import trace
from fxprune.deploy.compact import first_change, is_compact, load_compact, save_compact
from fxprune.deploy.files import write_safetensors
from fxprune.errors import InputError
from fxprune.passes import PruneWeights


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    ours, theirs = (each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other))
    return torch.equal(ours, theirs)


def model(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3, groups=2), nn.ReLU(), nn.Conv2d(32, 8, 1)
    )
    traced = trace(net.eval(), torch.randn(2, 3, 12, 12))
    return PruneWeights(0.7, exclude=(), **options)(traced).traced.module


@pytest.mark.parametrize(
    ("options", "most"),
    [({"fill": "zero"}, 0.36), ({"fill": "filter"}, 0.38), ({"fill": "layer"}, 0.36), ({"fill": "sign"}, 0.41),
     ({"form": "cheap"}, 0.42), ({"scope": "global"}, 0.38)], ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pruned_models_come_back_bit_for_bit(options: dict[str, Any], most: float, dtype: Any, tmp_path: Path) -> None:
    net = model(**options).to(dtype)
    report = save_compact(tmp_path / "model.safetensors", net)
    found, state = load_compact(tmp_path / "model.safetensors"), net.state_dict()
    assert list(found) == list(state)
    assert all(same(found[name], value) for name, value in state.items())
    net.load_state_dict(found)
    weights = [name for name, value in state.items() if value.ndim > 1 and value.numel() > 100]
    packed, dense = (sum(report.tensors[name][which] for name in weights) for which in (0, 1))
    assert packed / dense < most
    assert report.dense_bytes == sum(value.numel() * value.element_size() for value in state.values())
    assert report.bytes == (tmp_path / "model.safetensors").stat().st_size
    assert report.to_dict()["ratio"] == report.bytes / report.dense_bytes
    assert "model.safetensors" in str(report)
    save_file(state, tmp_path / "dense.safetensors")
    assert report.bytes < (tmp_path / "dense.safetensors").stat().st_size


_FLOATS = st.sampled_from([0.0, -0.0, 1.5, -1.5, float("nan"), float("inf"), -float("inf"), 3.0, 1e-45])


@given(
    rows=st.lists(st.lists(_FLOATS, min_size=9, max_size=9), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_numbers_come_back_bit_for_bit(rows: list[list[float]], dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.tensor(rows, dtype=torch.float64).to(dtype)
    save_compact(tmp_path / "any.safetensors", {"w": tensor, "signs": tensor.abs() * -1})
    found = load_compact(tmp_path / "any.safetensors")
    assert same(found["w"], tensor)
    assert same(found["signs"], tensor.abs() * -1)


def test_whatever_a_state_dict_holds(tmp_path: Path) -> None:
    base = torch.randn(6, 5)
    state = {
        "count": torch.tensor(3),
        "vector": torch.zeros(100),
        "empty": torch.zeros(0, 4),
        "flags": torch.rand(9, 7) < 0.1,
        "bytes": torch.randint(0, 3, (5, 8), dtype=torch.uint8),
        "whole": torch.randint(0, 2, (4, 5, 6)),
        "complex": torch.zeros(4, 4, dtype=torch.complex64),
        "small": torch.zeros(8, 64).to(torch.float8_e4m3fn),
        "turned": base.T,
        "tied": base,
        "again": base,
    }
    report = save_compact(tmp_path / "all.safetensors", state)
    assert report.tensors["tied"] == (120, 120)
    assert report.tensors["again"] == (0, 0)
    found = load_compact(tmp_path / "all.safetensors")
    assert list(found) == list(state)
    for name, value in state.items():
        assert same(found[name], value), name


def test_what_does_not_come_back_is_named(tmp_path: Path) -> None:
    path, state = tmp_path / "model.safetensors", {"count": torch.tensor(3), "w": torch.zeros(40, 40)}
    save_compact(path, state)
    assert is_compact(path)
    assert first_change(path, state) is None
    assert first_change(path, {**state, "w": torch.zeros(40, 40) * -1}) == "w"  # zeros of the other sign
    assert first_change(path, {**state, "w": torch.zeros(40, 40).double()}) == "w"
    assert first_change(path, {**state, "more": torch.zeros(2)}) == "more"
    assert first_change(path, {"w": state["w"]}) == "count"
    save_file(state, path)
    assert not is_compact(path)


class Counting(nn.Linear):
    """Keeps something in its state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"seen": 3}


@pytest.mark.parametrize("write", [save_compact, write_safetensors])
def test_what_is_no_tensor_is_named(tmp_path: Path, write: Callable[[Path, nn.Module], object]) -> None:
    with pytest.raises(InputError, match=r"0\._extra_state is a dict, and the file holds tensors alone"):
        write(tmp_path / "model.safetensors", nn.Sequential(Counting(2, 2)))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_or_written_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="names with '::'"):
        save_compact(path, {"a::mask": torch.zeros(2)})
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="load it as plain safetensors"):
        load_compact(path)
    save_compact(path, {"w": torch.zeros(40, 40)})
    assert set(load_file(path)) == {"w::fill", "w::mask", "w::kept"}
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(InputError, match="can be read"):
        load_compact(path)
    with pytest.raises(InputError, match="can be read"):
        load_compact(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="cannot write"):
        save_compact(tmp_path / "no" / "folder", {"w": torch.zeros(2)})
