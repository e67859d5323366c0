"""Trials as plain data."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from pathlib import Path

import pytest
from search import works

from fxprune.errors import InputError
from fxprune.search import InProcess, Store, Trial, TrialResult, parent_folder, parent_weights, run_trials
from fxprune.search.trials import read_result


def test_the_key_is_a_digest_of_the_content() -> None:
    trial = Trial(0.5, 1, 0.75, epochs=3, seed=2, parent="ab", settings="cd", options={"b": [1, 2], "a": 0.1})
    text = (
        '{"depth":0.5,"epochs":3,"options":{"a":0.1,"b":[1,2]},"parent":"ab","resolution":0.75,"seed":2,'
        '"settings":"cd","width":1.0}'
    )
    assert trial.key == hashlib.sha256(text.encode()).hexdigest()  # it is in databases of users
    same = Trial.from_json(json.loads(json.dumps(trial.to_json())))
    assert (same, same.key, hash(same)) == (trial, trial.key, hash(trial))
    assert pickle.loads(pickle.dumps(trial)).key == trial.key


@pytest.mark.parametrize(
    "change",
    [{"depth": 0.4}, {"width": 0.9}, {"resolution": 0.7}, {"epochs": 4}, {"seed": 3}, {"parent": None},
     {"settings": "x"}, {"options": {"a": 0.2}}],
)  # fmt: skip
def test_everything_counts(change: dict[str, object]) -> None:
    values = {"depth": 0.5, "resolution": 0.75, "epochs": 3, "parent": "ab", "settings": "cd", "options": {"a": 0.1}}
    assert Trial(**values).key != Trial(**{**values, **change}).key  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0, -1, math.nan, math.inf])
def test_shares_are_above_zero(share: float) -> None:
    with pytest.raises(InputError, match="the width of a trial is"):
        Trial(width=share)


@pytest.mark.parametrize("value", [object(), math.nan, {1, 2}])
def test_options_are_plain_data(value: object) -> None:
    with pytest.raises(InputError, match="plain data"):
        Trial(options={"value": value})


def test_a_result_comes_back(tmp_path: Path) -> None:
    result = TrialResult("ab", "done", 0.5, 1e6, None, 32, 1.5, "w.safetensors", "host:1", 2, "", {"x": [1]})
    assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    other = TrialResult("ab", "done", 0.5, 1e6, None, 32, 9.9, "w.safetensors", "host:2", 1, "", {"x": [1]})
    assert other.outcome == result.outcome


def test_weights_of_the_parent_are_found(tmp_path: Path) -> None:
    parent = Trial()
    child = Trial(width=0.5, parent=parent.key)
    with Store.open(tmp_path, {}) as store:
        assert parent_weights(parent, store.folder_of(parent)) is None
        with pytest.raises(InputError, match="is missing"):
            parent_folder(child, store.folder_of(child))
        store.add([parent, child])
        with pytest.raises(InputError, match="left no weights"):
            parent_weights(child, store.folder_of(child))
        run_trials([parent], works.count, store, InProcess())
        found = parent_weights(child, store.folder_of(child))
        assert found == store.folder_of(parent) / "weights.json"


def test_the_file_of_another_trial_is_no_result(tmp_path: Path) -> None:
    with Store.open(tmp_path, {}) as store:
        (result,) = run_trials([Trial()], works.count, store).values()
        folder = store.folder_of(Trial())
    assert read_result(folder, result.key) == result
    assert read_result(folder, "another") is None
