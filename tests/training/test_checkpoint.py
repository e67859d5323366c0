"""Checkpoints come back as they were, or say why not, and a failed one leaves the last."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fxprune.errors import InputError
from fxprune.training.checkpoint import first_difference, load_checkpoint, save_checkpoint, save_weights

TREE: dict[str, Any] = {
    "step": 12,
    "best": -math.inf,
    "name": "a",
    "nothing": None,
    "flag": True,
    "numbers": [1, (2.5, "x")],
    "state": {0: {"momentum": torch.arange(6.0).reshape(2, 3)}, 1: {}},
    "a/b": torch.ones(2),
    "a": {"b": torch.zeros(3)},
    "half": torch.tensor(1.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "bytes": torch.arange(5, dtype=torch.uint8),
}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and one == other


def test_everything_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", TREE)
    found = load_checkpoint(tmp_path / "c")
    assert _same(found, TREE)


def test_the_state_of_an_optimiser_comes_back(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "c", {"optimizer": optimizer.state_dict()})
    other = torch.optim.AdamW(model.parameters(), lr=0.5)
    other.load_state_dict(load_checkpoint(tmp_path / "c")["optimizer"])
    assert _same(other.state_dict(), optimizer.state_dict())


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    save_checkpoint(tmp_path / "c", {"a": base, "b": base[1:], "c": base.reshape(2, 2).T})
    found = load_checkpoint(tmp_path / "c")
    assert found["b"].tolist() == [1, 2, 3]
    assert found["c"].tolist() == [[0, 2], [1, 3]]
    save_weights(tmp_path / "w.safetensors", {"a": base, "tied": base})
    assert load_file(tmp_path / "w.safetensors")["tied"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["cut", "empty", "flipped", "plain", "absent", "other"])
def test_damaged_files_are_refused_and_left(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, TREE)
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[:-7])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif kind == "plain":
        save_file({"weight": torch.ones(2)}, path)
    elif kind == "other":
        path.write_bytes(content.replace(b'\\"schema\\": 1', b'\\"schema\\": 9'))
    else:
        path.unlink()
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(InputError, match="no checkpoint that a training can go on from") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize("tree", [{"x": object()}, {"x": {1.5: 2}}, {"x": [{(1, 2): 3}]}])
def test_what_is_no_plain_data_is_named(tmp_path: Path, tree: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="x"):
        save_checkpoint(tmp_path / "c", tree)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def little_room() -> Iterator[None]:
    """Files of more than 20 kB cannot be written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("little_room")
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"step": 1, "weights": torch.ones(10)})
    for save in (save_checkpoint, save_weights):
        with pytest.raises(InputError, match="the old file is unchanged"):
            save(path, {"weights": torch.ones(100_000)})
        assert load_checkpoint(path)["step"] == 1
        assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_the_first_difference_in_words() -> None:
    then = {"model": {"w": [2, 3]}, "lr": 0.1}
    assert first_difference(then, {"model": {"w": [2, 3]}, "lr": 0.1}) is None
    assert first_difference({"model": {"w": [2, 4]}, "lr": 0.1}, then) == "model: w was [2, 3] and is [2, 4]"
    assert first_difference({"model": {}, "lr": 0.1}, then) == "model: w is missing"
    assert first_difference({**then, "more": 1}, then) == "more is new"
