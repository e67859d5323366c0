"""Whether a model that ran in training mode still does: the graph is that of eval mode, and never saw the rest."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.capture.untouched import copied
from fxprune.eager.checks import first_line, idle_layers, place
from fxprune.errors import VerifyError


class TrainingFailed(Exception):
    """What stopped a model in training mode, and the module that it happened in."""

    def __init__(self, error: Exception, path: str) -> None:
        super().__init__(first_line(error))
        self.error, self.path = error, path


def trains(traced: Traced, model: nn.Module) -> TrainingFailed | None:
    """Run a copy of a model in training mode on the example of the capture; return what stopped it, or None.

    The model, its buffers and the generator of random numbers stay as they are.
    """
    running: list[str] = []
    try:
        own = copy.deepcopy(model).train()
        for path, module in own.named_modules():
            module.register_forward_pre_hook(lambda *_, path=path: running.append(path))
            module.register_forward_hook(lambda *_: running.pop() and None)
        source: Any = traced if traced.regions is None else traced.regions
        args, kwargs = pytree.tree_map(copied, (source.args, source.kwargs))
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            own(*args, **kwargs)
    except Exception as error:  # the user's code raises whatever it likes
        return TrainingFailed(error, running[-1] if running else "")
    return None


def check_training(traced: Traced, model: nn.Module, before: TrainingFailed | None) -> str:
    """Refuse a result with which a model does not run in training mode any more.

    Args:
        traced: The pruned capture.
        model: The model, after the result was written into it.
        before: What :func:`trains` said of the original.

    Returns:
        What could not be checked, in plain words; "" where all was.

    Raises:
        VerifyError: The original runs in training mode, and this does not; or the original does not run on the example
            either, and has layers that the graph does not use, so that nobody knows what they are given.
    """
    name = type(model).__name__
    remedy = (
        'Keep the channels that it reads: protect the parameters of the layers that feed it (protect="LAYER.*"). '
        "For a model that will not be trained, apply_to(..., training=False) leaves this out, and the graph itself "
        "needs none of it. The model is as it was"
    )
    if before is None:
        after = trains(traced, model)
        if after is None:
            return ""
        raise VerifyError(
            f"in training mode {name} runs as it was, and not with the new sizes: {_where(after.path)} stops with "
            f"{first_line(after.error)}, {place(after.error)}. The graph was captured in eval mode, and what is "
            f"computed in training alone is no part of it. {remedy}"
        ) from after.error
    idle = idle_layers(traced, model)
    if idle:
        raise VerifyError(
            f"nobody can tell whether {name} still trains: the graph, captured in eval mode, does not use "
            f"{', '.join(idle[:3])}{f' and {len(idle) - 3} more layers' if len(idle) > 3 else ''}, and in training "
            f"mode the original does not run on the example ({first_line(before.error)}, {place(before.error)}). "
            f"Capture it on an example on which it does, such as larger images. {remedy}"
        ) from before.error
    return (
        f"whether {name} runs in training mode was not checked, because the original does not on the example: "
        f"{first_line(before.error)}"
    )


def _where(path: str) -> str:
    return path or "the model's own code"
