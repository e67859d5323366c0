"""``doctor``: what is installed here, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys

import typer
from rich.table import Table

from fxprune.cli.console import out
from fxprune.errors import EnvironmentProblem

_REQUIRED = ("torch", "onnx", "onnxscript", "onnxruntime", "networkx", "numpy", "scipy", "safetensors")
_OPTIONAL = {"torchvision": "pip install 'fxprune[vision]'"}
_IMPORT_SECONDS = 120


def diagnose() -> None:
    """Print a table; exit with 4 where something that is needed does not work."""
    table = Table(title="fxprune doctor")
    for column in ("what", "found", "remark"):
        table.add_column(column, overflow="fold")
    table.add_row("python", platform.python_version(), sys.executable)
    broken = [name for name in _REQUIRED if not _row(table, name, f"pip install {name}")]
    for name, remedy in _OPTIONAL.items():
        _row(table, name, remedy)
    for what, found, remark in _machine():
        table.add_row(what, found, remark)
    out.print(table)
    if broken:
        raise EnvironmentProblem(f"{', '.join(broken)} cannot be used here; see the remarks above")
    raise typer.Exit(0)


def _row(table: Table, name: str, remedy: str) -> bool:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        table.add_row(name, "[red]missing[/red]", remedy)
        return False
    problem = _import_problem(name)
    table.add_row(name, version, problem or "")
    return not problem


def _import_problem(name: str) -> str:
    """Import a package in a process of its own: a broken one must not take the doctor with it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"importing it takes longer than {_IMPORT_SECONDS} s"
    if done.returncode == 0:
        return ""
    last = (done.stderr.strip().splitlines() or ["it ends the interpreter"])[-1]
    if "torchvision::nms" in last:
        return (
            "torchvision was built for another torch: a CPU-only torch does not load the registry's torchvision, "
            "whose operators are built for the CUDA torch (which runs on the CPU as well). "
            "Install both from one place: pip install --force-reinstall torch torchvision"
        )
    return f"import fails: {last}"


def _machine() -> list[tuple[str, str, str]]:
    import onnxruntime
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    block = 16 if "AVX512" in capability else 8
    providers = ", ".join(onnxruntime.get_available_providers())
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return [
        ("cores", str(os.cpu_count()), ""),
        ("vector instructions", capability, f"onnxruntime's convolutions work in blocks of {block} channels"),
        ("onnxruntime providers", providers, ""),
        ("GPU that torch sees", cuda, ""),
    ]
