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
import time
from pathlib import Path

import pytest
from search import killed
from search.test_processes import wait_until

ROOT = Path(__file__).resolve().parents[2]
KILLS = 3
SECONDS = 900  # until a process that hangs is ended


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


@pytest.mark.timeout(1800)
def test_killed_three_times_it_finds_the_same_and_ends_nothing_twice(tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed.json", tmp_path / "out.json"
    killed.run(tmp_path / "calm", undisturbed)  # in this process: that it is the same in others is seen too
    draw, folder = random.Random(0), tmp_path / "killed"
    folder.mkdir()
    for number in range(1, KILLS + 1):
        (folder / "hold").write_text(str(number))  # so that there is something left to do, however late the kill comes
        with start(folder, out) as process:
            if number == 1:
                wait_until((folder / "held").exists)  # in the middle of a trial
            else:
                time.sleep((number - 1) * draw.uniform(0.1, 2.0))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    (folder / "hold").unlink()
    with start(folder, out) as process:
        assert process.wait(SECONDS) == 0
    assert json.loads(out.read_text()) == json.loads(undisturbed.read_text())
    assert not list(folder.glob("trials/*/again"))
    with contextlib.closing(sqlite3.connect(folder / "search.db")) as database:
        ended = dict(database.execute("SELECT key, COUNT(*) FROM attempts WHERE outcome = 'done' GROUP BY key"))
        results = [key for (key,) in database.execute("SELECT key FROM results WHERE status = 'done'")]
        lost = database.execute("SELECT COUNT(*) FROM attempts WHERE outcome = 'lost'").fetchone()[0]
    assert max(ended.values()) == 1
    assert set(ended) <= set(results)
    assert len(results) == len(list((tmp_path / "calm" / "trials").iterdir()))
    assert lost >= 1
