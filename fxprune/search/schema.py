"""The schema of a search's database, what is done with a file that has another one, and SQLite's errors in words."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fxprune.errors import InputError
from fxprune.search.trials import digest

VERSION = 1
APPLICATION = 0x66787072  # "fxpr", which tells the file from other databases
_MARKS = ("application_id", "user_version")

_SCHEMA = """
CREATE TABLE search (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    digest TEXT NOT NULL,
    settings TEXT NOT NULL,
    created REAL NOT NULL
);
CREATE TABLE trials (
    key TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    depth REAL NOT NULL,
    width REAL NOT NULL,
    resolution REAL NOT NULL,
    epochs INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    parent TEXT,
    description TEXT NOT NULL,
    folder TEXT NOT NULL,
    added REAL NOT NULL
);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL REFERENCES trials (key),
    worker TEXT NOT NULL,
    started REAL NOT NULL,
    ended REAL,
    outcome TEXT CHECK (outcome IN ('done', 'failed', 'lost', 'timed out')),
    reason TEXT NOT NULL DEFAULT ''
);
CREATE TABLE results (
    key TEXT PRIMARY KEY REFERENCES trials (key),
    status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    accuracy REAL,
    macs REAL,
    params REAL,
    resolution REAL,
    seconds REAL NOT NULL,
    weights TEXT,
    worker TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    error TEXT NOT NULL,
    figures TEXT NOT NULL,
    recorded REAL NOT NULL,
    CHECK (status = 'failed' OR accuracy IS NOT NULL)
);
CREATE VIEW states AS
    SELECT trials.number, trials.key, CASE
        WHEN results.status IS NOT NULL THEN results.status
        WHEN EXISTS (SELECT 1 FROM attempts WHERE attempts.key = trials.key AND attempts.outcome IS NULL) THEN 'running'
        ELSE 'waiting' END AS state
    FROM trials LEFT JOIN results ON results.key = trials.key;
"""


def prepare(connection: sqlite3.Connection, path: Path, settings: Mapping[str, Any]) -> None:
    """Make the schema in an empty file; else check that it is ours, of this version, and of the same search."""
    connection.execute("PRAGMA foreign_keys = ON")
    with transaction(connection):
        application, version = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _MARKS)
        empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if empty and not version:
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            row = (digest(dict(settings)), json.dumps(dict(settings)), time.time())
            connection.execute("INSERT INTO search VALUES (1, ?, ?, ?)", row)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif application != APPLICATION:
            raise InputError(f"{path} is a database of another program; give another folder. It was left as it is")
        elif version != VERSION:
            raise InputError(
                f"{path} has version {version} of the schema, and this fxprune reads {VERSION}; go on with the fxprune "
                "that began the search, or give another folder. It was left as it is"
            )
        else:
            _check_the_same(connection, path, settings)


def _check_the_same(connection: sqlite3.Connection, path: Path, settings: Mapping[str, Any]) -> None:
    known, text = connection.execute("SELECT digest, settings FROM search").fetchone()
    if known != digest(dict(settings)):
        from fxprune.training.checkpoint import first_difference  # it loads torch

        found = first_difference(json.loads(json.dumps(dict(settings))), json.loads(text))
        raise InputError(
            f"{path} holds another search: {found}. Give the settings that it began with, or another folder; nothing "
            "was changed"
        )


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make all or nothing of what is done inside; waits for other processes that write."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have rolled it back
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite cannot do into one paragraph."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
        raise  # a mistake of the code that asks
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        remedy = {
            sqlite3.SQLITE_FULL: "What it held is unchanged and can be read. Free space and start the search again: it "
            "goes on where it was",
            sqlite3.SQLITE_BUSY: "Another process keeps it locked; wait for that, or end it",
            sqlite3.SQLITE_READONLY: "Give a folder that you may write to",
            sqlite3.SQLITE_CANTOPEN: "Give a folder that you may write to",
            sqlite3.SQLITE_IOERR: "Check the disk; on a disk of the network, that it can lock files",
        }.get(code, "It is damaged or no database; it was left as it is. Give another folder, or restore it")
        raise InputError(f"the database of the search, {path}, cannot be used: {error}. {remedy}") from error
