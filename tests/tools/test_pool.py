"""Real processes: what they answer, which bounds they pass, and what one that is killed leaves."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("psutil")

import psutil

from tools._pool import Job, Limits, Many, Worker, record_of, run_all, run_one

ROOT = Path(__file__).resolve().parents[2]
HEAD = "import os, subprocess, sys, time\nfrom tools._pool import answering\n"
NONE = Limits()


def worker_that(*lines: str) -> tuple[str, ...]:
    """Return the command line of a worker that does this while it answers."""
    return ("-c", HEAD + "with answering() as answer:\n" + "\n".join(f"    {line}" for line in lines))


def wait_for_the_end_of(number: int) -> None:
    """Wait until a process has ended; the time that a test may take bounds it."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it may go while it is looked at
        while psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)


def test_only_answers_are_answers() -> None:
    words = worker_that("print('loud')", "answer({'n': 1})", "os.write(1, b'{}\\n')", "answer([2, None])")
    worker = run_one(words, NONE)
    assert worker.answers == [{"n": 1}, [2, None]]
    assert (worker.began, worker.ended, worker.why) == (True, True, "")
    assert worker.take() == worker.answers
    assert worker.take() == []


def test_what_is_printed_before_and_behind_the_answers_is_none_of_them() -> None:
    """An answer too many would be taken for that of the next item."""
    kind, code = worker_that("for word in sys.argv[1:]: answer({'n': int(word)})")
    many = Many((kind, f"print('loud', flush=True)\n{code}\nprint(7)"), 10, 1, lambda n, worker: {"lost": n})
    assert [record for some in many.run(range(3), 1, NONE) for record in some] == [{"n": n} for n in range(3)]


def test_answers_come_before_the_end(tmp_path: Path) -> None:
    """The worker ends when it is told so, and it is told so when its answer has come."""
    flag = tmp_path / "heard"
    words = worker_that("answer(1)", f"while not os.path.exists({str(flag)!r}): time.sleep(0.01)", "answer(2)")
    said = []
    for worker in run_all([Job(words)], 1, NONE):
        said += worker.take()
        if said:
            flag.touch()
    assert said == [1, 2]


def test_workers_run_side_by_side(tmp_path: Path) -> None:
    """Two wait for each other, and a third one would wait for ever if it began before."""
    words = worker_that(
        "mine, other = (os.path.join(sys.argv[1], name) for name in sys.argv[2:])",
        "open(mine, 'w').close()",
        "while not os.path.exists(other): time.sleep(0.01)",
        "answer(sorted(os.listdir(sys.argv[1])))",
    )
    jobs = [Job((*words, str(tmp_path), *names)) for names in (("a", "b"), ("b", "a"), ("c", "a"))]
    ended = [worker for worker in run_all(jobs, 2, NONE) if worker.ended]
    assert [worker.answers[0][:2] for worker in ended] == [["a", "b"]] * 3
    assert ended[-1].answers == [["a", "b", "c"]]


def test_variables_reach_the_worker() -> None:
    assert run_one(worker_that("answer(os.environ['SOME'])"), NONE, {"SOME": "thing"}).answers == ["thing"]


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    ("lines", "limits", "why"),
    [
        (("time.sleep(600)",), Limits(seconds=0.5), "no answer in 0.5 s"),
        (("time.sleep(600)",), Limits(each=0.5), "no answer in 0.5 s"),
        (("x = b'x' * 2**29", "time.sleep(600)"), Limits(memory=0.2), "more than 0.2 GiB"),
        (("print(1 / 0)",), NONE, "process ended with code 1: Traceback"),
        (("os.kill(os.getpid(), 9)",), NONE, "process ended with code -9"),
        (("sys.exit('no more')",), NONE, "process ended with code 1: no more"),
    ],
)
def test_a_worker_that_does_not_end_well_says_why(lines: tuple[str, ...], limits: Limits, why: str) -> None:
    worker = run_one(worker_that(*lines), limits)
    assert worker.why.startswith(why)
    assert worker.process.returncode
    over = not why.startswith("process")
    assert (bool(worker.over), bool(worker.broken)) == (over, not over)
    record = record_of(worker_that(*lines), limits, model="net")
    assert record["model"] == "net"
    assert record["outcome"] == (why if over else "crashed")
    assert why in record.get("detail", why)


def test_each_answer_has_its_own_time(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        worker = Worker(Job(()), process, tmp_path)
        assert Limits(seconds=1e6, each=1e5)(worker) == ""
        worker.started -= 2e5
        assert Limits(seconds=1e6, each=1e5)(worker) == ""
        worker.heard -= 2e5
        assert Limits(seconds=1e6, each=1e5)(worker) == "no answer in 100000 s"
        worker.heard += 2e5
        assert Limits(seconds=1e5)(worker) == "no answer in 100000 s"


def test_the_last_answer_of_a_worker_is_its_record() -> None:
    assert record_of(worker_that("answer({'a': 1})", "answer({'a': 2})"), NONE, model="net") == {"a": 2}
    silent = record_of(worker_that("pass"), NONE, model="net")
    assert silent == {"model": "net", "outcome": "crashed", "detail": "it said nothing"}


@pytest.mark.parametrize("last", ["time.sleep(600)", "pass"])
def test_what_a_worker_started_ends_with_it(last: str) -> None:
    start = "answer(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    over = "enough" if "sleep" in last else ""
    (worker,) = (
        worker
        for worker in run_all([Job(worker_that(start, last))], 1, lambda worker: over if worker.answers else "")
        if worker.ended
    )
    assert worker.over == over
    wait_for_the_end_of(worker.answers[0])


def test_workers_end_with_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is killed, which leaves its folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    words = worker_that("answer(os.getpid())", "time.sleep(600)")
    pool = (
        "from tools._pool import Job, Limits, run_all\n"
        f"for worker in run_all([Job({words!r})], 1, Limits()):\n"
        "    if worker.answers: print(worker.answers[0], flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", pool], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        assert psutil.pid_exists(number)
        process.send_signal(signal.SIGKILL)
    wait_for_the_end_of(number)


def test_whoever_stops_listening_ends_the_workers() -> None:
    words = worker_that("answer(os.getpid())", "time.sleep(600)")
    workers = run_all([Job(words)], 1, NONE)
    worker = next(one for one in workers if one.answers)
    workers.close()  # type: ignore[attr-defined]
    assert worker.process.returncode == -signal.SIGKILL


# ---------------------------------------------------------------- many


SQUARES = (
    "for word in sys.argv[1:]:",
    "    if word == '3': os.kill(os.getpid(), 9)",
    "    answer({'n': int(word), 'square': int(word) ** 2, 'by': os.getpid()})",
)


def squares(items_each: int, together: int) -> Many:
    return Many(worker_that(*SQUARES), items_each, together, lambda n, worker: {"n": n, "why": worker.why})


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("items_each", [1, 2, 10])
def test_a_worker_that_is_killed_costs_one_item(workers: int, items_each: int) -> None:
    records = [record for some in squares(items_each, 1).run(range(7), workers, NONE) for record in some]
    assert sorted(record["n"] for record in records) == list(range(7))
    assert [record["why"] for record in records if "why" in record] == ["process ended with code -9: "]
    assert {record["n"]: record["square"] for record in records if "square" in record} == {
        n: n * n for n in range(7) if n != 3
    }
    at = {record["n"]: record["by"] for record in records if "by" in record}
    assert at[2] != at[4]  # a fresh one goes on


def test_answers_are_given_together() -> None:
    given = list(squares(100, 100).run(range(4, 10), 1, NONE))
    assert [[record["n"] for record in some] for some in given] == [[4, 5, 6, 7, 8, 9]]
    assert len({record["by"] for record in given[0]}) == 1
    assert len(list(squares(2, 100).run(range(4, 10), 1, NONE))) == 3
    assert list(squares(2, 1).run([], 2, NONE)) == []


def test_a_worker_that_does_not_begin_is_no_answer_of_its_item() -> None:
    many = Many(("-c", "import this_is_not_there"), 10, 1, lambda n, worker: {"n": n})
    with pytest.raises(RuntimeError, match=r"a worker did not begin: process ended with code 1: .*this_is_not_there"):
        list(many.run(range(3), 1, NONE))
