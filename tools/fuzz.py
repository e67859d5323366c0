"""Hunt for wrong numbers: random networks, pruned in random ways, each held to references that share no code.

    python tools/fuzz.py --networks 10000 --out results/fuzz.json
    python tools/fuzz.py --networks 200 --first 50000                   # others
    python tools/fuzz.py --show 1234                                    # one of them, as code
    python tools/fuzz.py --out results/fuzz.json --markdown docs/fuzz.md --networks 0

Networks are numbered, and a number always makes the same one; those with a record are not made again. What fails is
made smaller, by leaving decisions out, and printed as code. The grammar is in ``tools/_fuzz_*.py``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from fxprune.deploy.files import atomic_write
from tools import _fuzz_images, _fuzz_layers, _fuzz_tokens  # noqa: F401  (they register the rules)
from tools._fuzz_check import Checked, WrongNumber, check_program
from tools._fuzz_program import OPERATIONS, Program, Seeded, write_program

SECONDS = 120  # for one network
SHARD = 50


class Drawn:
    """Decisions by Hypothesis."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def integer(self, low: int, high: int) -> int:
        """Return a number from low to high."""
        from hypothesis import strategies as st

        return int(self.data.draw(st.integers(low, high)))


class _Replayed:
    """The decisions of a list; behind its end, the simplest."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = iter(numbers)

    def integer(self, low: int, high: int) -> int:
        return low + next(self.numbers, 0) % (high - low + 1)


class _Recorded:
    """Decisions by a seed, kept."""

    def __init__(self, seed: int) -> None:
        self.source, self.numbers = Seeded(seed), list[int]()

    def integer(self, low: int, high: int) -> int:
        number = self.source.integer(low, high)
        self.numbers.append(number - low)
        return number


class TooLong(Exception):
    """A network that took longer than it may."""


def run(number: int) -> dict[str, Any]:
    """Make one network, check it, and say what came of it; what fails is made smaller."""
    choices = _Recorded(number)
    program = write_program(choices)
    start = time.process_time()
    outcome, detail, checked = attempt(program, number)
    record = {
        "network": number, "outcome": outcome, "operations": list(program.operations), **asdict(checked or Checked()),
        "seconds": round(time.process_time() - start, 3),
    }  # fmt: skip
    if outcome != "right":
        record |= {"detail": detail, "source": smaller(choices.numbers, outcome, number).source}
    return record


def attempt(program: Program, seed: int) -> tuple[str, str, Checked | None]:
    """Return "right", "wrong", "crash" or "too long", with what was raised."""
    try:
        with _bounded(SECONDS):
            return "right", "", check_program(program, seed)
    except WrongNumber as error:
        return "wrong", str(error), None
    except TooLong:
        return "too long", f"more than {SECONDS} s", None
    except Exception as error:  # whatever it is, it is no refusal: that is what is looked for
        return "crash", f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}", None


def smaller(numbers: list[int], outcome: str, seed: int, *, tries: int = 250) -> Program:
    """Return the smallest network with the same outcome that is found by leaving out and lowering decisions."""
    best = write_program(_Replayed(numbers))
    left, width = tries, max(len(numbers) // 2, 1)
    while width:
        at, changed = 0, False
        while at < len(numbers) and left > 0:
            for candidate in _variants(numbers, at, width):
                program = write_program(_Replayed(candidate))
                if len(program.source) > len(best.source) or candidate == numbers:
                    continue
                left -= 1
                if attempt(program, seed)[0] == outcome:
                    best, numbers, changed = program, candidate, True
                    break
            else:
                at += width
        width = width if changed and left > 0 else width // 2
    return best


def _variants(numbers: list[int], at: int, width: int) -> Iterator[list[int]]:
    yield numbers[:at] + numbers[at + width :]
    if any(numbers[at : at + width]):
        yield numbers[:at] + [0] * len(numbers[at : at + width]) + numbers[at + width :]


@contextlib.contextmanager
def _bounded(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- many


def shard(numbers: list[int]) -> list[dict[str, Any]]:
    """Run several networks in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return [run(number) for number in numbers]


def read(path: Path) -> dict[str, Any]:
    """Return what was found so far."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"schema": 1, "networks": []}
    return found


def _append(path: Path, records: list[dict[str, Any]]) -> None:
    found = read(path)
    found["networks"] += records
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: _write_text(temporary, json.dumps(found) + "\n"))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def page(found: dict[str, Any]) -> str:
    """Return what came of all networks as Markdown."""
    networks = found["networks"]
    outcomes = collections.Counter(network["outcome"] for network in networks)
    reasons = collections.Counter(_kind(reason) for network in networks for reason in network["refusals"])
    used = collections.Counter(name for network in networks for name in set(network["operations"]))
    lines = [
        "| | found |", "|---|---|", f"| random networks | {len(networks)} |",
        f"| rules of the grammar that they use | {len(used)} of {len(OPERATIONS)} |",
        f"| with something to remove | {sum(network['units'] > 0 for network in networks)} |",
        f"| random removals cut and compared with the masked reference | {sum(n['cuts'] for n in networks)} |",
        f"| of these also compared with zeros in plain Python | {sum(n['zeros'] for n in networks)} |",
        f"| of these also compared with the network's code on the cut weights | {sum(n['code'] for n in networks)} |",
        f"| wrong numbers | {outcomes['wrong']} |", f"| crashes without a reason | {outcomes['crash']} |",
        f"| longer than {SECONDS} s | {outcomes['too long']} |",
        f"| CPU time | {sum(network['seconds'] for network in networks) / 60:.0f} minutes |",
    ]  # fmt: skip
    if reasons:
        lines += ["", "Refused, with these reasons:", ""]
        lines += [f"- {count} x {reason}" for reason, count in reasons.most_common(10)]
    return "\n".join(lines) + "\n"


def _kind(reason: str) -> str:
    return reason.split(" (")[0].split(";")[0][:160]


def _put_between(path: Path, text: str) -> None:
    start, end = "<!-- fuzz:start -->\n", "<!-- fuzz:end -->\n"
    before, _, rest = (path.read_text() if path.is_file() else f"{start}{end}").partition(start)
    atomic_write(path, lambda temporary: _write_text(temporary, before + start + text + end + rest.partition(end)[2]))


def main(words: list[str] | None = None) -> int:
    """Run what has no record; return 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the number to begin with")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/fuzz.json"))
    parser.add_argument("--markdown", type=Path, help="page for the table")
    parser.add_argument("--show", type=int, metavar="N", help="print one network and what comes of it")
    options = parser.parse_args(words)
    if options.show is not None:
        print(write_program(Seeded(options.show)).source)
        print(json.dumps(run(options.show), indent=1))
        return 0
    done = {network["network"] for network in read(options.out)["networks"]}
    wanted = [n for n in range(options.first, options.first + options.networks) if n not in done]
    shards = [wanted[at : at + SHARD] for at in range(0, len(wanted), SHARD)]
    random.Random(0).shuffle(shards)
    # Fresh processes now and then, because the exporter keeps what it has seen. (ProcessPoolExecutor hangs when it
    # replaces a process, in Python 3.11.)
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=4) as pool:
        for records in pool.imap_unordered(shard, shards):
            _append(options.out, records)
            _say(records, options.out)
    if options.markdown:
        _put_between(options.markdown, page(read(options.out)))
    failed = [network for network in read(options.out)["networks"] if network["outcome"] != "right"]
    return 1 if failed else 0


def _say(records: list[dict[str, Any]], out: Path) -> None:
    for record in records:
        if record["outcome"] != "right":
            print(
                f"network {record['network']}: {record['outcome']}: {record['detail']}\n{record['source']}", flush=True
            )
    print(f"{len(read(out)['networks'])} networks, load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
