"""Random networks, cut in random ways: equal to the masked reference, and to what shares no code with it.

``tools/fuzz.py`` makes many more; what it found is kept in ``test_found.py``.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from fxprune.channels.rules.table import Flow
from tools import _fuzz_check, fuzz
from tools._fuzz_check import WrongNumber, check_program
from tools._fuzz_numbers import TooLong, bounded
from tools._fuzz_program import OPERATIONS, Program, Seeded, write_program

SHARDS, EACH = 6, 30


@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_networks(shard: int) -> None:
    """Hypothesis makes a failing network small; it is printed as code. Each part draws networks of its own."""
    torch.set_num_threads(1)
    right = set[Program]()

    @seed(shard)  # without it every part would draw the same ones
    @settings(
        max_examples=EACH, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data: Any) -> None:
        program = write_program(fuzz.Drawn(data))
        note(program.source)
        if program not in right:  # of the same decisions and the same seed the same comes
            check_program(program, shard)
            right.add(program)

    check()
    assert len(right) > EACH // 3


def test_the_grammar_has_many_rules_and_a_number_makes_one_network() -> None:
    assert len(OPERATIONS) >= 60
    sources = [write_program(Seeded(number)).source for number in range(300)]
    assert sources == [write_program(Seeded(number)).source for number in range(300)]
    assert len(set(sources)) > 290
    used = {name for number in range(300) for name in write_program(Seeded(number)).operations}
    assert len(used) > 0.9 * len(OPERATIONS)


def test_all_three_references_are_used() -> None:
    found = [check_program(write_program(Seeded(number)), number) for number in range(12)]
    assert all(sum(getattr(checked, name) for checked in found) > 3 for name in ("cuts", "zeros", "code"))
    assert not [reason for checked in found for reason in checked.refusals]


def _broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the library a rule that is wrong, and a check that sees nothing."""
    right = Flow.meet

    def meet(self: Flow, one: Any, other: Any, what: str = "meets") -> Any:
        return right(self, one, None if other is None else other[::-1], what)

    monkeypatch.setattr(Flow, "meet", meet)
    monkeypatch.setattr(_fuzz_check, "verify_cut", lambda *_: None)


def test_the_other_references_notice_what_the_check_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    _broken(monkeypatch)
    failed = []
    for number in range(12):
        program = write_program(Seeded(number))
        if program.reads and program.bakes:
            continue
        try:
            check_program(program, number)
        except WrongNumber as error:
            failed.append(str(error).split(":")[0])
    assert {"zeros", "code"} & set(failed)


def test_what_fails_is_made_smaller_and_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _broken(monkeypatch)
    records = fuzz.shard(list(range(2)))
    wrong = [record for record in records if record["outcome"] == "wrong"]
    assert wrong
    for record in wrong:
        assert len(record["source"]) <= len(write_program(Seeded(record["network"])).source)
        assert "class Network" in record["source"]


def test_what_takes_too_long_ends_also_where_failures_are_caught() -> None:
    with pytest.raises(TooLong), bounded(1), contextlib.suppress(Exception):
        time.sleep(60)


def test_a_run_that_goes_on_and_its_table(tmp_path: Path) -> None:
    out, page = tmp_path / "fuzz.json", tmp_path / "page.md"
    page.write_text("before\n<!-- fuzz:start -->\nold\n<!-- fuzz:end -->\nafter\n")
    assert fuzz.main(["--networks", "3", "--out", str(out)]) == 0
    assert fuzz.main(["--networks", "5", "--out", str(out), "--markdown", str(page)]) == 0
    assert [network["network"] for network in json.loads(out.read_text())["networks"]] == [0, 1, 2, 3, 4]
    text = page.read_text()
    assert "| random networks | 5 |" in text
    assert "| wrong numbers | 0 |" in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- fuzz:end -->\nafter\n")
