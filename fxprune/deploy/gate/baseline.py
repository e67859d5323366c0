"""The record beside a baseline: which file it is, and its figures that do not depend on time or machine.

There are no milliseconds in it. Times of another day or machine are no baseline; the file itself is measured again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fxprune
from fxprune.deploy.figures import file_figures
from fxprune.deploy.files import atomic_write
from fxprune.deploy.gate.config import GateConfig
from fxprune.deploy.golden import Golden
from fxprune.deploy.kernels import kernel_figures
from fxprune.deploy.machine import machine
from fxprune.deploy.runtimes import get_runtime
from fxprune.errors import InputError

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """What ``fxprune baseline update`` wrote."""

    path: Path
    values: dict[str, Any]

    def require_same(self, sha256: str, baseline: Path) -> None:
        """Refuse a baseline that is another file than the one recorded.

        Raises:
            InputError: The hashes differ.
        """
        if self.values["figures"]["sha256"] != sha256:
            raise InputError(
                f"{baseline} is not the file that {self.path.name} was written for: restore it, or accept the new one "
                f"with `fxprune baseline update {baseline}`"
            )


def record_path(baseline: Path) -> Path:
    """Return where the record of a baseline lies: beside it."""
    return baseline.with_name(f"{baseline.name}.json")


def golden_path(baseline: Path) -> Path:
    """Return where inputs and outputs of a baseline lie: beside it."""
    return baseline.with_name(f"{baseline.name}.golden.npz")


def read_record(baseline: Path) -> Record | None:
    """Read the record of a baseline; None where there is none.

    Raises:
        InputError: It is damaged, or of another version of fxprune.
    """
    path = record_path(baseline)
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = values["schema"] == SCHEMA and isinstance(values["figures"]["sha256"], str)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no record of a baseline: write it with `fxprune baseline update`") from error
    if not known:
        raise InputError(f"{path} has schema {values['schema']}, and this fxprune reads {SCHEMA}: update it")
    return Record(path, values)


def update_baseline(
    baseline: Path, config: GateConfig, *, golden: Path | None = None, keep_outputs: bool = True
) -> Record:
    """Write the record of a baseline, and what it gives for golden inputs.

    Args:
        baseline: An ONNX file.
        config: The gate's, for runtime, batch and sizes.
        golden: An npz file of inputs by name; random ones without.
        keep_outputs: Write inputs and outputs into a file beside the baseline.

    Raises:
        InputError: The file cannot be loaded or the record not be written.
        VerifyError: It does not run.
    """
    settings = config.settings
    figures = file_figures(baseline, batch=settings.batch, sizes=settings.sizes)
    kernels = kernel_figures(baseline, runtime=settings.runtime)
    where = machine()
    values = {
        "schema": SCHEMA,
        "file": baseline.name,
        "figures": figures.to_dict(),
        "kernels": kernels.to_dict() if kernels else None,
        "batch": settings.batch,
        "versions": {"fxprune": fxprune.__version__, "onnxruntime": where["onnxruntime"]},
        "features": where["features"],
    }
    if keep_outputs:
        session = get_runtime(settings.runtime).load(baseline, settings.threads)
        options: dict[str, Any] = {"batch": settings.batch, "sizes": settings.sizes, "seed": settings.seed}
        found = Golden.load(golden, session) if golden else Golden.of(session, **options)
        found.save(golden_path(baseline))
    text = json.dumps(values, indent=2) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(record_path(baseline), write)
    return Record(record_path(baseline), values)
