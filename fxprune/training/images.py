"""How images are held and read, and brought into the form that a model takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fxprune.errors import EnvironmentProblem, InputError

Images = Dataset[tuple[Tensor, int]]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ArrayImages(Dataset[tuple[Tensor, int]]):
    """Images in memory.

    Args:
        images: (count, channels, height, width), uint8 from 0 to ``top``.
        labels: (count,).
        top: Value of white; images are scaled to [-1, 1].
        transform: Applied to every float image when it is taken.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        top: float = 255.0,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images, self.targets = torch.from_numpy(images), labels.tolist()
        self.top, self.transform = top, transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].float() * (2 / self.top) - 1
        return image if self.transform is None else self.transform(image), self.targets[index]


@dataclass(frozen=True)
class Looks:
    """How images are brought into the form that a model takes."""

    size: int | None
    channels: int | None
    augment: bool
    mirror: bool

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise InputError(f"images cannot be {self.size} pixels wide; give a size of 1 or above")
        if self.channels not in (None, 1, 3):
            raise InputError(f"images cannot have {self.channels} channels; give 1 (grey) or 3 (colour)")

    def of_tensors(self, side: int, train: bool) -> Callable[[Tensor], Tensor] | None:
        """Return the transform of float images of that side, or None where there is nothing to do."""
        if self.size is None and self.channels is None and not (self.augment and train):
            return None
        v2 = _transforms()
        steps: list[Any] = [] if self.size is None else [v2.Resize(self.size, antialias=True)]
        if self.channels is not None:
            steps.append(v2.Grayscale(self.channels) if self.channels == 1 else v2.RGB())
        if self.augment and train:
            side = self.size or side
            steps.append(v2.RandomCrop(side, padding=max(1, side // 8), padding_mode="edge"))
            steps += [v2.RandomHorizontalFlip()] * self.mirror
        return _composed(v2, steps)

    def of_files(self, train: bool, side: int | None = None) -> Callable[[Any], Tensor]:
        """Return the transform of PIL images, with the mean and deviation that ImageNet models were trained with.

        Small images that all have one side are moved by an eighth of it; others are cropped at random sizes.
        """
        v2 = _transforms()
        steps: list[Any] = [v2.PILToTensor()]
        if self.augment and train and side is None:
            steps.append(v2.RandomResizedCrop(self.size, scale=(0.35, 1.0), antialias=True))
        elif self.size is not None:
            steps += [v2.Resize(self.size, antialias=True), v2.CenterCrop(self.size)]
        if self.augment and train:
            pixels = self.size or side or 0
            steps += [v2.RandomCrop(pixels, padding=max(1, pixels // 8))] * (side is not None)
            steps += [v2.RandomHorizontalFlip()] * self.mirror
        steps += [v2.RGB(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET)]
        if self.channels == 1:
            steps.append(v2.Grayscale(1))
        return _composed(v2, steps)


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise missing("torchvision", error) from error
    return v2


def _composed(v2: Any, steps: list[Any]) -> Callable[[Any], Tensor]:
    composed: Callable[[Any], Tensor] = v2.Compose(steps)
    return composed


def open_image(path: str) -> Any:
    """Read one image completely, so that a damaged one is found here, where its name is known."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # the decoders raise almost anything for a damaged file
        raise InputError(
            f"the image {path} cannot be read ({type(error).__name__}: {error}); it is damaged or no image: replace or "
            "remove it"
        ) from error


def missing(package: str, error: ImportError) -> EnvironmentProblem:
    """Return the error that says how to install an optional package."""
    return EnvironmentProblem(
        f"{package} cannot be imported here ({error}); it comes with pip install 'fxprune[train]'"
    )
