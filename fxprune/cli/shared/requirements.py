"""What a command needs of this machine, asked for before any work."""

from __future__ import annotations

import importlib.util

from fxprune.errors import EnvironmentProblem


def require_packages() -> None:
    """Refuse a training without the packages that it needs, before any work.

    Raises:
        EnvironmentProblem: One is not installed.
    """
    for package in ("accelerate", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise EnvironmentProblem(
                f"fine-tuning needs {package}, which is not installed here; it comes with pip install 'fxprune[train]'"
            )


def require_runtime(name: str) -> None:
    """Refuse a runtime that is not here, before anything is measured on it.

    Raises:
        InputError: There is none of this name.
        EnvironmentProblem: It is not installed.
    """
    from fxprune.deploy.runtimes import get_runtime

    missing = get_runtime(name).available()
    if missing:
        raise EnvironmentProblem(f"--runtime {name}: {missing}")
