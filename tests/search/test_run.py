"""Running trials in this process: what is run, what is not, and what work may do wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from search import works

from fxprune.errors import InputError
from fxprune.search import Event, InProcess, SearchStopped, Store, Trial, TrialResult, run_trials
from fxprune.search.trials import RESULT


def run(folder: Path, trials: list[Trial], work: Any = works.fall, **options: Any) -> dict[str, TrialResult]:
    with Store.open(folder, {"model": "m"}) as store:
        return run_trials(trials, work, store, **options)


def done(folder: Path) -> dict[str, int]:
    return {path.parent.name: len(works.marks(path.parent, "done")) for path in folder.glob("trials/*/done")}


def test_parents_come_first(tmp_path: Path) -> None:
    trials, events = works.trials(3), []
    results = run(tmp_path, trials[::-1], on_update=events.append)
    assert list(results) == [trial.key for trial in trials[::-1]]
    assert all(result.status == "done" for result in results.values())
    order = [event.key for event in events if event.kind == "started"]
    assert all(order.index(trial.parent) < order.index(trial.key) for trial in trials if trial.parent)
    assert results == run(tmp_path, trials)
    assert set(done(tmp_path).values()) == {1}


def test_only_what_is_new_is_run(tmp_path: Path) -> None:
    trials, events = works.trials(3), []
    first = run(tmp_path, trials[:3])
    results = run(tmp_path, trials, on_update=events.append)
    assert {key: results[key] for key in first} == first
    assert [event.key for event in events if event.kind == "started"] == [trial.key for trial in trials[3:]]
    assert [event.key for event in events[:3]] == list(first)
    assert set(done(tmp_path).values()) == {1}


def test_a_parent_that_is_not_given(tmp_path: Path) -> None:
    first, second = works.trials(1)[:2]
    with pytest.raises(InputError, match="neither given nor in"):
        run(tmp_path, [second])
    with Store.open(tmp_path, {"model": "m"}) as store:
        store.add([first])
    with pytest.raises(InputError, match="has no result yet"):
        run(tmp_path, [second])
    run(tmp_path, [first])
    assert run(tmp_path, [second])[second.key].status == "done"


def test_a_result_that_nobody_recorded_is_taken(tmp_path: Path) -> None:
    """As where the search was killed between the end of a trial and hearing of it."""
    trials = works.trials(1)

    class Killed(BaseException):
        pass

    def kill(event: Event) -> None:
        raise Killed

    with Store.open(tmp_path, {"model": "m"}) as store:
        store.record = kill  # type: ignore[assignment, method-assign]
        with pytest.raises(Killed):
            run_trials(trials, works.count, store)
    assert list(done(tmp_path).values()) == [1]
    with Store.open(tmp_path, {"model": "m"}) as store:
        assert not store.results()
    results = run(tmp_path, trials)
    assert results[trials[0].key].attempts == 1
    assert set(done(tmp_path).values()) == {1}


FAULTS = {
    "raise": "RuntimeError: the data are gone",
    "nan": "ValueError: it returned nan as accuracy, which is no finite number",
    "text": "TypeError: it returned 'good' as accuracy, which is no number",
    "truth": "TypeError: it returned True as accuracy, which is no number",
    "nothing": "TypeError: it returned None, and not a dictionary with an accuracy",
    "number": "TypeError: it returned 0.5, and not a dictionary with an accuracy",
    "no accuracy": "TypeError: it returned {'macs': 3}, and not a dictionary with an accuracy",
    "endless": "ValueError: it returned inf as macs, which is no finite number",
    "no file": "it says that its weights are in gone.safetensors, and there is no such file",
    "object": "TypeError: it returned more than plain data (Object of type object is not JSON serializable)",
}


@pytest.mark.parametrize("way", FAULTS)
def test_a_trial_that_goes_wrong_fails_alone(way: str, tmp_path: Path) -> None:
    bad, good = Trial(options={"way": way}), Trial()
    child = Trial(width=0.5, parent=bad.key)
    grandchild = Trial(width=0.4, parent=child.key)
    results = run(tmp_path, [grandchild, child, bad, good])
    assert results[good.key].status == "done"
    assert results[bad.key].status == "failed"
    assert FAULTS[way] in results[bad.key].error
    assert results[bad.key].accuracy is None
    for key in (child.key, grandchild.key):
        assert results[key].status == "failed"
        assert FAULTS[way] in results[key].error
        assert results[key].error.count("that it starts from") == 1
        assert f"{bad.name} ({bad.key[:16]}), failed" in results[key].error
    assert run(tmp_path, [grandchild, child, bad, good]) == results  # failing is a result too
    if way == "raise":
        (log,) = tmp_path.glob("trials/*/log.txt")
        assert "and this is the second line" in log.read_text()


def test_leaving_is_no_result(tmp_path: Path) -> None:
    """What ends the process may come from outside: a signal that was made an exit."""
    with pytest.raises(SystemExit):
        run(tmp_path, [Trial(options={"way": "exit"})])
    with Store.open(tmp_path, {"model": "m"}) as store:
        assert not store.results()


def test_failed_trials_are_run_again_where_asked(tmp_path: Path) -> None:
    bad = Trial(options={"way": "raise"})
    child = Trial(width=0.5, parent=bad.key)
    run(tmp_path, [bad, child])
    results = run(tmp_path, [bad, child], work=works.count, retry_failed=True)
    assert [result.status for result in results.values()] == ["done", "done"]
    assert results[bad.key].attempts == 2
    with Store.open(tmp_path, {"model": "m"}) as store:
        assert [outcome for _, outcome, _ in store.attempts(bad.key)] == ["failed", "done"]


@pytest.mark.parametrize("number", [np.float32(0.5), torch.tensor(0.5), np.array(0.5)])
def test_scalars_of_libraries_are_numbers(number: Any, tmp_path: Path) -> None:
    (result,) = run(tmp_path, [Trial()], work=lambda trial, folder: {"accuracy": number}).values()
    assert (result.status, result.accuracy) == ("done", 0.5)


def test_weights_may_be_a_path(tmp_path: Path) -> None:
    def work(trial: Trial, folder: Path) -> dict[str, Any]:
        (folder / "w").write_text("")
        return {"accuracy": 0.5, "weights": folder / "w"}

    (result,) = run(tmp_path, [Trial()], work=work).values()
    assert result.weights == "w"


def test_the_work_may_stop_the_search(tmp_path: Path) -> None:
    stop, good = Trial(options={"way": "stop"}), Trial()
    with pytest.raises(SearchStopped, match="no data on this machine"):
        run(tmp_path, [good, stop])
    with Store.open(tmp_path, {"model": "m"}) as store:
        assert list(store.results()) == [good.key]


def test_a_full_disk_stops_the_search_and_fails_nothing(tmp_path: Path) -> None:
    full = Trial(options={"way": "full"})
    with pytest.raises(SearchStopped, match=r"No space left on device.*Free space, and start it again") as caught:
        run(tmp_path, [full])
    assert "\n" not in str(caught.value)
    assert run(tmp_path, [full], work=works.count)[full.key].status == "done"


@pytest.mark.parametrize("way", ["full in words", "full unsaid"])
def test_a_full_disk_is_seen_whatever_was_raised(way: str, small_disk: Path) -> None:
    full = Trial(options={"way": way})
    with pytest.raises(SearchStopped, match="Free space, and start it again"):
        run(small_disk, [full])
    with Store.open(small_disk, {"model": "m"}) as store:
        assert store.results() == {}
        for path in store.folder_of(full).glob("*.pt"):
            path.unlink()
    assert run(small_disk, [full], work=works.count)[full.key].status == "done"


@pytest.mark.parametrize("work", ["search.works:gone", "no_such_module:f", "nothing", "search.works:RETURNS"])
def test_work_that_is_not_there(work: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot load|is a dict, and no function"):
        run(tmp_path, [Trial()], work=work)


def test_work_by_name(tmp_path: Path) -> None:
    (result,) = run(tmp_path, [Trial()], work="search.works:count").values()
    assert result.status == "done"


def test_one_search_at_a_time(tmp_path: Path) -> None:
    with Store.open(tmp_path, {}) as store, store.running(), Store.open(tmp_path, {}) as other:
        with pytest.raises(InputError, match="another process runs the search"):
            run_trials([Trial()], works.count, other, InProcess())
        assert not other.all_trials()


def test_an_accuracy_that_changes_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path, {}) as store:
        run_trials([Trial()], works.count, store)
        (path,) = tmp_path.glob(f"trials/*/{RESULT}")
        path.unlink()
        with pytest.raises(InputError, match=r"came out a second time with 0\.9"):
            store.record(TrialResult(Trial().key, "done", 0.9))
        store.record(store.results()[Trial().key])  # the same again changes nothing
