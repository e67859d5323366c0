"""The GitHub Action and the GitLab example: their shell steps, taken out and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import fxprune
from tests.cli.chains import write_chain

ROOT = Path(fxprune.__file__).parents[1]
ACTION = ROOT / "action.yml"
GITLAB = ROOT / "examples" / "gitlab-ci.yml"
WORKFLOW = ROOT / "examples" / "github-workflow.yml"

pytestmark = pytest.mark.skipif(not ACTION.is_file(), reason="installed without the repository around it")


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """A folder as a CI job has it: two models, and commands of this interpreter on the path.

    The command measures made-up times, so that its verdict does not depend on what else the machine does.
    """
    commands = tmp_path / "bin"
    commands.mkdir()
    program = "from made_up_times import install; install(); from fxprune.cli.main import main; main()"
    for name, words in (("python", ""), ("fxprune", f"-c '{program}'")):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (commands / name).chmod(0o755)
    write_chain(tmp_path / "base.onnx", 2)
    write_chain(tmp_path / "slow model.onnx", 6)  # a space, as a name may have
    return tmp_path


def environment(runner: Path, **variables: str) -> dict[str, str]:
    path = os.pathsep.join([str(runner / "bin"), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "PIP_"))}
    return {**kept, "PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **variables}


def bash(script: str, runner: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a step as both systems do: the shell ends at the first command that fails."""
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(words, cwd=runner, env=env, capture_output=True, text=True, timeout=300, check=False)


class Action:
    """The action's steps, with inputs put in as GitHub does."""

    def __init__(self, runner: Path) -> None:
        self.runner = runner
        self.text: dict[str, Any] = yaml.safe_load(ACTION.read_text())
        self.steps = {step["id"]: step for step in self.text["runs"]["steps"] if "id" in step}

    def gate(self, **given: str) -> tuple[int, str, dict[str, str]]:
        inputs = {name: str(spec.get("default", "")) for name, spec in self.text["inputs"].items()}
        inputs |= {name.replace("_", "-"): value for name, value in given.items()}
        step = self.steps["gate"]
        values = {name: _filled(text, inputs) for name, text in step["env"].items()}
        output = self.runner / "output"
        output.write_text("")
        env = environment(
            self.runner,
            **values,
            GITHUB_OUTPUT=str(output),
            GITHUB_ACTIONS="true",
            GITHUB_STEP_SUMMARY=str(self.runner / "page.md"),
        )
        done = bash(step["run"], self.runner / _filled(step["working-directory"], inputs), env)
        return (
            done.returncode,
            done.stdout + done.stderr,
            dict(line.split("=", 1) for line in output.read_text().split("\n") if line),
        )


def _filled(text: str, inputs: dict[str, str]) -> str:
    found = re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: inputs[match[1]], text)
    assert "${{" not in found
    return found


def test_the_action_passes_and_fails(runner: Path) -> None:
    action = Action(runner)
    code, said, output = action.gate(candidate="base.onnx", baseline="slow model.onnx", seconds="3")
    assert (code, output["exit-code"], output["outcome"]) == (0, "0", "pass"), said
    assert float(output["ratio"]) == pytest.approx(2 / 6, rel=0.02)
    code, said, output = action.gate(candidate="slow model.onnx", baseline="base.onnx", max_ratio="1.5", reports="r r")
    assert (code, output["outcome"]) == (1, "fail"), said
    assert "::error title=fxprune gate%3A latency::" in said
    assert {path.name for path in (runner / "r r").iterdir()} == {"gate.json", "gate.xml", "gate.md"}
    assert "slow model.onnx against base.onnx" in (runner / "page.md").read_text()


def test_the_action_tells_undecided_from_bad_input(runner: Path) -> None:
    action = Action(runner)
    (runner / "bin" / "fxprune").write_text("#!/bin/sh\nexit 3\n")
    code, said, output = action.gate(candidate="base.onnx", baseline="base.onnx", undecided="warn")
    assert (code, output["exit-code"]) == (0, "3")
    assert "::warning title=fxprune gate::undecided" in said
    code, _, _ = action.gate(candidate="base.onnx", baseline="base.onnx")
    assert code == 3


def test_the_action_takes_inputs_as_text_not_as_script(runner: Path) -> None:
    name = "$(touch pwned); touch pwned #"
    code, said, output = Action(runner).gate(candidate=name, baseline="base.onnx")
    assert (code, output["outcome"], output["ratio"]) == (2, "error", "")
    assert name in said
    assert not (runner / "pwned").exists()


def test_steps_use_variables_alone() -> None:
    for step in yaml.safe_load(ACTION.read_text())["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def test_the_action_installs_its_own_revision(runner: Path) -> None:
    """For real, from a copy of the sources; what it depends on is here already.

    pip reads the 0 as: without isolation.
    """
    pytest.importorskip("setuptools", minversion="77")
    source = runner / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "passes", source / "passes", ignore=ignored)
    shutil.copytree(ROOT / "fxprune", source / "fxprune", symlinks=True, ignore=ignored)
    step = Action(runner).steps["install"]
    assert step["env"] == {"INSTALL": "${{ inputs.install || github.action_path }}"}
    quick = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_TARGET": str(runner / "site"), "PIP_NO_INDEX": "1"}
    done = bash(step["run"], runner, environment(runner, INSTALL=str(source), **quick))
    assert done.returncode == 0, done.stderr
    assert (runner / "site" / "fxprune" / "deploy" / "gate" / "run.py").is_file()
    assert (runner / "site" / "fxprune" / "passes").is_dir()


@pytest.mark.parametrize(("candidate", "code"), [("base.onnx", 0), ("slow model.onnx", 1), ("none.onnx", 2)])
def test_the_gitlab_job(runner: Path, candidate: str, code: int) -> None:
    job = yaml.safe_load(GITLAB.read_text())["latency"]
    assert job["allow_failure"]["exit_codes"] == 3
    variables = {**job["variables"], "CANDIDATE": candidate, "BASELINE": "base.onnx"}
    (runner / "fxprune.toml").write_text("[gate]\nseconds = 3\n[gate.checks]\nlatency = {limit = 1.5}\n")
    done = bash("\n".join(job["script"]), runner, environment(runner, **variables))
    assert done.returncode == code, done.stderr
    written = {*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]} if code < 2 else {"gate.json"}
    assert all((runner / name).is_file() for name in written)


def test_the_example_uses_inputs_that_the_action_has() -> None:
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["gate"]["steps"]
    assert set(steps[-1]["with"]) <= set(yaml.safe_load(ACTION.read_text())["inputs"])
