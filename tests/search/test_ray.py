"""Trials on a real Ray cluster of two workers on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from search import works
from search.test_processes import SECONDS, Late, is_alive, run, wait_until

from fxprune.errors import EnvironmentProblem, InputError
from fxprune.search import Event, InProcess, RayCluster, Store, Trial, TrialResult, run_trials
from fxprune.search.executors import ray_cluster

pytestmark = [pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours
ray: Any = pytest.importorskip("ray", reason="ray is not installed: pip install 'fxprune[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for several tests; executors use one that is there, and leave it."""
    path = {"env_vars": {"PYTHONPATH": ray_cluster._import_path()}}
    options = {"include_dashboard": False, "object_store_memory": 100_000_000, "log_to_driver": False}
    ray.init(address="local", num_cpus=2, runtime_env=path, **options)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_results_are_those_of_one_process(tmp_path: Path) -> None:
    trials = works.trials(3)
    here, there = (
        run(tmp_path / str(number), trials, executor) for number, executor in enumerate([InProcess(), RayCluster()])
    )
    plain = [[{**result.outcome, "figures": {}} for result in results] for results in (here, there)]
    assert plain[0] == plain[1]
    assert not any(result.worker.endswith(f":{os.getpid()}") for result in there)
    assert ray.is_initialized()


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_replaced_and_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    other = Trial(seed=1, options={"steps": 8, "held": 5})
    trial = Trial(options={"steps": 8, "held": 5})
    events: list[Event] = []
    with Store.open(tmp_path, {}) as store:
        folder = store.folder_of(trial)
        seen: list[bool] = []

        def kill() -> None:
            wait_until(lambda: len(works.steps(folder)) >= 3 and works.marks(store.folder_of(other), "begun"))
            seen.append(not works.marks(store.folder_of(other), "done"))  # both are at work
            os.kill(int(works.marks(folder, "begun")[0]), signal.SIGKILL)
            (tmp_path / "go").touch()

        threading.Thread(target=kill).start()
        results = run_trials([trial, other], works.count, store, RayCluster(), events.append)
        attempts = store.attempts(trial.key)
    first, second = map(int, works.marks(folder, "begun"))
    kept = sum(process == first for _, process, _ in works.steps(folder))
    assert seen == [True]
    assert 3 <= kept <= 5
    assert [step[:2] for step in works.steps(folder)] == [(at, first if at < kept else second) for at in range(8)]
    assert len(works.marks(folder, "done")) == 1
    assert (results[trial.key].attempts, results[other.key].attempts) == (2, 1)
    assert [event.kind for event in events if event.key == trial.key] == ["started", "lost", "started", "finished"]
    assert [outcome for _, outcome, _ in attempts] == ["lost", "done"]
    (alone,) = run(tmp_path / "alone", [Trial(options={"steps": 8})], InProcess(), works.count)
    assert alone.accuracy == results[trial.key].accuracy


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_always_lost_fails_its_trial(tmp_path: Path) -> None:
    bad, good = run(tmp_path, [Trial(options={"way": "kill"}), Trial()], RayCluster(retries=1))
    assert (bad.status, bad.attempts, good.status) == ("failed", 2, "done")
    assert bad.error.startswith("its worker was lost (WorkerCrashedError")
    assert bad.error.endswith("begun 2 times")


@pytest.mark.usefixtures("cluster")
def test_a_trial_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [
        Trial(options={"way": "hang"}),
        Trial(options={"way": "raise"}),
        Trial(options={"way": "nan"}),
        Trial(),
    ]
    events: list[Event] = []

    def all_others_ended() -> bool:
        begun = any(path.read_text() for path in tmp_path.glob("trials/*/begun") if not (path.parent / "done").exists())
        known = any(event.key == trials[0].key for event in events)  # its time runs from here on
        return known and begun and len(list(tmp_path.glob("trials/*/result.json"))) == 3

    monkeypatch.setattr(ray_cluster, "time", Late(all_others_ended))
    results = run(tmp_path, trials, RayCluster(timeout=100, retries=0), tell=events.append)
    assert [result.status for result in results] == ["failed"] * 3 + ["done"]
    assert results[0].error == "it took more than 100 s and was killed; begun 1 time"
    assert [event.kind for event in events if event.key == trials[0].key] == ["started", "timed out"]
    (begun,) = (path for path in tmp_path.glob("trials/*/begun") if not (path.parent / "done").exists())
    wait_until(lambda: not is_alive(int(begun.read_text())))


@pytest.mark.usefixtures("cluster")
def test_what_all_trials_suffer_from_stops_the_search(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No space left on device.*Free space"):
        run(tmp_path, [Trial(options={"way": "full"})], RayCluster())
    with pytest.raises(InputError, match="cannot be sent to another process"):
        run(tmp_path / "2", [Trial()], RayCluster(), works.Local(threading.Lock()))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has 64 CPUs and 0 GPUs for a trial; it has 2 CPUs"):
        run(tmp_path / "3", [Trial()], RayCluster(cpus=64))
    with pytest.raises(InputError, match=r"0\.5 GPUs"):
        run(tmp_path / "4", [Trial()], RayCluster(gpus=0.5))


@pytest.mark.usefixtures("cluster")
def test_a_folder_that_workers_do_not_see(tmp_path: Path) -> None:
    workers = RayCluster().start(works.count)
    workers.submit(Trial(), tmp_path / "elsewhere")
    with pytest.raises(InputError, match="has to lie on a disk that all workers share"):
        workers.wait()


@pytest.mark.usefixtures("cluster")
def test_workers_that_never_begin(tmp_path: Path) -> None:
    blocked = [Trial(seed=seed, options={"sleep": 30}) for seed in range(2)]
    others = RayCluster().start(works.count)
    with Store.open(tmp_path, {}) as store:
        store.add(blocked)
        for trial in blocked:
            others.submit(trial, store.folder_of(trial))
        wait_until(lambda: all(works.marks(store.folder_of(trial), "begun") for trial in blocked))
    with pytest.raises(InputError, match=r"no worker of the Ray cluster has begun a trial within 1 s; it is busy"):
        run(tmp_path / "2", [Trial()], RayCluster(begin_within=1))
    others.close(kill=True)


def test_a_cluster_of_its_own_ends_with_the_search(tmp_path: Path) -> None:
    """In a program of its own, since this process has a cluster already."""
    program = Path(__file__).with_name("program.py")
    path = os.pathsep.join(map(str, Path(__file__).resolve().parents[2:0:-1]))
    options = '{"executor": "ray", "count": 1}'
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), options],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 3
    workers = [int(mark) for path in tmp_path.glob("trials/*/begun") for mark in path.read_text().split()]
    assert len(workers) == 3
    wait_until(lambda: not any(map(is_alive, workers)))


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A cluster that somebody else has started."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ["--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", *options]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": ""}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **quiet) as head:
        try:
            wait_until(lambda: _answers(port))
            time.sleep(5)  # it takes connections before all of it is there
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_cluster_by_its_address(tmp_path: Path, address: str) -> None:
    path = os.pathsep.join(map(str, Path(__file__).resolve().parents[2:0:-1]))
    runtime_env = {"env_vars": {"PYTHONPATH": path}}
    program = [sys.executable, str(Path(__file__).with_name("program.py")), str(tmp_path)]
    for there, code in (({"runtime_env": runtime_env}, 0), ({}, 1)):
        options = json.dumps(
            {"executor": "ray", "count": 1, "sleep": code / 100, "with": {"address": address, **there}}
        )
        done = subprocess.run(
            [*program, options], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
    assert re.search("All machines need fxprune|a worker of Ray cannot load the work", done.stderr)
    assert len(list(tmp_path.glob("trials/*/done"))) == 3


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_address_where_nobody_is(silent_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    for address in (f"127.0.0.1:{closed}", f"ray://127.0.0.1:{closed}", f"127.0.0.1:{silent_port}"):
        start = time.monotonic()
        with pytest.raises(InputError, match=f"the Ray cluster at {address} cannot be reached") as caught:
            ray_cluster._check_reachable(address, 8)
        assert time.monotonic() - start < 120  # it has eight seconds for it, and its helper takes its time to start
        assert "\n" not in str(caught.value)
        assert "leave the address out" in str(caught.value)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'fxprune\[ray\]'"):
        RayCluster().start(works.count)


@pytest.mark.parametrize("options", [{"cpus": 0}, {"gpus": -1}, {"workers": 0}, {"timeout": 0}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        RayCluster(**options)


def test_the_result_of_a_trial_that_ended_before_its_worker_was_lost(tmp_path: Path) -> None:
    """Killed after the last step, before anybody heard of it: it is done."""
    (result,) = run(tmp_path, [Trial()], InProcess())
    job = ray_cluster._Task(Trial(), next(tmp_path.glob("trials/*")))
    event = job.lost("killed", "lost", 0)
    assert (event.kind, event.result) == ("finished", result)
    assert isinstance(event.result, TrialResult)
