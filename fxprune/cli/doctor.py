"""``doctor``: what is installed here, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

import fxprune
from fxprune.cli.shared.console import err, out, say
from fxprune.errors import EnvironmentProblem, FxPruneError

REQUIRED = {
    "torch": "2.11",
    "onnx": "1.18",
    "onnxscript": "0.6",
    "onnx-ir": "0.1.16",
    "onnxruntime": "1.23",
    "networkx": "3.2",
    "numpy": "1.26",
    "scipy": "1.11",
    "safetensors": "0.7",
    "filelock": "3.13",
    "typer": "0.16",
    "rich": "13",
    "jinja2": "3.1",
    "tomli-w": "1.0",
}
OPTIONAL = {"torchvision": "0"}  # the models of the examples; fxprune itself runs without
_IMPORT_SECONDS = 120


@dataclass(frozen=True)
class Finding:
    """What was found of one package.

    Attributes:
        name: As it is installed.
        version: "" where it is missing.
        problem: One paragraph ("" if it works).
        remedy: What to install.
    """

    name: str
    version: str
    problem: str = ""
    remedy: str = ""

    @property
    def state(self) -> str:
        """One word for the table."""
        if not self.version:
            return "missing"
        return "does not work" if self.problem else "ok"


def diagnose() -> None:
    """Print what there is, and a line to install what there is not.

    Raises:
        EnvironmentProblem: Something that is needed is missing, or something that is installed does not work.
    """
    findings = []
    for name, least in (REQUIRED | OPTIONAL).items():
        with err.status(f"import {name}"):  # a heavy package takes seconds
            findings.append(examine(name, least))
    out.print(_table(findings))
    usable = {finding.name for finding in findings if finding.state == "ok"}
    for what, found in _machine(usable):
        say(f"{what}: {found}")
    broken = _show_export() if set(REQUIRED) <= usable else ""
    _show_runtimes(usable)
    problems = [finding for finding in findings if finding.problem]
    for finding in problems:
        say(f"\n{finding.name}: {finding.problem}")
    for remedy in dict.fromkeys(finding.remedy for finding in problems):
        say(f"  {remedy}")
    failed = [f.name for f in problems if f.version or f.name in REQUIRED]
    if broken:
        raise EnvironmentProblem(f"models cannot be exported here: {broken}")
    if failed:
        raise EnvironmentProblem(f"{', '.join(failed)} cannot be used here; the lines above say what to install")


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("package", "found", "needed", "state"):
        table.add_column(column, no_wrap=True)
    table.add_row("fxprune", fxprune.__version__, "", "ok")
    table.add_row("python", platform.python_version(), "3.11", "ok")
    for finding in findings:
        color = {"ok": "green", "missing": "yellow"}.get(finding.state, "red")
        needed = REQUIRED.get(finding.name, "optional")
        table.add_row(finding.name, finding.version or "-", needed, f"[{color}]{finding.state}[/{color}]")
    return table


def examine(name: str, least: str) -> Finding:
    """Look at one package: whether it is there, new enough, and can be imported."""
    wanted = name if name in OPTIONAL else f"'{name}>={least}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        problem = "it is not installed" + ("; fxprune needs it for its models only" if name in OPTIONAL else "")
        return Finding(name, "", problem, f"pip install {wanted}")
    if _numbers(version) < _numbers(least):
        return Finding(name, version, f"fxprune needs {least} or newer", f"pip install --upgrade {wanted}")
    problem = _import_problem(name.replace("-", "_"))
    if "torchvision::nms" in problem:
        problem = (
            f"{problem}. It was built for another torch: a CPU-only torch does not load the registry's torchvision, "
            "whose operators are built for the CUDA torch (which runs on the CPU as well). Install both from one place"
        )
        wanted = "torch torchvision"
    return Finding(name, version, problem, f"pip install --force-reinstall {wanted}" if problem else "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def _import_problem(module: str) -> str:
    """Import a package in a process of its own: a broken one must not take the doctor with it."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"import {module}"],  # -P: the user's folder holds files of any name
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"importing it takes longer than {_IMPORT_SECONDS} s"
    if done.returncode == 0:
        return ""
    last = (done.stderr.strip().splitlines() or [f"the interpreter ends with {done.returncode}"])[-1]
    return f"its import fails: {last}"


def _show_runtimes(usable: set[str]) -> None:
    """Print which runtimes can be measured on, and what the others need. None of them fails the doctor."""
    if "numpy" not in usable:
        return
    from fxprune.deploy.runtimes import RUNTIMES, get_runtime

    say("\nruntimes to measure on:")
    for name in RUNTIMES:
        package = name.partition("-")[0]
        broken = package in REQUIRED and package not in usable  # loading it here could end the doctor
        missing = f"needs {package}, see above" if broken else get_runtime(name).available()
        say(f"  {name}: {missing or 'ok'}")


def _show_export() -> str:
    """Print whether a layer can be exported; return why not, empty where it can."""
    with err.status("export a layer to ONNX"):
        problem = _export_problem()
    say(f"export to ONNX: {'fails, see below' if problem else 'ok'}")
    return problem


def _export_problem() -> str:
    """Export a layer and run the file: each of the packages may be new enough, and still not fit the others."""
    try:
        import torch

        from fxprune.capture import trace
        from fxprune.cli.report.facts import PARITY_TOLERANCE
        from fxprune.deploy.onnx import export_onnx
        from fxprune.deploy.parity import check_parity

        with tempfile.TemporaryDirectory(prefix="fxprune-doctor-") as folder:
            traced = trace(torch.nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8))
            export_onnx(traced, Path(folder) / "model.onnx")
            check_parity(traced, Path(folder) / "model.onnx").require(PARITY_TOLERANCE)
    except FxPruneError as error:
        return str(error)
    except Exception as error:  # packages that do not fit raise anything, and what else was found is still to be told
        return f"{type(error).__name__}: {error}"
    return ""


def _machine(usable: set[str]) -> list[tuple[str, str]]:
    """Describe what the usable packages see of the machine."""
    found = [("interpreter", sys.executable), ("cores", str(os.cpu_count()))]
    if "torch" in usable:
        import torch

        found.append(("vector instructions", torch.backends.cpu.get_cpu_capability()))
        found.append(("GPU that torch sees", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"))
    if "onnxruntime" in usable:
        import onnxruntime

        found.append(("onnxruntime providers", ", ".join(onnxruntime.get_available_providers())))
    return found
