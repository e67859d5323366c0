"""A file is the old one or the whole new one, whatever happens."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn, ones

from fxprune.deploy.files import atomic_write, safetensors_errors, write_safetensors
from fxprune.errors import InputError


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    return path


def _only(path: Path) -> bool:
    """Whether nothing lies beside the file."""
    return list(path.parent.iterdir()) == [path]


def test_writes_a_new_file_with_ordinary_permissions(tmp_path: Path) -> None:
    path, plain = tmp_path / "new.bin", tmp_path / "plain.bin"
    plain.touch()
    atomic_write(path, lambda temporary: temporary.write_bytes(b"new") and None)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == plain.stat().st_mode


def test_replaces_and_keeps_the_permissions(old: Path) -> None:
    old.chmod(0o640)
    atomic_write(old, lambda temporary: temporary.write_bytes(b"new") and None)
    assert old.read_bytes() == b"new"
    assert old.stat().st_mode & 0o777 == 0o640
    assert _only(old)


def test_keeps_a_link_and_replaces_its_target(old: Path) -> None:
    link = old.with_name("link")
    link.symlink_to(old)
    atomic_write(link, lambda temporary: temporary.write_bytes(b"new") and None)
    assert link.is_symlink()
    assert old.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_leaves_the_old_file(old: Path, error: BaseException) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        assert old.read_bytes() == b"old"
        raise error

    with pytest.raises(type(error)):
        atomic_write(old, write)
    assert old.read_bytes() == b"old"
    assert _only(old)


def test_a_full_disk_is_one_paragraph(old: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"No space left.*old file is unchanged") as caught:
        atomic_write(old, write)
    assert "\n" not in str(caught.value)
    assert old.read_bytes() == b"old"
    assert _only(old)


def test_a_file_size_limit_is_met_for_real(old: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from fxprune.deploy.files import atomic_write
from fxprune.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    atomic_write({str(old)!r}, lambda temporary: temporary.write_bytes(bytes(100_000)) and None)
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert old.read_bytes() == b"old"
    assert _only(old)


def test_a_killed_writer_leaves_the_old_file(old: Path) -> None:
    code = f"""
import time
from fxprune.deploy.files import atomic_write
def write(temporary):
    temporary.write_bytes(bytes(100_000))
    print("written", flush=True)
    time.sleep(60)
atomic_write({str(old)!r}, write)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("where", ["missing/model.bin", "file/model.bin", "."])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    called = []
    with pytest.raises(InputError, match="cannot write"):
        atomic_write(tmp_path / where, called.append)
    assert not called
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_errors_of_safetensors_are_those_of_the_system() -> None:
    with pytest.raises(OSError, match="No space left") as caught, safetensors_errors():
        raise SafetensorError("I/O error: whatever (os error 28)")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="told nothing"), safetensors_errors():
        raise SafetensorError("told nothing")


@pytest.mark.parametrize("content", [{"weight": ones(100, 100)}, nn.Linear(100, 100)], ids=["tensors", "model"])
def test_safetensors_that_do_not_fit_are_one_paragraph(old: Path, content: dict[str, Tensor] | nn.Module) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*old file is unchanged") as caught:
            write_safetensors(old, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert _only(old)
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("content", [{"weight": ones(2, 3)}, nn.Linear(3, 2)], ids=["tensors", "model"])
def test_safetensors_have_ordinary_permissions(tmp_path: Path, content: dict[str, Tensor] | nn.Module) -> None:
    path, plain = tmp_path / "new.safetensors", tmp_path / "plain.bin"
    plain.touch()
    write_safetensors(path, content, {"about": "it"})
    assert path.stat().st_mode == plain.stat().st_mode
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["about"] == "it"
        assert file.get_tensor("weight").shape == (2, 3)
