"""The configuration: what it may say, and how a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

import fxprune
from fxprune.deploy.gate import CHECKS, Rule, find_config, read_config
from fxprune.errors import InputError

FULL = """
[gate]
baseline = "models/base.onnx"
golden = "inputs.npz"
runtime = "torch-cpu"
threads = 2
batch = 4
seconds = 3
seed = 7
pin = true
sizes = { sequence = 16 }

[gate.checks]
latency = { limit = 1.1 }
parity = "fail"
size = { level = "report", limit = 2 }
"""


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "fxprune.toml"
    path.write_text(FULL)
    assert find_config(tmp_path) == path
    config = read_config(path)
    settings = config.settings
    assert (settings.runtime, settings.threads, settings.batch, settings.seconds) == ("torch-cpu", 2, 4, 3)
    assert (settings.seed, settings.pin, settings.sizes) == (7, True, {"sequence": 16})
    assert config.baseline == tmp_path / "models" / "base.onnx"
    assert config.golden == tmp_path / "inputs.npz"
    assert config.rules["latency"] == Rule("fail", 1.1)
    assert config.rules["parity"] == Rule("fail", CHECKS["parity"].limit)
    assert config.rules["size"] == Rule("report", 2)
    assert config.rules["macs"] == Rule(CHECKS["macs"].level, CHECKS["macs"].limit)


def test_a_project_file_has_it_under_tool(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text("[project]\nname = 'x'\n")
    assert find_config(tmp_path) is None
    path.write_text("[tool.fxprune.gate.checks]\npaths = 'fail'\n")
    assert find_config(tmp_path) == path
    assert read_config(path).rules["paths"].level == "fail"
    (tmp_path / "fxprune.toml").write_text("")
    assert find_config(tmp_path) == tmp_path / "fxprune.toml"


def test_without_a_file_there_are_defaults() -> None:
    config = read_config(None)
    assert {name: rule.limit for name, rule in config.rules.items()} == {n: c.limit for n, c in CHECKS.items()}
    assert config.with_limit("latency", 2.0).rules["latency"] == Rule("fail", 2.0)
    assert config.rules["latency"].limit == 1.05
    with pytest.raises(InputError, match="zero or more"):
        config.with_limit("latency", float("nan"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[gate\n", "cannot be read as TOML"),
        ("gate = 3", "gate is 3; it must be a table"),
        ("[gate]\nthread = 2", r"there is no key gate\.thread; did you mean threads\?"),
        ("[gate]\nthreads = 'two'", r"gate\.threads is 'two'; it must be int"),
        ("[gate]\nthreads = true", r"gate\.threads is True"),
        ("[gate]\nthreads = 0", r"\[gate\]: threads, batch and seconds must be positive"),
        ("[gate]\nbaseline = ''", r"gate\.baseline is ''; it must be a path"),
        ("[gate]\nsizes = {n = 0}", r"gate\.sizes\.n is 0"),
        ("[gate]\nchecks = 'fail'", r"gate\.checks is 'fail'; it must be a table"),
        ("[gate.checks]\nlatancy = 'warn'", r"gate\.checks\.latancy; did you mean latency\?"),
        ("[gate.checks]\nlatency = 'error'", r"gate\.checks\.latency\.level is 'error'; it must be fail, warn, report"),
        ("[gate.checks]\nlatency = {max = 2}", r"there is no key gate\.checks\.latency\.max"),
        ("[gate.checks]\nlatency = {limit = '5%'}", r"gate\.checks\.latency\.limit is '5%'; it must be a number"),
        ("[gate.checks]\nlatency = {limit = nan}", r"gate\.checks\.latency\.limit is nan"),
        ("[gate.checks]\nlatency = 1.05", r"gate\.checks\.latency is 1\.05; it must be a level"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "fxprune.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"fxprune\.toml.*{why}"):
        read_config(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_config(tmp_path / "none.toml")


def test_the_table_of_the_documentation_is_the_table_of_checks() -> None:
    page = Path(fxprune.__file__).parents[1] / "docs" / "latency.md"
    if not page.is_file():
        pytest.skip("installed without its documentation")
    lines = page.read_text().splitlines()
    for name, check in CHECKS.items():
        assert f"| `{name}` | {check.what} | {check.limit:g} | {check.level} |" in lines
