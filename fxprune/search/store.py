"""The folder of a search: a SQLite database of trials, attempts and results, and a folder for each trial.

The schema is part of what fxprune promises; ``docs/three_dimensions.md`` describes it. Every change is one transaction,
so that a search may be killed at any moment, and other processes may read and write at the same time. The journal is
the plain one: a write-ahead log needs memory that processes share, which disks of a network do not have, and with one
the database could not even be read where the disk is full.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fxprune.errors import InputError
from fxprune.search.schema import explained, prepare, transaction
from fxprune.search.trials import Trial, TrialResult, folder_of

DATABASE, TRIALS = "search.db", "trials"
_BUSY = 60.0  # seconds to wait for another process
_COLUMNS = ("accuracy", "macs", "params", "resolution", "seconds", "weights", "worker", "attempts", "error")


class Store:
    """One search on the disk; made by :meth:`open`.

    Attributes:
        folder: Where it is.
        trials: Folder with a folder for each trial.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self.trials, self._connection = folder, folder / TRIALS, connection

    @classmethod
    def open(cls, folder: str | Path, settings: Mapping[str, Any]) -> Store:
        """Open the search in a folder, or begin one.

        Args:
            folder: Is made where it does not exist.
            settings: All that the results follow from, as plain JSON: model, data, recipe. A search is only gone on
                with where they are the same.

        Raises:
            InputError: The folder cannot be written, holds another search, or a database that this version cannot read.
        """
        folder = Path(folder).resolve()
        path = folder / DATABASE
        try:
            (folder / TRIALS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror or error}; give another") from error
        with explained(path):
            connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None)
            try:
                prepare(connection, path, settings)
            except BaseException:
                connection.close()
                raise
        return cls(folder, connection)

    def close(self) -> None:
        """Close the database; nothing is lost without it."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- what is written

    def add(self, trials: Iterable[Trial]) -> None:
        """Add those that are not there yet, and make their folders.

        Raises:
            InputError: The disk is full, or the folder cannot be written.
        """
        with self._transaction() as run:
            for trial in trials:
                run(
                    "INSERT OR IGNORE INTO trials SELECT ?, 1 + coalesce(max(number), 0), ?, ?, ?, ?, ?, ?, ?, ?, ? "
                    "FROM trials",
                    (
                        trial.key, trial.depth, trial.width, trial.resolution, trial.epochs, trial.seed, trial.parent,
                        json.dumps(trial.to_json()), self.folder_of(trial).name, time.time(),
                    ),
                )  # fmt: skip
                try:
                    self.folder_of(trial).mkdir(exist_ok=True)
                except OSError as error:
                    raise InputError(
                        f"cannot make {self.folder_of(trial)}: {error.strerror or error}; free space, or give another "
                        "folder"
                    ) from error

    def begin_attempt(self, key: str, worker: str) -> None:
        """Note that a worker has begun a trial.

        Raises:
            InputError: As for :meth:`add`.
        """
        with self._transaction() as run:
            run("INSERT INTO attempts (key, worker, started) VALUES (?, ?, ?)", (key, worker, time.time()))

    def end_attempt(self, key: str, outcome: str, reason: str = "") -> None:
        """Note that the attempt at a trial ended without a result: it was ``lost``, or ``timed out``.

        Raises:
            InputError: As for :meth:`add`.
        """
        with self._transaction() as run:
            run(*_ending(key, outcome, reason))

    def end_lost_attempts(self, reason: str) -> None:
        """Note of all attempts that nobody is at any more that they were lost.

        Raises:
            InputError: As for :meth:`add`.
        """
        with self._transaction() as run:
            run("UPDATE attempts SET ended = ?, outcome = 'lost', reason = ? WHERE outcome IS NULL",
                (time.time(), reason))  # fmt: skip

    def record(self, result: TrialResult) -> None:
        """Record how a trial ended, and with it the attempt that did.

        Raises:
            InputError: As for :meth:`add`; or the trial is done already, with another outcome.
        """
        with self._transaction() as run:
            known = self.result(result.key)
            if known is not None and known.status == "done":
                if known.outcome != result.outcome:
                    raise InputError(
                        f"trial {result.key[:16]} in {self.folder} has the accuracy {known.accuracy}, and came out a "
                        f"second time with {result.accuracy} ({result.status}); something it depends on is not in its "
                        "description. Begin the search in another folder"
                    )
                return
            values = [getattr(result, name) for name in _COLUMNS]
            run(
                f"INSERT OR REPLACE INTO results (key, status, {', '.join(_COLUMNS)}, figures, recorded) "
                f"VALUES ({', '.join('?' * (len(_COLUMNS) + 4))})",
                (result.key, result.status, *values, json.dumps(dict(result.figures)), time.time()),
            )
            run(*_ending(result.key, result.status, result.error))

    def forget(self, key: str) -> None:
        """Take the result of a failed trial away, so that it can be run again; its attempts stay.

        Raises:
            InputError: As for :meth:`add`.
        """
        with self._transaction() as run:
            run("DELETE FROM results WHERE key = ? AND status = 'failed'", (key,))

    # ---------------------------------------------------------------- what is read

    def result(self, key: str) -> TrialResult | None:
        """Return how a trial ended, or None where it has not."""
        return self._results("WHERE key = ?", key).get(key)

    def results(self) -> dict[str, TrialResult]:
        """Return how trials ended, by key, in the order in which they were added."""
        return self._results("JOIN trials USING (key) ORDER BY number")

    def all_trials(self) -> dict[str, Trial]:
        """Return all trials, by key, in the order in which they were added."""
        found = self._read("SELECT key, description FROM trials ORDER BY number")
        return {key: Trial.from_json(json.loads(text)) for key, text in found}

    def states(self) -> dict[str, str]:
        """Return the state of each trial, by key: ``waiting``, ``running``, ``done`` or ``failed``."""
        return dict(self._read("SELECT key, state FROM states ORDER BY number"))

    def attempts(self, key: str) -> list[tuple[str, str | None, str]]:
        """Return worker, outcome and reason of each attempt at a trial, in order."""
        return self._read("SELECT worker, outcome, reason FROM attempts WHERE key = ? ORDER BY id", key)

    def folder_of(self, trial: Trial) -> Path:
        """Return the folder of a trial."""
        return folder_of(self.trials, trial)

    # ---------------------------------------------------------------- one at a time

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Keep a second process from running trials of this search; the lock ends with the process.

        Raises:
            InputError: Another one runs them.
        """
        lock = FileLock(self.folder / "search.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"another process runs the search in {self.folder}; wait until it is done, or give another folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _results(self, condition: str, *values: str) -> dict[str, TrialResult]:
        columns = ", ".join(f"results.{name}" for name in _COLUMNS)
        rows = self._read(f"SELECT results.key, status, figures, {columns} FROM results {condition}", *values)
        return {
            key: TrialResult(key, status, figures=json.loads(figures), **dict(zip(_COLUMNS, row, strict=True)))
            for key, status, figures, *row in rows
        }

    def _read(self, query: str, *values: str) -> list[Any]:
        with explained(self.folder / DATABASE):
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        with explained(self.folder / DATABASE), transaction(self._connection):
            yield self._connection.execute


def _ending(key: str, outcome: str, reason: str) -> tuple[str, tuple[Any, ...]]:
    query = "UPDATE attempts SET ended = ?, outcome = ?, reason = ? WHERE key = ? AND outcome IS NULL"
    return query, (time.time(), outcome, reason, key)
