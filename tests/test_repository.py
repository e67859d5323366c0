"""What holds of the repository as a whole: names, imports, and what is shipped."""

from __future__ import annotations

import importlib
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PASSES = sorted(path.stem for path in (ROOT / "passes").glob("*.py") if not path.stem.startswith("_"))


def test_every_package_is_listed() -> None:
    folders = {path.parent for path in (ROOT / "fxprune").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"fxprune.passes"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


def test_the_passes_are_linked_into_the_package() -> None:
    link = ROOT / "fxprune" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")


@pytest.mark.parametrize("module", PASSES)
def test_the_names_of_a_pass_derive_from_each_other(module: str) -> None:
    names = vars(importlib.import_module(f"fxprune.passes.{module}"))
    (title,) = [name for name in names if name.lower() == module.replace("_", "")]  # FuseBatchNorm in fuse_batchnorm.py
    cls = names[title]
    assert cls.name == module.replace("_", "-")
    assert getattr(importlib.import_module("fxprune.passes"), title) is cls
    assert (ROOT / "tests" / "passes" / f"test_{module}.py").is_file()


def test_imports_run_in_one_direction() -> None:
    command = [str(Path(sysconfig.get_path("scripts"), "lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "code", ["import fxprune", "sys.argv = ['fxprune', '--help']; from fxprune.cli.main import main; main()"]
)
def test_optional_packages_are_not_imported(code: str) -> None:
    program = (
        f"import sys, contextlib\nwith contextlib.suppress(SystemExit):\n    {code}\nprint('LOADED', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"torchvision", "timm"} & set(done.stdout.rpartition("LOADED")[2].split())


def test_no_file_names_the_machine_it_was_made_on() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = (
        ROOT / name for name in listed.stdout.split("\0") if name.endswith((".py", ".toml", ".md", ".yml", ".html"))
    )
    homes = ("/ho" + "me/", "/ro" + "ot/", "/Use" + "rs/")
    assert not [path.name for path in texts if path.is_file() and any(home in path.read_text() for home in homes)]
