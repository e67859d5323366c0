"""What a report was made with."""

from __future__ import annotations

import platform

import fxprune


def versions() -> dict[str, str]:
    """Return the versions of what a report was made with."""
    import onnxruntime
    import torch

    return {
        "fxprune": fxprune.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
