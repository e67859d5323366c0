"""How the experiments on papers name a trial in its record, so that it is found again, and not taken for another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Numbers:
    """Settings: every number that the outcome of a trial depends on, besides what the trial itself is called."""

    @property
    def told(self) -> dict[str, Any]:
        """What the digest is made of."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """A short name; records of other settings are not taken for these."""
        return hashlib.sha256(json.dumps(self.told, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Keyed:
    """A trial of an experiment, whose fields are what it is called."""

    experiment: ClassVar[str]

    @property
    def settings(self) -> Numbers:
        """What it depends on besides."""
        raise NotImplementedError

    @property
    def key(self) -> dict[str, Any]:
        """What a record of this trial says of it."""
        return {"experiment": self.experiment, **asdict(self), "settings": self.settings.digest}


@dataclass(frozen=True)
class OfNetwork(Keyed):
    """A trial of one network on one task."""

    scale: str
    task: str
    net: str
    ratio: float
    seed: int
    method: str
