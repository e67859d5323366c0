"""Hunt for wrong numbers in sequences of passes: random networks through random pipelines.

    python tools/fuzz_pipelines.py --pipelines 1000 --out results/fuzz_pipelines.json
    python tools/fuzz_pipelines.py --pipelines 200 --first 50000        # others
    python tools/fuzz_pipelines.py --show 1234                          # network and pipeline of one, as code
    python tools/fuzz_pipelines.py --markdown docs/fuzz.md --pipelines 0

Four pipelines share a network. Each step is held to a reference that shares nothing with the library's own checks
(``tools/_pipelines_check.py``). Pipelines are numbered, and a number always makes the same one of the same library;
those with a record are not made again. What fails is made smaller, by leaving out steps and decisions, and printed as
code. One that breaks its worker, or takes more memory than it may, counts as a crash.
"""

from __future__ import annotations

import collections
import json
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: the checkout itself is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fxprune.errors import VerifyError
from tools._fuzz_check import WrongNumber
from tools._fuzz_hunt import Hunt
from tools._fuzz_numbers import Recorded, Replayed, TooLong, bounded, variants
from tools._fuzz_program import Choices, Program
from tools._pipelines_check import EACH, Checked, Kind, check_pipeline
from tools._pipelines_networks import write_network
from tools._pipelines_references import BrokenPromise
from tools._pipelines_steps import STEPS

SECONDS = 120  # for one pipeline
SHARD = 20
TRIES = 60  # to make what fails smaller
STEPS_EACH = (2, 6)


@dataclass(frozen=True)
class Numbers:
    """The decisions of one pipeline: those of the network, and those of each step."""

    network: list[int]
    steps: list[list[int]]


class _Drawn:
    """Decisions by a number, kept."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.network = Recorded(number // EACH)
        self.made: list[Recorded] = []

    def steps(self) -> int:
        return random.Random(self.number + 1).randint(*STEPS_EACH)

    def step(self, number: int) -> Choices:
        self.made.append(Recorded((self.number + 1) * 64 + number))
        return self.made[-1]

    def numbers(self) -> Numbers:
        return Numbers(self.network.numbers, [made.numbers for made in self.made])


class _Kept:
    """Decisions of a list."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers

    def steps(self) -> int:
        return len(self.numbers.steps)

    def step(self, number: int) -> Choices:
        return Replayed(self.numbers.steps[number])


def run(number: int) -> dict[str, Any]:
    """Make one pipeline, check it, and say what came of it; what fails is made smaller."""
    draws = _Drawn(number)
    program = write_network(draws.network)
    start = time.process_time()
    outcome, detail, found = attempt(program, number, draws)
    record = _record(number, outcome, found, time.process_time() - start)
    if outcome != "right":
        source, code, said = smaller(draws.numbers(), outcome, detail, number)
        record |= {"detail": detail, "source": source, "steps": code, "smallest": said}
    return record


def lost(number: int, why: str) -> dict[str, Any]:
    """Return the record of a pipeline that broke its worker."""
    source = write_network(Recorded(number // EACH)).source
    told = {"detail": why, "source": source, "steps": [f"# {Kind.of(number)}"], "smallest": why}
    return {**_record(number, "crash", Checked(), 0.0), **told}


def _record(number: int, outcome: str, found: Checked, seconds: float) -> dict[str, Any]:
    return {
        "pipeline": number, "outcome": outcome, "ran": found.ran, "changed": found.changed, "held": dict(found.held),
        "refusals": found.refusals, "seconds": round(seconds, 3),
    }  # fmt: skip


def attempt(program: Program, number: int, draws: Any) -> tuple[str, str, Checked]:
    """Return "right", "wrong", "broken", "refused itself", "crash" or "too long", with what was raised."""
    found = Checked()
    try:
        with bounded(SECONDS):
            check_pipeline(program, number // EACH, draws, Kind.of(number), found)
        return "right", "", found
    except WrongNumber as error:
        return "wrong", str(error), found
    except BrokenPromise as error:
        return "broken", str(error), found
    except VerifyError as error:
        return "refused itself", str(error), found
    except TooLong:
        return "too long", f"more than {SECONDS} s", found
    except Exception as error:  # whatever it is, it is no refusal: that is what is looked for
        return "crash", f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}", found


def smaller(numbers: Numbers, outcome: str, detail: str, number: int) -> tuple[str, list[str], str]:
    """Return the smallest network and pipeline with the same outcome that are found, and what they say."""
    found = _Smaller(numbers, outcome, detail, number)
    found.leave_out_steps()
    _leave_out(numbers.network, lambda given: found.keep(Numbers(given, found.numbers.steps)))
    for position in range(len(found.numbers.steps)):
        found.lower_step(position)
    return found.source, found.code, found.said


class _Smaller:
    """The smallest pipeline so far that fails in the same way."""

    def __init__(self, numbers: Numbers, outcome: str, detail: str, number: int) -> None:
        self.numbers, self.outcome, self.detail, self.number, self.left = numbers, outcome, detail, number, TRIES
        self.source, self.code, self.said = "", ["# not found again"], detail
        if not self.keep(numbers):
            self.source = write_network(Replayed(numbers.network)).source

    def keep(self, candidate: Numbers) -> bool:
        """Take over other decisions if they fail in the same way, by a network that is no longer."""
        program = write_network(Replayed(candidate.network))
        if self.left <= 0 or (self.source and len(program.source) > len(self.source)):
            return False
        self.left -= 1
        outcome, said, found = attempt(program, self.number, _Kept(candidate))
        if outcome != self.outcome or _kind(said) != _kind(self.detail):
            return False
        self.numbers, self.source, self.said = candidate, program.source, said
        self.code = [f"# {Kind.of(self.number)}", *found.code]
        return True

    def leave_out_steps(self) -> None:
        for position in reversed(range(len(self.numbers.steps))):
            steps = self.numbers.steps
            self.keep(Numbers(self.numbers.network, steps[:position] + steps[position + 1 :]))

    def lower_step(self, position: int) -> None:
        steps = self.numbers.steps

        def keep(given: list[int]) -> bool:
            changed = [steps[position][0], *given]
            return self.keep(Numbers(self.numbers.network, [*steps[:position], changed, *steps[position + 1 :]]))

        _leave_out(steps[position][1:], keep)


def _leave_out(numbers: list[int], keep: Callable[[list[int]], bool]) -> None:
    """Leave out and lower runs of decisions, as long as that is kept."""
    width = max(len(numbers) // 2, 1)
    while width and numbers:
        at, changed = 0, False
        while at < len(numbers):
            for candidate in variants(numbers, at, width):
                if candidate != numbers and keep(candidate):
                    numbers, changed = candidate, True
                    break
            else:
                at += width
        width = width if changed else width // 2


def _kind(detail: str) -> str:
    """Return the beginning of what was raised, without numbers: a smaller case has others."""
    return "".join(letter for letter in detail.split("\n")[0][:60] if not letter.isdigit())


# ---------------------------------------------------------------- many


def page(found: dict[str, Any]) -> str:
    """Return what came of all pipelines as Markdown."""
    done = found["networks"]
    outcomes = collections.Counter(record["outcome"] for record in done)
    ran = collections.Counter(name for record in done for name in record["ran"])
    changed = collections.Counter(name for record in done for name in record["changed"])
    held: collections.Counter[str] = collections.Counter()
    for record in done:
        held.update(record["held"])
    pairs = {pair for record in done for pair in zip(record["changed"], record["changed"][1:], strict=False)}
    lines = [
        "| | found |", "|---|---|", f"| random pipelines | {len(done)} |",
        f"| passes that ran | {sum(ran.values())} |", f"| of these changed something | {sum(changed.values())} |",
        f"| different pairs of passes in a row | {len(pairs)} of {(len(STEPS) - 1) ** 2} |",
        f"| wrong numbers | {outcomes['wrong']} |", f"| broken promises | {outcomes['broken']} |",
        f"| wrong numbers that the library refused itself | {outcomes['refused itself']} |",
        f"| crashes without a reason | {outcomes['crash']} |",
        f"| longer than {SECONDS} s | {outcomes['too long']} |",
        f"| refusals | {sum(len(record['refusals']) for record in done)} |",
        f"| CPU time | {sum(record['seconds'] for record in done) / 60:.0f} minutes |",
        "", "| pass | ran | changed something | held to a reference of its own |", "|---|---|---|---|",
    ]  # fmt: skip
    for name in sorted(ran):
        lines.append(f"| {name} | {ran[name]} | {changed[name]} | {held[name] or ''} |")
    lines += ["", f"Outputs that had to stay were compared {held['outputs']} times, "]
    lines[-1] += f"ONNX files {held['ONNX']} times, networks written back {held['its own class']} times."
    return "\n".join(lines) + "\n"


def show(number: int) -> int:
    """Print the network and the pipeline of a number, and what comes of it; not made smaller."""
    warnings.simplefilter("ignore")
    draws = _Drawn(number)
    program = write_network(draws.network)
    print(program.source)
    outcome, detail, found = attempt(program, number, draws)
    print("\n".join([f"# {Kind.of(number)}", *found.code]))
    print(json.dumps({"outcome": outcome, "detail": detail, "held": found.held, "refusals": found.refusals}, indent=1))
    return int(outcome != "right")


def _told(record: dict[str, Any]) -> str:
    return "\n".join([record["source"], "\n".join(record["steps"]), record["smallest"]])


HUNT = Hunt(
    "tools.fuzz_pipelines", "pipeline", "pipelines", Path("results/fuzz_pipelines.json"), SHARD, SECONDS * (TRIES + 2),
    run=run, lost=lost, page=page, told=_told, show=show,
)  # fmt: skip
shard = HUNT.shard


def main(words: list[str] | None = None) -> int:
    """Run what has no record; return 1 where anything failed."""
    return HUNT.main(__doc__, words)


if __name__ == "__main__":
    sys.exit(main())
