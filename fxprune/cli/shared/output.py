"""Files of a command: they grow in a hidden folder near their place, and appear only when everything has passed."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fxprune.errors import InputError


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give a folder to write to; its files move into the folder ``target`` if the block ends without an error.

    Raises:
        InputError: The target is a file, or is in a place that cannot be written.
        KeyboardInterrupt: The block was interrupted; the message says what that means for the target.
    """
    folder = _folder_for(target)
    try:
        yield folder
        with _no_interrupt():  # half of the new files beside half of the old ones would be neither
            _publish(folder, target)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"nothing was written to {target}") from stop
    finally:
        with _no_interrupt():
            shutil.rmtree(folder, ignore_errors=True)


def _folder_for(target: Path) -> Path:
    """Make it where the target is, or will be: that is the place which the user may write to, and the same disk."""
    if target.exists() and not target.is_dir():
        raise InputError(f"--out {target} is a file; name a folder")
    try:
        place = target if target.is_dir() else target.parent
        place.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".fxprune.", dir=place))
    except OSError as error:
        raise InputError(
            f"cannot write to --out {target}: {error.strerror or error}; name a folder that can be written"
        ) from error


def _publish(folder: Path, target: Path) -> None:
    """Move every file into the target, each in one step; the report, which names the others, comes last."""
    from fxprune.deploy.files import atomic_write

    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make --out {target}: {error.strerror or error}") from error
    for source in sorted(folder.iterdir(), key=lambda p: (p.name.startswith("report"), p.name)):
        atomic_write(target / source.name, _copier(source))


def _copier(source: Path) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        shutil.copyfile(source, path)

    return write


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Let Ctrl-C pass unheard for a moment. Only the main thread hears it, and only that may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
