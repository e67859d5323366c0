"""What a pass did and what it left alone, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """One rewrite that a pass made at ``place`` (a node name or parameter name)."""

    place: str
    what: str


@dataclass(frozen=True)
class Skip:
    """One place that a pass looked at and left alone, with the reason."""

    place: str
    why: str


@dataclass(frozen=True)
class PassReport:
    """All changes and skips of one run of one pass."""

    name: str
    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.changes)} changed, {len(self.skips)} skipped"]
        lines += [f"  + {change.place}: {change.what}" for change in self.changes]
        lines += [f"  - {skip.place}: {skip.why}" for skip in self.skips]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return asdict(self)
