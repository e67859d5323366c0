r"""Weights on the disk without what is pruned: kept values, a bit per weight, and one number for what is not kept.

Any tensor of two dimensions or more is looked at as rows (filters). In each, the bits that occur most often (those of
zero, or of a mean that stands in for what was pruned) are stored once; a bit per entry says where they are, and the
others follow in order. Nothing has to be known about the model, and nothing is rounded: what is read is what was
written, bit for bit, signs of zeros included. Three ways are tried, and the smallest is taken:

==========  ============================================================================================================
``plain``   the tensor itself
``rows``    the commonest value of each row (or of all, where it is one), ``name::mask``, ``name::kept``
``signed``  the commonest *size* of each row, and a sign for each entry that has it besides, ``name::signs``
==========  ============================================================================================================

The file is plain safetensors; its metadata says which tensors were written how.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fxprune.deploy.files import check_tensors, write_safetensors
from fxprune.errors import InputError

SCHEMA = 1
_KEY = "fxprune.compact"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class CompactReport:
    """What was written.

    Attributes:
        path: The file.
        bytes: Its size.
        dense_bytes: What all tensors take as they are, without a header; those that are one in memory count once.
        tensors: Name -> bytes of it in the file, and as it is.
    """

    path: Path
    bytes: int
    dense_bytes: int
    tensors: Mapping[str, tuple[int, int]]

    @property
    def ratio(self) -> float:
        """The size of the file over that of the tensors as they are."""
        return self.bytes / max(self.dense_bytes, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data, with the file named without its folder."""
        return {"path": self.path.name, "bytes": self.bytes, "dense_bytes": self.dense_bytes, "ratio": self.ratio}

    def __str__(self) -> str:
        return f"{self.path.name}: {self.bytes:,} bytes, {100 * self.ratio:.1f} % of {self.dense_bytes:,}"


def save_compact(path: str | os.PathLike[str], state: nn.Module | Mapping[str, Tensor]) -> CompactReport:
    """Write weights without what is pruned, in one step.

    Args:
        path: The file; its folder must exist.
        state: A model, or its state_dict.

    Raises:
        InputError: The file cannot be written, the state holds something that is no tensor, or a name ends as the
            names of parts do.
    """
    tensors = state.state_dict() if isinstance(state, nn.Module) else dict(state)
    check_tensors(path, tensors)
    parts: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    sizes = dict[str, tuple[int, int]]()
    written: dict[Any, str] = {}
    for name, tensor in tensors.items():
        if "::" in name:
            raise InputError(f"the tensor {name!r} cannot be written: names with '::' are those of parts of tensors")
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in written:  # tied weights
            about[name], sizes[name] = {"kind": "same", "as": written[place]}, (0, 0)
            continue
        written[place] = name
        plain = tensor.detach().cpu().contiguous()
        kind, pieces = _pack(plain)
        about[name] = {"kind": kind, "dtype": str(plain.dtype).removeprefix("torch."), "shape": list(plain.shape)}
        parts |= {name + part: piece.clone() for part, piece in pieces.items()}  # which share no memory
        sizes[name] = (_bytes(pieces), plain.numel() * plain.element_size())
    text = json.dumps({"schema": SCHEMA, "tensors": about})
    write_safetensors(path, parts, {_KEY: text})
    target = Path(path)
    return CompactReport(target, target.stat().st_size, sum(dense for _, dense in sizes.values()), sizes)


def is_compact(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file was written by :func:`save_compact`.

    Raises:
        SafetensorError: It is no safetensors file.
        OSError: It cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        return _KEY in (file.metadata() or {})


def first_change(path: str | os.PathLike[str], state: nn.Module | Mapping[str, Tensor]) -> str | None:
    """Return the first tensor that does not come back from a file bit for bit, or None where all do.

    Args:
        path: What :func:`save_compact` wrote.
        state: What it was given.

    Raises:
        InputError: The file cannot be read.
    """
    found, tensors = load_compact(path), state.state_dict() if isinstance(state, nn.Module) else state
    return next((name for name in {**found, **tensors} if not _same(found.get(name), tensors.get(name))), None)


def load_compact(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors that :func:`save_compact` wrote, as a state_dict on the CPU.

    Raises:
        InputError: The file is damaged, of another version, or was not written so.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            parts = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if text is None:
            raise ValueError("it has no record of how tensors were written; load it as plain safetensors")
        values = json.loads(text)
        if values["schema"] != SCHEMA:
            raise ValueError(f"it has schema {values['schema']}, and this version of fxprune reads {SCHEMA}")
        found: dict[str, Tensor] = {}
        for name, about in values["tensors"].items():
            found[name] = found[about["as"]] if about["kind"] == "same" else _unpack(name, about, parts)
        return found
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path} holds no compact weights that can be read: {error}") from error


# ---------------------------------------------------------------- one tensor


def _pack(tensor: Tensor) -> tuple[str, dict[str, Tensor]]:
    """Return the way that takes the least space, and the parts by the ends of their names."""
    ways: dict[str, dict[str, Tensor]] = {"plain": {"": tensor}}
    if tensor.ndim > 1 and tensor.numel() and tensor.element_size() in _INTEGERS and not tensor.is_complex():
        bits = tensor.view(_INTEGERS[tensor.element_size()]).flatten(1)
        ways["rows"] = _rows(bits, bits)
        if tensor.is_floating_point():
            size = bits & _all_but_the_sign(bits.dtype)
            signed = _rows(size, bits)
            negative = bits[size == _column(signed["::fill"], len(bits))] < 0
            ways["signed"] = {**signed, "::signs": _packed(negative)} if bits.dtype != torch.uint8 else {"": tensor}
    kind = min(ways, key=lambda way: (_bytes(ways[way]), list(ways).index(way)))
    return kind, ways[kind]


def _rows(looked_at: Tensor, bits: Tensor) -> dict[str, Tensor]:
    """Return the commonest number of each row, where it is, and what the others are."""
    fill = looked_at.mode(1).values
    fill = fill[:1] if bool((fill == fill[0]).all()) else fill
    kept = looked_at != _column(fill, len(bits))
    return {"::fill": fill, "::mask": _packed(kept.flatten()), "::kept": bits[kept]}


def _unpack(name: str, about: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Tensor:
    if about["kind"] == "plain":
        return parts[name]
    dtype, shape = getattr(torch, about["dtype"]), about["shape"]
    fill, kept = parts[f"{name}::fill"], parts[f"{name}::kept"]
    count = math.prod(shape)
    where = _unpacked(parts[f"{name}::mask"], count).reshape(shape[0], -1)
    bits = _column(fill, shape[0]).expand(where.shape).clone()
    if about["kind"] == "signed":
        negative = _unpacked(parts[f"{name}::signs"], count - len(kept))
        bits[~where] = torch.where(negative, bits[~where] | ~_all_but_the_sign(bits.dtype), bits[~where])
    bits[where] = kept
    return bits.reshape(shape).view(dtype)


def _column(fill: Tensor, rows: int) -> Tensor:
    return fill.expand(rows)[:, None]


def _all_but_the_sign(dtype: torch.dtype) -> int:
    return int(torch.iinfo(dtype).max)


def _packed(flags: Tensor) -> Tensor:
    """Return booleans as bits, eight in a byte, the first in the lowest."""
    padded = torch.zeros(-(-flags.numel() // 8) * 8, dtype=torch.uint8)
    padded[: flags.numel()] = flags.to(torch.uint8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return (padded.reshape(-1, 8) * weights).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor, count: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((packed[:, None] >> shifts) & 1).bool().flatten()[:count]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (each.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for each in (one, other))
    return torch.equal(first, second)


def _bytes(pieces: Mapping[str, Tensor]) -> int:
    return sum(piece.numel() * piece.element_size() for piece in pieces.values())
