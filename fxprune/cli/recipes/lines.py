"""The line of a TOML file in which a key is, for errors: the standard library's reader does not say."""

from __future__ import annotations

import re
from collections.abc import Iterator


def line_of(text: str, table: str, key: str) -> int:
    """Return the line of a key, from 1; of what holds it where it has no line of its own; 1 where nothing does.

    Args:
        text: The file.
        table: Name of a table; ``"passes 2"`` is the second of an array of tables.
        key: In the table; ``"tpp.ratios"`` is a key of a table within it, however that is written.
    """
    name, _, number = table.partition(" ")
    outer, _, inner = key.partition(".")
    best, line = 0, 1
    for where, header, words in _keys(text, name, int(number or 1)):
        path = [*header, *words]
        rank = 1 if not words and not header else 2 if path[:1] == [outer] else 0
        if inner and path[:2] == [outer, inner]:
            rank = 3
        if rank > best:
            best, line = rank, where
    return line


def _keys(text: str, name: str, number: int) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield the lines of one table: their number, the header below the table's own, and the key that is set."""
    seen, inside, header = 0, False, list[str]()
    for where, line in enumerate(text.splitlines(), 1):
        found = re.match(r"\s*\[+([^\]]*)\]+", line)
        if found and line.lstrip().startswith("["):
            path = _parts(found.group(1))
            seen += path == [name]
            inside, header = path[:1] == [name] and seen == number, path[1:]
            if inside:
                yield where, header, []
        elif inside and (found := re.match(r"\s*([\w\"'.\- ]+?)\s*=", line)):
            yield where, header, _parts(found.group(1))


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
