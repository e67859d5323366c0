"""What ``fxprune search`` wrote into its folder, read back without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.capture.specs import example_inputs
from fxprune.errors import InputError
from fxprune.search.network import Network, Subject, load_network

FINAL_WEIGHTS = "model.safetensors"
"""Weights of the final network, in the folder that the command was given."""
REPORT = "report.json"


def load(
    directory: str | Path, factory: Callable[..., nn.Module], example: Any = None, *, by_side: bool = False
) -> Network:
    """Rebuild the network that ``fxprune search`` wrote: its plans are carried out anew, and proved.

    Args:
        directory: What ``--out`` named.
        factory: Builds the dense model; its weights do not matter, but it has to make the same constants: tensors that
            the model computes with and its state_dict does not have.
        example: Example inputs at the whole resolution, as :func:`fxprune.trace` takes them. None takes those that
            ``report.json`` has.
        by_side: Whether the factory is called with the side of the images in pixels, as with ``--side-arg``.

    Returns:
        The network with its weights; ``network.traced`` is the capture, at images of ``network.side`` pixels.

    Raises:
        InputError: A file is missing, damaged or of another model.
        PlanError: The plans are of another model.
    """
    folder = Path(directory)
    if example is None:
        try:
            example = example_inputs(json.loads((folder / REPORT).read_text(encoding="utf-8"))["input"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{folder / REPORT} does not say which inputs the model takes ({error}); give the folder that fxprune "
                "search --out named, or example="
            ) from error
    return load_network(Subject(factory, example, by_side=by_side), folder, weights=FINAL_WEIGHTS)
