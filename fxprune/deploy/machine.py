"""What a measured latency belongs to: the processor and the software that it was measured on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_KERNEL_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "sve")
"""Processor features by which onnxruntime chooses its kernels, and with them the widths that are fast."""


def machine() -> dict[str, Any]:
    """Return the machine as JSON-ready values.

    ``fingerprint`` is equal where milliseconds may be compared; ``load`` says how busy the machine was.
    """
    stable: dict[str, Any] = {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "features": sorted(set(_KERNEL_FLAGS) & set((_cpuinfo("flags") or _cpuinfo("Features")).split())),
        "cores": _usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
    }
    fingerprint = hashlib.sha256(repr(sorted(stable.items())).encode()).hexdigest()[:16]
    return {**stable, "fingerprint": fingerprint, "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}


def _usable_cores() -> int:
    """Return the number of processors that this process may run on; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
