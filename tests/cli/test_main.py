"""The commands and their options."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fxprune

Call = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("words", [["--help"], ["optimize", "--help"], ["--version"], ["optimize", "--maks", "0.5"]])
def test_help_answers_without_torch(words: list[str]) -> None:
    program = (
        "import sys\nfrom fxprune.cli.main import app\n"
        f"try:\n    app({words})\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    root = Path(fxprune.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=root, timeout=500)


def test_every_command_is_listed(call: Call) -> None:
    code, text = call("--help")
    assert code == 0
    for command in ("optimize", "search", "demo", "groups", "explain", "export", "bench", "gate", "baseline", "doctor"):
        assert command in text
        code, help_text = call(command, "--help")
        assert code == 0
        assert "Usage" in help_text


def test_the_version(call: Call) -> None:
    assert call("--version") == (0, f"fxprune {fxprune.__version__}\n")


def test_a_misspelt_option_names_the_right_one(call: Call) -> None:
    code, text = call("optimize", "m:build", "--maks", "0.5")
    assert code == 2
    assert "--macs" in text


def test_debug_shows_where_an_error_comes_from(call: Call) -> None:
    for words, shown in ((["--debug"], True), ([], False)):
        code, text = call(*words, "groups", "no.such.package:build")
        assert code == 2
        assert ("Traceback" in text) is shown
