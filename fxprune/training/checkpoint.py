"""Checkpoints of a training: one file of tensors and JSON, without pickle; it is the old one or the whole new one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fxprune.deploy.files import write_safetensors
from fxprune.errors import InputError

SCHEMA = 1
_KEY = "fxprune.checkpoint"


def save_checkpoint(path: Path, tree: Mapping[str, Any]) -> None:
    """Write nested dictionaries, lists, tensors, numbers and texts in one step.

    Args:
        path: The file; its folder must exist.
        tree: Keys are texts or whole numbers.

    Raises:
        InputError: The disk is full or the folder cannot be written, in which case the old file is unchanged; or the
            tree holds something else.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(tree, "", tensors)
    stored = _apart(tensors)
    text = json.dumps({"schema": SCHEMA, "crc": checksum(stored), "tree": skeleton})
    write_safetensors(path, stored, {_KEY: text})


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what :func:`save_checkpoint` wrote, with tensors on the CPU.

    Raises:
        InputError: The file is damaged, cut short, of another version, or no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if text is None:
            raise ValueError("it holds tensors, but no training")
        values = json.loads(text)
        if values["schema"] != SCHEMA:
            raise ValueError(f"it has schema {values['schema']}, and this version of fxprune reads {SCHEMA}")
        if values["crc"] != checksum(tensors):
            raise ValueError("its checksum is wrong")
        tree: dict[str, Any] = _unpack(values["tree"], tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no checkpoint that a training can go on from ({error}); it is damaged, cut short or of another "
            "kind, and was left as it is. Start again without it (resume=False, --no-resume), or give another folder."
        ) from error
    return tree


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state_dict as plain safetensors in one step; tensors that share memory are written once each.

    Raises:
        InputError: As for :func:`save_checkpoint`.
    """
    write_safetensors(path, _apart(dict(state)))


def first_difference(now: Any, then: Any, path: str = "") -> str | None:
    """Return where two trees of plain data differ, in words, or None where they do not."""
    if isinstance(now, dict) and isinstance(then, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            where = f"{path}{': ' if path else ''}{key}"
            if key not in now or key not in then:
                return f"{where} is {'missing' if key not in now else 'new'}"
            if found := first_difference(now[key], then[key], where):
                return found
        return None
    return None if now == then else f"{path} was {then!r} and is {now!r}"


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return JSON in which tensors are names; dictionaries become lists of pairs, since their keys may be numbers."""
    if isinstance(value, Tensor):
        name = path if path not in tensors else f"{path}#{len(tensors)}"  # a key may contain a slash
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str | int)]:
            raise InputError(
                f"a checkpoint cannot hold the key {bad[0]!r} in {path or 'it'}; use text or a whole number"
            )
        return {
            "dict": [[key, _pack(item, f"{path}/{key}" if path else str(key), tensors)] for key, item in value.items()]
        }
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"a checkpoint cannot hold the {type(value).__name__} in {path}; give tensors, numbers, texts, lists and "
        "dictionaries as the state"
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in content)
    return {key: _unpack(item, tensors) for key, item in content}


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU of which no two share memory, as the format wants them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        result[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return result


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """Return a number that tells tensors on the CPU from others, by names and bits."""
    total = 0
    for name in sorted(tensors):
        content = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
        total = zlib.crc32(content, zlib.crc32(name.encode(), total))
    return total
