"""What can be said of an ONNX file before and after a runtime refuses it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from fxprune.deploy.runtimes.base import Model
from fxprune.errors import InputError


def onnx_path(model: Model) -> Path:
    """Return the file that a runtime for ONNX is to load.

    Raises:
        InputError: It is no path, or there is no such file.
    """
    if not isinstance(model, str | Path):
        try:
            model = Path(model)
        except TypeError as error:
            raise InputError(
                f"this runtime takes the path of an ONNX file, not a {type(model).__name__}: "
                "write one with fxprune.export_onnx"
            ) from error
    path = Path(model)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return path


def refusal(runtime: str, path: Path, error: Exception) -> InputError:
    """Return one paragraph for a file that a runtime cannot load, with the likeliest reason first."""
    if path.suffix == ".pt2":
        return InputError(f"{path} is an exported torch program, which {runtime} does not run: use torch-cpu")
    missing = missing_data(path)
    if missing:
        listed = ", ".join(missing)
        return InputError(
            f"{path} keeps its weights in {listed}, which is not in {path.parent.resolve().name or '/'}: "
            "copy it beside the ONNX file"
        )
    reason = " ".join(str(error).split())
    return InputError(f"{runtime} cannot load {path}: {reason[:600]}")


def missing_data(path: Path) -> list[str]:
    """Return the names of external weight files that an ONNX file needs and that are not there."""
    import onnx

    with contextlib.suppress(Exception):  # a corrupt file is reported by the runtime
        files = external_files(path, onnx.load(path, load_external_data=False))
        return [str(file.relative_to(path.parent)) for file in files if not file.is_file()]
    return []


def external_files(path: Path, model: Any) -> list[Path]:
    """Return the files beside an ONNX file that hold its weights, whether they are there or not."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    apart = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    return [path.parent / location for location in dict.fromkeys(ExternalDataInfo(tensor).location for tensor in apart)]
