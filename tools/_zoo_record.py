"""Records: what a worker says while it runs, and the one file that keeps all of them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools._records import Record, changed, read


def read_records(path: Path) -> dict[str, Record]:
    """Read the records of a zoo file by ``tool/model``; none where there is no file."""
    records: dict[str, Record] = read(path).get("records", {})
    return records


def add_record(path: Path, record: Record) -> None:
    """Add one record to the file, in place of an older one of the same tool and model."""
    with changed(path) as content:
        content["schema"] = 1
        records = {**content.get("records", {}), f"{record['tool']}/{record['model']}": dict(sorted(record.items()))}
        content["records"] = dict(sorted(records.items()))


class Recorder:
    """Collects one record; every change is told at once, so that a killed worker leaves what it had."""

    def __init__(self, answer: Callable[[Record], None], **values: Any) -> None:
        self.answer = answer
        self.values: Record = {**values, "seconds": {}, "stage": "start", "phase": "build", "phase_since": time.time()}
        self._tell()

    def _tell(self) -> None:
        self.values["peak_rss_mib"] = _peak()
        self.answer(self.values)

    def set(self, **values: Any) -> None:
        """Set entries of the record."""
        self.values.update(values)
        self._tell()

    def phase(self, name: str) -> None:
        """Enter a phase (build, work, check...): the parent bounds the time of each by itself."""
        self.set(phase=name, phase_since=time.time(), **{f"rss_before_{name}_mib": _peak()})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage in wall seconds; the record says which stage it died in."""
        self.set(stage=name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.values["seconds"][name] = round(time.perf_counter() - start, 4)
            self._tell()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
