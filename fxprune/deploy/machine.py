"""What a measured latency belongs to: the processor and the software that it was measured on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from fxprune.deploy.pinning import usable_cores

_KERNEL_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "sve")
"""Processor features by which onnxruntime chooses its kernels, and with them the widths that are fast."""


def machine() -> dict[str, Any]:
    """Return the machine as JSON-ready values.

    ``fingerprint`` is equal where milliseconds may be compared; ``load`` says how busy the machine was.
    """
    stable: dict[str, Any] = {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "features": sorted(set(_KERNEL_FLAGS) & set((_cpuinfo("flags") or _cpuinfo("Features")).split())),
        "cores": len(usable_cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": _onnxruntime(),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
    }
    gpus = _gpus()
    if gpus:
        stable["gpus"] = gpus
    fingerprint = hashlib.sha256(repr(sorted(stable.items())).encode()).hexdigest()[:16]
    return {**stable, "fingerprint": fingerprint, "load": load_average()}


def load_average() -> float | None:
    """Return the machine's load over the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _onnxruntime() -> str:
    """Return its version, whichever package brought it."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _gpus() -> list[str]:
    """Return name and driver of every NVIDIA GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _cpuinfo(key: str) -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
