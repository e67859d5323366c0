"""Single files that a command writes: the old one, or the whole new one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fxprune.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a file in one step.

    Raises:
        InputError: It cannot be written.
    """
    from fxprune.deploy.files import atomic_write

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(path, write)


def write_json(path: Path | None, values: Any) -> None:
    """Write JSON that every reader takes: NaN and infinity, which JSON has no words for, are an error of the caller."""
    if path is not None:
        write_text(path, json.dumps(values, indent=1, allow_nan=False, default=str) + "\n")


def require_writable(*paths: Path | None) -> None:
    """Refuse a file that could not be written, before the work and not after.

    Raises:
        InputError: Its folder is missing, or it is a folder itself.
    """
    for path in paths:
        if path is not None and (path.is_dir() or not path.resolve().parent.is_dir()):
            raise InputError(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'there is no such folder'}")


def parse_sizes(pairs: list[str] | None) -> dict[str, int]:
    """Read ``name=N``: sizes of dynamic dimensions.

    Raises:
        InputError: One is not of that form.
    """
    sizes = {}
    for pair in pairs or ():
        name, _, number = pair.rpartition("=")
        if not name or not number.isdigit() or int(number) < 1:
            raise InputError(f"--size {pair} is not of the form name=N, as in --size sequence=128")
        sizes[name] = int(number)
    return sizes
