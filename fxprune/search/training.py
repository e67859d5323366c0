"""The training that a search brings along: labelled images by name, and a recipe to fine-tune on them.

What chooses the network is accuracy on the validation set; the test set is not touched before the search is over.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.errors import InputError
from fxprune.training import Recipe, Splits, evaluate, finetune, load_data


@dataclass(frozen=True)
class DataTraining:
    """Trains on a data set and evaluates on its validation set; can be pickled.

    Attributes:
        data: Source, as :func:`fxprune.training.load_data` takes it.
        recipe: How to train; the number of epochs and the seed are the trial's.
        fraction: Share of the training images.
        channels: Of the images; None: as they are.
        augment: Whether training images are moved about and mirrored.
        arguments: Arguments of the source.
    """

    data: str
    recipe: Recipe = field(default_factory=Recipe)
    fraction: float = 1.0
    channels: int | None = None
    augment: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __call__(self, model: nn.Module, resolution: int | None, epochs: int, folder: Path, seed: int = 0) -> float:
        """Train in place, going on from a checkpoint in the folder, and return the accuracy on validation images."""
        splits = self.splits(resolution)
        recipe = replace(self.recipe, epochs=max(epochs, 1), seed=seed)
        train_in_place(model, splits.train, recipe, folder, skip=not epochs)
        return evaluate(model, splits.validation)["accuracy"]

    def test(self, model: nn.Module, resolution: int | None) -> float:
        """Return the accuracy on images that neither trained nor chose the network."""
        return evaluate(model, self.splits(resolution).test)["accuracy"]

    def splits(self, resolution: int | None) -> Splits:
        """Return the three sets at a resolution.

        Raises:
            InputError: There are no such data.
        """
        return _splits(self, resolution)

    def describe(self) -> dict[str, Any]:
        """Return what the accuracies follow from, as plain data."""
        return {**asdict(replace(self, recipe=Recipe())), "recipe": self.recipe.describe()} | {
            "arguments": dict(self.arguments)
        }


@functools.lru_cache(maxsize=4)
def _splits(training: DataTraining, resolution: int | None) -> Splits:
    return load_data(
        training.data,
        fraction=training.fraction,
        size=resolution,
        channels=training.channels,
        augment=training.augment,
        arguments=training.arguments or None,
    )


def train_in_place(model: nn.Module, train: Any, recipe: Recipe, folder: Path, *, skip: bool = False) -> None:
    """Fine-tune a module's own parameters, with a checkpoint in a folder that is gone on from.

    Args:
        model: What is trained.
        train: Data, as for :func:`fxprune.training.finetune`.
        recipe: How.
        folder: For the checkpoint, which belongs to this training alone.
        skip: Leave it as it is.
    """
    if skip:
        return
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("the model has no parameters that can be trained; set requires_grad on some")
    trained = finetune(model, train, None, recipe, out=folder / "training")
    model.load_state_dict(trained.module.state_dict())


def digest_of(path: Path) -> str:
    """Return the sha256 digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
