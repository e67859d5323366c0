"""Writing a file so that a reader only ever sees the old content or the whole new one."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Replace ``path`` by what ``write`` puts into the temporary file that it is given.

    The temporary file lies in the same folder, is flushed to the disk, and then takes the name of ``path`` in one step.
    Whatever happens before that (an error, an interrupt, a full disk, a killed process) leaves the old file as it was.

    Args:
        path: The file to write. Its folder must exist. Where it is a link, the link stays and its target is replaced.
        write: Called once with the path of an empty temporary file.

    Raises:
        InputError: The folder is missing or not writable, ``path`` is a folder, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    try:
        if target.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        temporary = _temporary_beside(target)
        write(temporary)
        _flush(temporary)
        temporary.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise InputError(_paragraph(Path(path), error)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def safetensors_errors() -> Iterator[None]:
    """Turn what safetensors raises where a file cannot be written (a full disk) into the OSError that it is.

    Raises:
        OSError: With the number of the system's error, where safetensors told it.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise OSError(str(error)) from error
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def write_safetensors(
    path: str | os.PathLike[str], content: Mapping[str, Tensor] | nn.Module, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as a safetensors file, as :func:`atomic_write` does.

    Args:
        path: The file; its folder must exist.
        content: Tensors by name, of which no two share memory; or a model, whose shared tensors are written once and
            which ``safetensors.torch.load_model`` reads.
        metadata: Goes into the header.

    Raises:
        InputError: The file cannot be written, or the state holds something that is no tensor.
    """
    from safetensors.torch import save_file, save_model

    check_tensors(path, content if isinstance(content, Mapping) else content.state_dict())

    def write(temporary: Path) -> None:
        mode = temporary.stat().st_mode  # safetensors puts a new file there, for its owner only
        about = None if metadata is None else dict(metadata)
        with safetensors_errors():
            if isinstance(content, Mapping):
                save_file(dict(content), temporary, metadata=about)
            else:
                save_model(content, str(temporary), metadata=about)
        temporary.chmod(mode)

    atomic_write(path, write)


def check_tensors(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Refuse a state_dict that a file of tensors cannot hold.

    Raises:
        InputError: An entry is no tensor: what a module gives as its ``get_extra_state`` may be anything.
    """
    from torch import Tensor

    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{path} was not written: {name} is a {type(value).__name__}, and the file holds tensors alone. Keep "
                "it in a file of its own, and give a state_dict without it; or have get_extra_state return a tensor"
            )


def _temporary_beside(target: Path) -> Path:
    """Make an empty file in the target's folder, with the permissions that the target has or would get."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    temporary.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
    return temporary


def _umask() -> int:
    """Return the process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Wait until the file's (or folder's) content is on the disk."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _paragraph(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    kept = "the old file is unchanged" if path.is_file() else "nothing was left behind"
    return f"cannot write {path}: {reason}; {kept}. Free space, or name a file in a folder you may write to."
