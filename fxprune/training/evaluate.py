"""One batch through a model, its loss, and how often it is right."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import InputError
from fxprune.training.batches import Batches, as_loader
from fxprune.training.data import check_labels
from fxprune.training.features import logits_of

Loss = Callable[[Any, Any], Tensor]
"""From the model's output and the target to the mean loss over the batch, a scalar."""

IGNORED = -100  # torch's own: a label that counts for nothing


@dataclass(frozen=True)
class Task:
    """What is learned: classes by cross-entropy, unless there is a loss of another kind.

    Attributes:
        loss: None for cross-entropy.
        smoothing: Of the labels, in training.
    """

    loss: Loss | None = None
    smoothing: float = 0.0

    def measure(self, output: Any, target: Any, *, smooth: bool) -> Tensor:
        """Return the mean loss.

        Raises:
            InputError: Targets are no classes of this output, or a loss of one's own is no number.
        """
        if self.loss is not None:
            return _one_number(self.loss(output, target))
        logits = logits_of(output)
        classes = _classes(target, logits)
        return F.cross_entropy(logits, classes, label_smoothing=self.smoothing if smooth else 0.0)

    def correct(self, output: Any, target: Any) -> tuple[int, int]:
        """Return how many labels are right, and of how many; (0, 0) where there are none."""
        if self.loss is not None:
            return 0, 0
        labels = target.argmax(1) if target.is_floating_point() else target
        counted = labels != IGNORED
        return int((logits_of(output).argmax(1) == labels)[counted].sum()), int(counted.sum())


def _one_number(value: Any) -> Tensor:
    """Return a loss as a scalar.

    Raises:
        InputError: It is none.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.reshape(())
    what = f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(
        f"the loss function returns a {what}; it has to be a tensor of one number, the mean over the batch"
    )


def _classes(target: Any, logits: Tensor) -> Tensor:
    """Return targets as cross-entropy takes them: numbers of classes, or the share of each class.

    Raises:
        InputError: They are none of these outputs.
    """
    hint = "give such targets (a collate_fn of the loader can make them), or a loss of your own (loss=)"
    if logits.ndim < 2:
        raise InputError(
            f"the model returns {tuple(logits.shape)} for a batch, where cross-entropy needs (batch, classes, ...); "
            "give a model of two or more classes, or a loss of your own (loss=)"
        )
    whole = isinstance(target, Tensor) and not (target.is_floating_point() or target.is_complex())
    wanted = (logits.shape[0], *logits.shape[2:]) if whole else tuple(logits.shape)
    if not isinstance(target, Tensor) or target.dtype in (torch.bool, torch.complex64, torch.complex128):
        what = f"{target.dtype}" if isinstance(target, Tensor) else f"a {type(target).__name__}"
        raise InputError(f"targets are {what}, and cross-entropy takes numbers of classes, or a share of each; {hint}")
    if tuple(target.shape) != wanted:
        kind = "class numbers" if whole else "shares of classes"
        raise InputError(
            f"targets are {target.dtype} of shape {tuple(target.shape)}, and {kind} for an output of shape "
            f"{tuple(logits.shape)} have the shape {tuple(wanted)}; {hint}"
        )
    if not whole:
        return target
    check_labels(target, logits.shape[1])
    return target.long()


@dataclass
class Tally:
    """Sums over samples.

    Attributes:
        loss: Sum of the loss.
        extra: Sum of what objectives added.
        samples: Their number.
        correct: Labels that were right.
        counted: Of how many.
    """

    loss: float = 0.0
    extra: float = 0.0
    samples: float = 0.0
    correct: float = 0.0
    counted: float = 0.0

    def add(self, loss: float, samples: int, right: tuple[int, int], extra: float = 0.0) -> None:
        """Count a batch in; losses are its means."""
        self.loss += loss * samples
        self.extra += extra * samples
        self.samples += samples
        self.correct += right[0]
        self.counted += right[1]

    def means(self) -> dict[str, float]:
        """Return mean loss, and accuracy where labels were counted."""
        found = {"loss": self.loss / max(self.samples, 1)}
        return found | ({"accuracy": self.correct / self.counted} if self.counted else {})


def evaluate(model: nn.Module, data: Any, *, loss: Loss | None = None, batch: int = 256) -> dict[str, float]:
    """Return the mean ``loss`` of a model on data, and its ``accuracy`` where it tells classes apart.

    Args:
        model: It runs where its parameters are, in eval mode, and is given back in its own.
        data: A loader or dataset of pairs of inputs and targets.
        loss: From output and target to a mean; cross-entropy if left out.
        batch: Samples per pass where a dataset is given.

    Raises:
        InputError: The data are empty, or a label names no output.
    """
    batches = Batches(as_loader(data, batch, False, "evaluation"), seed=0)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    return tally(model, batches, Task(loss), device).means()


def tally(
    model: nn.Module,
    batches: Batches,
    task: Task,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Tally:
    """Return the sums over this process's part of the data."""
    found = Tally()
    with _in_eval_mode(model), torch.no_grad():
        for batch in batches.load(batches.parts()):
            args, kwargs, target = split_batch(batch, device)
            with autocast():
                output = run_model(model, args, kwargs)
                loss = task.measure(output, target, smooth=False)
            found.add(float(loss), size_of(args, kwargs), task.correct(output, target))
    return found


def split_batch(batch: Any, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Return positional inputs, keyword inputs and the target of a batch, on a device.

    A batch is a pair of inputs and target, where inputs are a tensor, a tuple or a dictionary; or a dictionary with
    ``labels`` in it.

    Raises:
        InputError: It is neither.
    """
    batch = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
    if isinstance(batch, dict) and "labels" in batch:
        return (), {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
        if isinstance(inputs, dict):
            return (), inputs, target
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}, target
    raise InputError(
        f"a batch is a {type(batch).__name__}; it must be a pair of inputs and targets, or a dictionary with 'labels': "
        "give the loader a collate_fn that makes one"
    )


def run_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a model gives for a batch.

    Raises:
        InputError: The model does not take it, as it says itself.
    """
    try:
        return model(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = ", ".join(f"{leaf.dtype} {tuple(leaf.shape)}" for leaf in tensors) or "no tensor"
        alone = "" if size_of(args, kwargs) > 1 else (
            "; for a batch norm one sample may be too few: take another batch size, or a loader with drop_last=True"
        )  # fmt: skip
        raise InputError(
            f"the model fails on a batch of the data ({given}): {' '.join(str(error).split())}. Give inputs of the "
            f"shape and type that it was made for{alone}"
        ) from error


def size_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return how many samples the inputs hold."""
    return next((len(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim), 1)


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {layer: layer.training for layer in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
