"""The database of a search."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from search import works

from fxprune.errors import InputError
from fxprune.search import Store, Trial, TrialResult, run_trials
from fxprune.search.store import DATABASE

ROOT = Path(__file__).resolve().parents[2]


def test_states_and_attempts(tmp_path: Path) -> None:
    first, second, third = works.trials(1)
    with Store.open(tmp_path, {}) as store:
        store.add([first, second, third])
        store.add([second])
        store.begin_attempt(first.key, "a:1")
        store.end_attempt(first.key, "lost", "killed")
        store.begin_attempt(first.key, "a:2")
        store.record(TrialResult(first.key, "done", 0.5, figures={"x": 1}))
        store.begin_attempt(second.key, "a:3")
        assert list(store.all_trials().values()) == [first, second, third]
        assert list(store.states().values()) == ["done", "running", "waiting"]
        assert store.attempts(first.key) == [("a:1", "lost", "killed"), ("a:2", "done", "")]
    with Store.open(tmp_path, {}) as store:
        store.end_lost_attempts("the search ended")
        assert list(store.states().values()) == ["done", "waiting", "waiting"]
        assert store.result(first.key) == TrialResult(first.key, "done", 0.5, figures={"x": 1})
        assert store.result(second.key) is None


def test_the_search_of_other_settings_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path, {"model": "resnet", "recipe": {"epochs": 3}}).close()
    Store.open(tmp_path, {"recipe": {"epochs": 3}, "model": "resnet"}).close()
    with pytest.raises(InputError, match=r"holds another search: recipe: epochs was 3 and is 4\. Give"):
        Store.open(tmp_path, {"model": "resnet", "recipe": {"epochs": 4}})


def test_another_version_is_refused_and_left(tmp_path: Path) -> None:
    Store.open(tmp_path, {}).close()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.execute("PRAGMA user_version = 7")
    before = (tmp_path / DATABASE).read_bytes()
    with pytest.raises(InputError, match="has version 7 of the schema, and this fxprune reads 1"):
        Store.open(tmp_path, {})
    assert (tmp_path / DATABASE).read_bytes() == before


@pytest.mark.parametrize("kind", ["database", "text", "cut"])
def test_another_file_is_refused_and_left(kind: str, tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    if kind == "text":
        path.write_text("these are no trials, and they are long enough to have a header " * 20)
    elif kind == "database":
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE mine (x)")
    else:
        Store.open(tmp_path, {}).close()
        path.write_bytes(path.read_bytes()[:5000])
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"of another program|damaged or no database") as caught:
        Store.open(tmp_path, {})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        Store.open(tmp_path / "file" / "search", {})


WRITER = """
import sys
from fxprune.search import Store, Trial
folder, seed = sys.argv[1], int(sys.argv[2])
with Store.open(folder, {}) as store:
    for number in range(20):
        trial = Trial(seed=seed, epochs=number)
        store.add([trial])
        store.begin_attempt(trial.key, f"{seed}")
        store.end_attempt(trial.key, "lost", "for the test")
"""


def test_several_processes_write(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    started = [subprocess.Popen([*command, str(seed)], cwd=ROOT) for seed in range(3)]
    assert [each.wait(timeout=300) for each in started] == [0, 0, 0]
    with Store.open(tmp_path, {}) as store:
        trials = store.all_trials()
        assert len(trials) == 60
        assert all(len(store.attempts(key)) == 1 for key in trials)


def test_a_database_that_cannot_grow_says_so(tmp_path: Path) -> None:
    """SQLite's own limit raises the very error of a full disk."""
    trials = works.trials(3)
    with Store.open(tmp_path, {}) as store:
        store.add(trials)
        store.record(TrialResult(trials[0].key, "done", 0.5))
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        _check_full(store, tmp_path, trials)


def test_a_full_disk_leaves_the_database_readable(small_disk: Path) -> None:
    trials = works.trials(3)
    with Store.open(small_disk, {}) as store:
        store.add(trials)
        store.record(TrialResult(trials[0].key, "done", 0.5))
        _fill(small_disk)
        _check_full(store, small_disk, trials)
    _fill(small_disk)
    with Store.open(small_disk, {}) as store:
        assert list(store.results()) == [trials[0].key]


def test_a_search_goes_on_when_there_is_space_again(small_disk: Path) -> None:
    trials = works.trials(3)
    with Store.open(small_disk, {}) as store:
        run_trials(trials[:2], works.count, store)
        _fill(small_disk)
        with pytest.raises(InputError, match=r"(?i)no space left|disk is full") as caught:
            run_trials(trials, works.count, store)
        assert "\n" not in str(caught.value)
    (small_disk / "filler").unlink()
    with Store.open(small_disk, {}) as store:
        results = run_trials(trials, works.count, store)
    assert [result.status for result in results.values()] == ["done"] * len(trials)
    assert all(len(works.marks(path.parent, "done")) == 1 for path in small_disk.glob("trials/*/done"))


def _fill(place: Path) -> None:
    with (place / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):  # that is what is wanted
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(place).f_bavail == 0


def _check_full(store: Store, place: Path, trials: list[Trial]) -> None:
    long = TrialResult(trials[1].key, "done", 0.5, figures={"text": "x" * 100_000})
    with pytest.raises(InputError, match=r"database or disk is full\. What it held is unchanged") as caught:
        store.record(long)
    assert "\n" not in str(caught.value)
    assert list(store.results()) == [trials[0].key]
    with Store.open(place, {}) as other:
        assert list(other.results()) == [trials[0].key]
        assert list(other.states().values()) == ["done"] + ["waiting"] * (len(trials) - 1)


def test_the_schema_is_the_documented_one(tmp_path: Path) -> None:
    Store.open(tmp_path, {}).close()
    page = (ROOT / "docs" / "three_dimensions.md").read_text()
    section = page.partition("## The database\n")[2].partition("\n## ")[0]
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        for (table,) in names:
            found = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            part = section.partition(f"### `{table}`\n")[2].partition("### ")[0]
            assert re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) == found, table
