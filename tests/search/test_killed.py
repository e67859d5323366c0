"""A search that is killed at random moments finds the same, and trains nothing twice to its end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = 5


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, "-m", "search.killed", str(folder), str(out)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.timeout(600)
def test_killed_five_times_it_finds_the_same_and_ends_nothing_twice(tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed.json", tmp_path / "out.json"
    with start(tmp_path / "calm", undisturbed) as process:
        assert process.wait(300) == 0
    draw = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        with start(tmp_path / "killed", out) as process:
            try:
                process.wait(draw.uniform(0.1, 4.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
                process.wait()
    with start(tmp_path / "killed", out) as process:
        assert process.wait(300) == 0
    assert killed >= 3  # on a very fast machine the search may be over before the last
    assert json.loads(out.read_text()) == json.loads(undisturbed.read_text())
    folder = tmp_path / "killed"
    assert not list(folder.glob("trials/*/again"))
    with contextlib.closing(sqlite3.connect(folder / "search.db")) as database:
        ended = dict(database.execute("SELECT key, COUNT(*) FROM attempts WHERE outcome = 'done' GROUP BY key"))
        results = [key for (key,) in database.execute("SELECT key FROM results WHERE status = 'done'")]
        lost = database.execute("SELECT COUNT(*) FROM attempts WHERE outcome = 'lost'").fetchone()[0]
    assert max(ended.values()) == 1
    assert set(ended) <= set(results)
    assert len(results) == len(list((tmp_path / "calm" / "trials").iterdir()))
    assert lost >= 1  # some kill did come in the middle of a trial
