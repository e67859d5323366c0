"""Hunt for wrong numbers: random networks, pruned in random ways, each held to references that share no code.

    python tools/fuzz.py --networks 10000 --out results/fuzz.json
    python tools/fuzz.py --networks 200 --first 50000                   # others
    python tools/fuzz.py --show 1234                                    # one of them, as code
    python tools/fuzz.py --out results/fuzz.json --markdown docs/fuzz.md --networks 0

Networks are numbered, and a number always makes the same one; those with a record are not made again. What fails is
made smaller, by leaving decisions out, and printed as code. One that breaks its worker, or takes more memory than it
may, counts as a crash. The grammar is in ``tools/_fuzz_*.py``.
"""

from __future__ import annotations

import collections
import json
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import _fuzz_images, _fuzz_layers, _fuzz_tokens  # noqa: F401  (they register the rules)
from tools._fuzz_check import Checked, WrongNumber, check_program
from tools._fuzz_hunt import Hunt
from tools._fuzz_numbers import Recorded, Replayed, TooLong, bounded, variants
from tools._fuzz_program import OPERATIONS, Program, Seeded, write_program

SECONDS = 120  # for one network
SHARD = 50
TRIES = 250  # to make what fails smaller


class Drawn:
    """Decisions by Hypothesis."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def integer(self, low: int, high: int) -> int:
        """Return a number from low to high."""
        from hypothesis import strategies as st

        return int(self.data.draw(st.integers(low, high)))


def run(number: int) -> dict[str, Any]:
    """Make one network, check it, and say what came of it; what fails is made smaller."""
    choices = Recorded(number)
    program = write_program(choices)
    start = time.process_time()
    outcome, detail, checked = attempt(program, number)
    record = _record(number, program, outcome, checked or Checked(), time.process_time() - start)
    if outcome != "right":
        record |= {"detail": detail, "source": smaller(choices.numbers, outcome, number).source}
    return record


def lost(number: int, why: str) -> dict[str, Any]:
    """Return the record of a network that broke its worker."""
    program = write_program(Recorded(number))
    return {**_record(number, program, "crash", Checked(), 0.0), "detail": why, "source": program.source}


def _record(number: int, program: Program, outcome: str, checked: Checked, seconds: float) -> dict[str, Any]:
    return {
        "network": number, "outcome": outcome, "operations": list(program.operations), **asdict(checked),
        "seconds": round(seconds, 3),
    }  # fmt: skip


def attempt(program: Program, seed: int) -> tuple[str, str, Checked | None]:
    """Return "right", "wrong", "crash" or "too long", with what was raised."""
    try:
        with bounded(SECONDS):
            return "right", "", check_program(program, seed)
    except WrongNumber as error:
        return "wrong", str(error), None
    except TooLong:
        return "too long", f"more than {SECONDS} s", None
    except Exception as error:  # whatever it is, it is no refusal: that is what is looked for
        return "crash", f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}", None


def smaller(numbers: list[int], outcome: str, seed: int, *, tries: int = TRIES) -> Program:
    """Return the smallest network with the same outcome that is found by leaving out and lowering decisions."""
    best = write_program(Replayed(numbers))
    left, width = tries, max(len(numbers) // 2, 1)
    while width:
        at, changed = 0, False
        while at < len(numbers) and left > 0:
            for candidate in variants(numbers, at, width):
                program = write_program(Replayed(candidate))
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


# ---------------------------------------------------------------- many


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


def show(number: int) -> int:
    """Print the network of a number, and what comes of it."""
    print(write_program(Seeded(number)).source)
    print(json.dumps(run(number), indent=1))
    return 0


HUNT = Hunt(
    "tools.fuzz", "network", "fuzz", Path("results/fuzz.json"), SHARD, SECONDS * (TRIES + 2),
    run=run, lost=lost, page=page, told=lambda record: str(record["source"]), show=show,
)  # fmt: skip
shard = HUNT.shard


def main(words: list[str] | None = None) -> int:
    """Run what has no record; return 1 where anything failed."""
    return HUNT.main(__doc__, words)


if __name__ == "__main__":
    sys.exit(main())
