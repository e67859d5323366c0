"""Files of records, and tables on pages: read, and written so that nobody loses anything.

Files are replaced in one step (:func:`fxprune.deploy.files.atomic_write`, whose import brings neither torch nor numpy),
so that a reader, or a crash, never sees half of one. Whoever changes a file holds a lock meanwhile, so that several
runs may share it. The lock is that of the folder: the file itself is another one after every write, and a file for
the lock alone would be left beside a page.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from fxprune.deploy.files import atomic_write

Record = dict[str, Any]


def read(path: Path, *lists: str) -> dict[str, Any]:
    """Return what a file holds, nothing where there is none.

    Args:
        path: The file.
        lists: Names of lists that are there also where the file has no record of them yet.
    """
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in lists:
        found.setdefault(name, [])
    return found


def write(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Write JSON in one step; a folder that is missing is made."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text in one step; a folder that is missing is made."""

    def put(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, put)


@contextlib.contextmanager
def changed(path: Path, *, indent: int | None = 1) -> Iterator[dict[str, Any]]:
    """Read a file, let its content be changed, and write that, while nobody else does so.

    What is raised meanwhile leaves the file as it was.
    """
    with _locked(path.parent):
        content = read(path)
        yield content
        write(path, content, indent=indent)


def append(
    path: Path,
    to: str,
    *records: Record,
    key: Collection[str],
    about: Mapping[str, Any] | None = None,
    indent: int | None = 1,
) -> None:
    """Add records to a list of a file; of two with the same key, the first counts.

    Args:
        path: The file.
        to: The name of the list in it.
        records: What is added.
        key: What a record is known by: names of its entries.
        about: Other entries of the file, in place of older ones.
        indent: Of the file; None writes all on one line.

    Raises:
        KeyError: A record lacks an entry of the key.
    """
    with changed(path, indent=indent) as content:
        content.setdefault("schema", 1)
        kept = content.setdefault(to, [])
        before = len(kept)
        for record in records:
            if not has(kept, {name: record[name] for name in key}):
                kept.append(record)
        if len(kept) > before:
            content.update(about or {})


def has(records: Collection[Record], key: Mapping[str, Any]) -> bool:
    """Whether one of the records has all these entries."""
    return any(key.items() <= record.items() for record in records)


# ---------------------------------------------------------------- pages


def put_between(path: Path, name: str, text: str) -> None:
    """Replace what is between the markers of a name on a page; where there is no page, one is begun.

    Raises:
        SystemExit: The page has not each of the markers once and in order. It is left as it is.
    """
    put_between_marks(path, f"<!-- {name}:start -->\n", f"<!-- {name}:end -->", text)


def put_between_marks(path: Path, start: str, end: str, text: str) -> None:
    """Do what :func:`put_between` does, for markers that are called otherwise (and may be the same one twice)."""
    with _locked(path.parent):
        page = path.read_text(encoding="utf-8") if path.is_file() else f"{start}{end}\n"
        before, found, rest = page.partition(start)
        _, ended, after = rest.partition(end)
        if not (found and ended) or start in after or end in before + after:
            raise SystemExit(
                f"{path} was not changed: it needs a line {start.strip()} and behind it a line {end.strip()}, each "
                "once; put them where the tables belong"
            )
        whole = text if text.endswith("\n") else f"{text}\n"
        write_text(path, f"{before}{start}{whole}{end}{after}")


def begin_page(path: Path, *names: str) -> None:
    """Write a page that has markers alone, in this order, unless there is a page."""
    with _locked(path.parent):
        if not path.is_file():
            write_text(path, "\n".join(f"<!-- {name}:start -->\n<!-- {name}:end -->\n" for name in names))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # it ends with the process, however that ends
        yield
    finally:
        os.close(descriptor)
