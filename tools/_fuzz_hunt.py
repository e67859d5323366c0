"""A hunt through numbered random cases: those without a record run in workers, and are recorded, told and tabled."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tools._pool import Limits, Many, Worker, answering
from tools._records import Record, append, put_between, read


@dataclass(frozen=True)
class Hunt:
    """What is hunted through, and how.

    Attributes:
        module: The program, whose workers are started as ``python -m module``.
        kind: What a case is called, in its record and on the command line.
        marker: The name of the markers on the page.
        out: The file of records.
        together: After how many cases records are written; after four times as many a worker is replaced, as the
            exporter keeps what it has seen.
        seconds: How long one case may take with all that is tried to make it smaller.
        run: Makes and checks the case of a number.
        lost: Makes the record of a case in which the worker broke, of its number and why.
        page: Makes the tables.
        told: What is printed of a case that failed.
        show: Prints the case of a number and what comes of it.
    """

    module: str
    kind: str
    marker: str
    out: Path
    together: int
    seconds: float
    run: Callable[[int], Record]
    lost: Callable[[int, str], Record]
    page: Callable[[dict[str, Any]], str]
    told: Callable[[Record], str]
    show: Callable[[int], int]

    def main(self, about: str | None, words: list[str] | None) -> int:
        """Run what has no record; return 1 where anything failed."""
        options = self._options(about, words)
        if options.show is not None:
            return self.show(options.show)
        if options.shard:
            with answering() as answer:
                self.shard(options.shard, answer)
            return 0
        done = {record[self.kind] for record in self.records(options.out)}
        wanted = [n for n in range(options.first, options.first + getattr(options, f"{self.kind}s")) if n not in done]
        many = Many(("-m", self.module, "--shard"), 4 * self.together, self.together, self._lost)
        for records in many.run(wanted, options.workers, Limits(each=self.seconds, memory=options.memory)):
            append(options.out, "networks", *records, key=(self.kind,), indent=None)
            self._say(records, options.out)
        if options.markdown:
            put_between(options.markdown, self.marker, self.page(read(options.out, "networks")))
        return int(any(record["outcome"] != "right" for record in self.records(options.out)))

    def _options(self, about: str | None, words: list[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument(f"--{self.kind}s", type=int, default=1000)
        parser.add_argument("--first", type=int, default=0, help="the number to begin with")
        parser.add_argument("--workers", type=int, default=1)
        parser.add_argument("--memory", type=float, default=8.0, help="GiB of resident memory of a worker")
        parser.add_argument("--out", type=Path, default=self.out)
        parser.add_argument("--markdown", type=Path, help="page for the tables")
        parser.add_argument("--show", type=int, metavar="N", help=f"print one {self.kind} and what comes of it")
        parser.add_argument("--shard", type=int, nargs="+", metavar="N", help=argparse.SUPPRESS)
        return parser.parse_args(words)

    def records(self, out: Path) -> list[Record]:
        """Return all records."""
        found: list[Record] = read(out, "networks")["networks"]
        return found

    def shard(self, numbers: list[int], answer: Callable[[Record], None] = lambda record: None) -> list[Record]:
        """Run several cases in this process; answer with each."""
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        records = []
        for number in numbers:
            records.append(self.run(number))
            answer(records[-1])
        return records

    def _lost(self, number: int, worker: Worker) -> Record:
        return self.lost(number, worker.why or "its worker ended without a word")

    def _say(self, records: list[Record], out: Path) -> None:
        for record in records:
            if record["outcome"] != "right":
                print(f"{self.kind} {record[self.kind]}: {record['outcome']}: {record['detail']}", flush=True)
                print(self.told(record), flush=True)
        print(f"{len(self.records(out))} {self.kind}s, load {os.getloadavg()[0]:.1f}", flush=True)
