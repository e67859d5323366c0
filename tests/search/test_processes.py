"""Trials on processes that are really killed, hang and run out of time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from search import works

from fxprune.errors import InputError
from fxprune.search import Event, InProcess, Processes, Store, Trial, TrialResult, run_trials
from fxprune.search.executors import processes

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300  # until what never happens is given up


def run(
    folder: Path,
    trials: list[Trial],
    executor: Any,
    work: Any = works.fall,
    tell: Callable[[Event], None] | None = None,
) -> list[TrialResult]:
    with Store.open(folder, {}) as store:
        return list(run_trials(trials, work, store, executor, tell).values())


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.01)


class Late:
    """A clock in place of ``time`` that jumps ahead once something has happened: what runs then has had its time."""

    JUMP = 150.0  # seconds; workers that begin have more than that

    def __init__(self, happened: Callable[[], Any]) -> None:
        self._happened, self._ahead = happened, 0.0

    def monotonic(self) -> float:
        if not self._ahead and self._happened():
            self._ahead = self.JUMP
        return time.monotonic() + self._ahead


@pytest.fixture
def jumps_when(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Have the time-outs of processes fall when something has happened."""

    def jumps_when(happened: Callable[[], Any]) -> None:
        monkeypatch.setattr(processes, "time", Late(happened))
        monkeypatch.setattr(processes._Pool, "_next_limit", lambda pool: 0.05)

    return jumps_when


def test_results_do_not_depend_on_who_runs_them(tmp_path: Path) -> None:
    trials = works.trials(4)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "meet").touch()  # a second worker may take its time to begin
    found = [
        run(tmp_path / str(number), trials, executor)
        for number, executor in enumerate([InProcess(), Processes(1), Processes(3)])
    ]
    plain = [[{**result.outcome, "figures": {}} for result in results] for results in found]
    assert plain[0] == plain[1] == plain[2]
    assert len({result.worker for result in found[1]}) == 1
    assert len({result.worker for result in found[2]}) > 1
    assert not any(is_alive(int(result.worker.split(":")[1])) for results in found[1:] for result in results)


def test_workers_have_their_own_threads(tmp_path: Path) -> None:
    before = dict(os.environ)
    (result,) = run(tmp_path, [Trial()], Processes(1, threads=3))
    assert result.figures["threads"] == "3"
    assert dict(os.environ) == before


def test_a_killed_worker_is_replaced_and_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    trial, other = Trial(options={"steps": 8, "held": 5}), Trial(seed=1, options={"held": 1})
    events: list[Event] = []
    with Store.open(tmp_path, {}) as store:
        folder = store.folder_of(trial)

        def kill() -> None:
            wait_until(lambda: len(works.steps(folder)) >= 3 and works.marks(store.folder_of(other), "begun"))
            os.kill(int(works.marks(folder, "begun")[0]), signal.SIGKILL)
            (tmp_path / "go").touch()

        threading.Thread(target=kill).start()
        results = run_trials([trial, other], works.count, store, Processes(2), events.append)
        attempts = store.attempts(trial.key)
    first, second = map(int, works.marks(folder, "begun"))
    kept = sum(process == first for _, process, _ in works.steps(folder))
    assert 3 <= kept <= 5
    assert [step[:2] for step in works.steps(folder)] == [(at, first if at < kept else second) for at in range(8)]
    assert len(works.marks(folder, "done")) == 1
    result = results[trial.key]
    assert (result.status, result.attempts, results[other.key].attempts) == ("done", 2, 1)
    assert [event.kind for event in events if event.key == trial.key] == ["started", "lost", "started", "finished"]
    assert [outcome for _, outcome, _ in attempts] == ["lost", "done"]
    assert "killed by SIGKILL" in attempts[0][2]
    (alone,) = run(tmp_path / "alone", [Trial(options={"steps": 8})], InProcess(), works.count)
    assert alone.accuracy == result.accuracy


@pytest.mark.parametrize(
    ("way", "reason"),
    [("kill", "was killed by SIGKILL, perhaps for want of memory"), ("exit", "ended with exit code 3")],
)
def test_a_worker_that_is_always_lost_fails_its_trial(way: str, reason: str, tmp_path: Path) -> None:
    trials = [Trial(options={"way": way}), Trial()]
    bad, good = run(tmp_path, trials, Processes(1, retries=1))
    assert (bad.status, bad.attempts, good.status) == ("failed", 2, "done")
    assert bad.error == f"its worker {reason}; begun 2 times"


def test_a_worker_that_is_slow_to_end_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    process.start()
    monkeypatch.setattr(processes, "_GONE_LIMIT", 0.1)
    assert processes._how_it_ended(process) == "its worker closed its pipe and did not end within 0.1 s"
    monkeypatch.setattr(processes, "_GONE_LIMIT", float(SECONDS))
    threading.Timer(0.3, process.terminate).start()
    assert processes._how_it_ended(process) == "its worker was killed by SIGTERM"


def test_a_trial_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, jumps_when: Callable[[Callable[[], Any]], None]
) -> None:
    trials = [Trial(options={"way": "wait"}), *works.trials(1)]
    jumps_when(
        lambda: (
            any(path.read_text() for path in tmp_path.glob("trials/*/child"))
            and len(list(tmp_path.glob("trials/*/result.json"))) == 3
        )
    )
    bad, *good = run(tmp_path, trials, Processes(2, timeout=100, retries=0))
    assert (bad.status, bad.error) == ("failed", "it took more than 100 s and was killed; begun 1 time")
    assert [result.status for result in good] == ["done"] * 3
    (child,) = tmp_path.glob("trials/*/child")
    wait_until(lambda: not is_alive(int(child.read_text())))


def test_a_trial_that_always_hangs_is_given_up(tmp_path: Path) -> None:
    events: list[Event] = []
    (result,) = run(
        tmp_path, [Trial(options={"way": "hang"})], Processes(1, timeout=0.3, retries=1), tell=events.append
    )
    assert (result.status, result.error) == ("failed", "it took more than 0.3 s and was killed; begun 2 times")
    assert [event.kind for event in events] == ["started", "timed out"] * 2


def test_a_trial_that_hangs_once_is_done_at_the_second_attempt(
    tmp_path: Path, jumps_when: Callable[[Callable[[], Any]], None]
) -> None:
    trial, events = Trial(options={"way": "hang once"}), []
    jumps_when(lambda: any(path.read_text() for path in tmp_path.glob("trials/*/begun")))
    (result,) = run(tmp_path, [trial], Processes(1, timeout=100, retries=1), tell=events.append)
    assert (result.status, result.attempts) == ("done", 2)
    assert [event.kind for event in events] == ["started", "timed out", "started", "finished"]


def test_raising_and_no_numbers_are_not_tried_again(tmp_path: Path) -> None:
    trials = [Trial(options={"way": way}) for way in ("raise", "nan", "text")]
    results = run(tmp_path, [*trials, Trial()], Processes(2, retries=5))
    assert [result.status for result in results] == ["failed"] * 3 + ["done"]
    assert [result.attempts for result in results] == [1] * 4
    assert "the data are gone" in results[0].error


def test_what_a_worker_prints_is_in_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, [Trial(options={"way": "print"})], Processes(1))
    (log,) = tmp_path.glob("trials/*/log.txt")
    assert log.read_text() == "from a library\nfrom python\n"
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_stops_the_search(tmp_path: Path) -> None:
    trials = [Trial(options={"way": "full"}), Trial(options={"way": "hang"})]
    with pytest.raises(InputError, match=r"No space left on device.*Free space"):
        run(tmp_path, trials, Processes(2))
    with Store.open(tmp_path, {}) as store:
        assert not store.results()


@pytest.mark.parametrize("work", [lambda trial, folder: {"accuracy": 1.0}, threading.Lock().acquire])
def test_work_that_cannot_be_pickled(work: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be sent to another process \(.*give a function at the top"):
        run(tmp_path, [Trial()], Processes(1), work)


def test_work_that_workers_cannot_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_here")
    exec("def work(trial, folder): return {'accuracy': 1.0}", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(InputError, match=r"a worker process cannot load the work .*only_here"):
        run(tmp_path, [Trial()], Processes(1), module.work)


@pytest.mark.parametrize("work", ["search.works:count", works.Local(0.5)])
def test_work_by_name_and_as_an_object(work: Any, tmp_path: Path) -> None:
    (result,) = run(tmp_path, [Trial(width=0.5)], Processes(1), work)
    assert result.status == "done"
    assert result.accuracy == (0.25 if isinstance(work, works.Local) else result.accuracy)


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from fxprune.search import *\nfrom search import works\n"
        f"store = Store.open({str(tmp_path / 'search')!r}, {{}})\n"
        "run_trials(works.trials(1), works.count, store, Processes(1))\n"
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1
    assert "InputError: a worker process ended before it could begin" in done.stderr
    assert "if __name__ == '__main__'" in done.stderr


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"threads": 0}, {"timeout": 0}, {"timeout": -1.0}, {"retries": -1}]
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} is"):
        Processes(**options)
