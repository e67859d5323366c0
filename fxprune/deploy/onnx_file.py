"""Writing an ONNX model so that the file, and the weights beside it where there are too many, change in one step."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir

from fxprune.deploy.files import atomic_write
from fxprune.errors import VerifyError

INLINE_LIMIT = 2**31 - 2**26
"""Bytes of weights up to which they go into the ONNX file: protobuf ends at 2 GiB, and the graph needs some of that."""


def save(model: onnx_ir.Model, path: Path) -> Path | None:
    """Write the model, checked by ``onnx.checker``; return the file of its weights if they needed one of their own.

    The weights' file is named by its content, so the old model keeps the old weights until the moment that the new
    model takes its place.

    Raises:
        InputError: The file cannot be written.
        VerifyError: The model is not valid ONNX.
    """
    if sum(tensor.nbytes for _, tensor in _weights(model)) <= INLINE_LIMIT:
        atomic_write(path, lambda temporary: _save_checked(model, temporary))
        data = None
    else:
        data = _save_apart(model, path)
    _remove_stale_data(path, keep=data)
    return data


def _weights(model: onnx_ir.Model) -> list[tuple[str, onnx_ir.TensorProtocol]]:
    initializers = [item for graph in model.graphs() for item in graph.initializers.items()]
    return [(name, value.const_value) for name, value in initializers if value.const_value is not None]


def _save_checked(model: onnx_ir.Model, path: Path, data_name: str | None = None) -> None:
    onnx_ir.save(model, path, format="protobuf", external_data=data_name)
    try:
        onnx.checker.check_model(
            str(path)
        )  # by path: the checker must find the weights' file, and takes no more than 2 GiB otherwise
    except onnx.checker.ValidationError as error:
        raise VerifyError(
            f"the exporter made an invalid ONNX model: {error}; please report it with the model"
        ) from error


def _save_apart(model: onnx_ir.Model, path: Path) -> Path:
    data = path.with_name(f"{path.name}.{_digest(model)}.data")
    existed = data.exists()

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=f".{path.name[:100]}.", dir=temporary.parent) as folder:
            staged = Path(folder) / path.name
            _save_checked(model, staged, data.name)
            atomic_write(data, _move_from(staged.with_name(data.name)))
            staged.replace(temporary)

    try:
        atomic_write(path, write)
    except BaseException:
        if not existed:
            data.unlink(missing_ok=True)
        raise
    return data


def _move_from(source: Path) -> Callable[[Path], None]:
    return lambda temporary: os.replace(source, temporary)  # noqa: PTH105  (Path.replace returns a path)


def _digest(model: onnx_ir.Model) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in _weights(model):
        digest.update(repr((name, str(tensor.dtype), str(tensor.shape))).encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _remove_stale_data(path: Path, keep: Path | None) -> None:
    """Delete the weights' files of earlier exports to the same path, which nothing refers to any more."""
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    for file in path.parent.iterdir():
        if file != keep and pattern.fullmatch(file.name):
            file.unlink(missing_ok=True)
