"""Records: what a worker writes while it runs, and the one file that keeps all of them."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader, or a crash, never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_records(path: Path) -> dict[str, Record]:
    """Read the records of a zoo file by ``tool/model``; none where there is no file."""
    if not path.exists():
        return {}
    records: dict[str, Record] = json.loads(path.read_text(encoding="utf-8"))["records"]
    return records


def add_record(path: Path, record: Record) -> None:
    """Add one record to the file, in place of an older one of the same tool and model."""
    records = read_records(path)
    records[f"{record['tool']}/{record['model']}"] = record
    write_json(path, {"schema": 1, "records": records})


class Recorder:
    """Collects one record; every change is on disk at once, so that a killed worker leaves what it had."""

    def __init__(self, path: Path, **values: Any) -> None:
        self.path = path
        self.values: Record = {**values, "seconds": {}, "stage": "start", "phase": "build", "phase_since": time.time()}
        self._write()

    def _write(self) -> None:
        self.values["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        write_json(self.path, self.values)

    def set(self, **values: Any) -> None:
        """Set entries of the record."""
        self.values.update(values)
        self._write()

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
            self._write()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
