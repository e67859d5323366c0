"""Files appear together, and only when all went well."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fxprune.cli.shared import output
from fxprune.cli.shared.output import staging
from fxprune.errors import InputError


def _write(folder: Path) -> None:
    for name in ("report.json", "model.onnx"):
        (folder / name).write_text("new")


@pytest.mark.parametrize("there", [True, False], ids=["existing", "new"])
def test_files_appear_when_the_block_ends(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "deep" / "out"
    if there:
        target.mkdir(parents=True)
        (target / "report.json").write_text("old")
        (target / "notes.txt").write_text("mine")
    with staging(target) as folder:
        _write(folder)
        assert not (target / "model.onnx").exists()
    assert {path.name for path in target.iterdir()} == {"report.json", "model.onnx"} | (
        {"notes.txt"} if there else set()
    )
    assert (target / "report.json").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_appears_when_it_does_not(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "report.json").write_text("old")

    def stopped() -> None:
        with staging(tmp_path) as folder:
            _write(folder)
            raise error

    with pytest.raises(error):
        stopped()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_the_report_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr("fxprune.deploy.files.atomic_write", lambda path, write: written.append(path.name))
    with staging(tmp_path / "out") as folder:
        for name in ("report.html", "plan.json", "report.json", "model.onnx"):
            (folder / name).touch()
    assert written == ["model.onnx", "plan.json", "report.html", "report.json"]


def test_an_interrupt_while_files_move_does_not_part_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = output._publish

    def interrupted(folder: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        publish(folder, target)

    monkeypatch.setattr(output, "_publish", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with staging(tmp_path / "out") as folder:
        _write(folder)
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_a_target_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for target in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(InputError, match="name a folder"), staging(target):
            pass
    assert (tmp_path / "taken").read_text() == "mine"
