"""Labelled images to fine-tune on, from disk or made up: one training, validation and test set, always the same.

Nothing is ever downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from fxprune.errors import InputError
from fxprune.training.images import ArrayImages, Images, Looks, missing, open_image
from fxprune.training.shapes import SHAPES, make_shapes

VARIED = 224  # pixels, for images of many sizes
_LISTS = ("targets", "labels", "_labels")  # where data sets keep their labels
SPLIT_SEED = 0  # the sets stay the same whatever a training's seed is

# name on the command line -> class in torchvision.datasets, arguments of its training and its test set, and the side of
# its images where all have one
_TORCHVISION: dict[str, tuple[str, dict[str, Any], dict[str, Any], int | None]] = {
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}, 32),
    "cifar100": ("CIFAR100", {"train": True}, {"train": False}, 32),
    "mnist": ("MNIST", {"train": True}, {"train": False}, 28),
    "fashionmnist": ("FashionMNIST", {"train": True}, {"train": False}, 28),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}, 32),
    "stl10": ("STL10", {"split": "train"}, {"split": "test"}, 96),
    "flowers102": ("Flowers102", {"split": "train"}, {"split": "test"}, None),
    "food101": ("Food101", {"split": "train"}, {"split": "test"}, None),
    "gtsrb": ("GTSRB", {"split": "train"}, {"split": "test"}, None),
    "imagenette": ("Imagenette", {"split": "train"}, {"split": "val"}, None),
}
_MIRRORED_IS_ANOTHER = {"digits", "mnist", "svhn", "gtsrb"}  # characters and signs


@dataclass(frozen=True)
class Splits:
    """The three sets of one source.

    Attributes:
        name: The source as it was named.
        train: Pairs of (image as float32 (channels, height, width), class as int); of these, ``fraction``.
        validation: For choosing among models and for stopping early.
        test: For the figure at the end.
        classes: Names of the classes; labels index them.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]


def load_data(
    spec: str,
    *,
    fraction: float = 1.0,
    size: int | None = None,
    channels: int | None = None,
    augment: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Splits:
    """Return the training, validation and test set that a text names.

    ``digits``: 8 x 8 images of scikit-learn (1797). ``shapes``: 32 x 32 images of ten shapes, made up; arguments
    ``train``, ``validation``, ``test`` (counts), ``difficulty`` in [0, 1] and ``seed``. ``folder:PATH``, also
    ``imagefolder:PATH``: a folder for each class, or folders ``train``, ``val`` or ``validation``, and ``test`` with
    such folders in them. ``cifar10:PATH``, also ``torchvision:cifar10:PATH``, and other sets of torchvision, as they
    lie on the disk. What has no validation or test set gets one by a split of each class that never changes: 70:10:20,
    or 90:10 where there is a test set.

    Args:
        spec: Source, with its path behind a colon.
        fraction: Share of the training images to use, of every class alike, at least one each; a smaller share is a
            part of a larger one.
        size: Height and width in pixels; images are resized to it. Default: as they are where all have one size, else
            224.
        channels: 1 or 3; images are made grey, or repeated.
        augment: Move training images about, and mirror them where that leaves their class (random in torch's global
            generator).
        arguments: Arguments of ``shapes``.

    Raises:
        InputError: The source is unknown or not there, a set is empty, there is only one class, or an argument is out
            of range. A damaged image is named when it is read.
        EnvironmentProblem: A package that reads this source is not installed.
    """
    name, _, place = spec.removeprefix("torchvision:").partition(":")
    name = "folder" if name == "imagefolder" else name
    if not 0 < fraction <= 1:
        raise InputError(f"the fraction of training data is {fraction}; give a number above 0 and at most 1")
    looks = Looks(size, channels, augment, mirror=name not in _MIRRORED_IS_ANOTHER)
    if arguments and name != "shapes":
        raise InputError(f"the data {name!r} take no arguments, but {', '.join(arguments)} was given")
    if name == "digits" and not place:
        splits = _digits(looks)
    elif name == "shapes" and not place:
        splits = _shapes(looks, **(arguments or {}))
    elif name == "folder" and place:
        splits = _folder(Path(place), replace(looks, size=size or VARIED))
    elif name in _TORCHVISION and place:
        splits = _torchvision(name, Path(place), looks)
    else:
        raise InputError(
            f"there are no data {spec!r}; give digits, shapes, folder:PATH, or one of "
            f"{', '.join(f'{known}:PATH' for known in _TORCHVISION)}"
        )
    _check(splits, spec)
    return replace(splits, name=spec, train=_share(splits.train, fraction))


def labels_of(images: Dataset[Any]) -> npt.NDArray[np.int64]:
    """Return the labels of a set without reading its images where it lists them."""
    if isinstance(images, Subset):
        return labels_of(images.dataset)[np.asarray(images.indices, dtype=np.int64)]
    if (listed := _listed(images)) is not None:
        return np.asarray(listed, dtype=np.int64)
    count = len(images)  # type: ignore[arg-type] # a set with indices has a length
    return np.asarray([int(images[index][1]) for index in range(count)], dtype=np.int64)


def _listed(images: Any) -> Any:
    """Return the labels that a set has in one place, or None."""
    for name in _LISTS:
        if (found := getattr(images, name, None)) is not None:
            return found
    if not isinstance(images, TensorDataset) or len(images.tensors) != 2 or images.tensors[1].ndim != 1:
        return None
    labels = images.tensors[1]
    return None if labels.is_floating_point() or labels.is_complex() else labels.cpu()


def check_classes(images: Dataset[Any]) -> None:
    """Raise an ``InputError`` where a set lists its labels, and all are of one class."""
    base: Any = images
    while isinstance(base, Subset):
        base = base.dataset
    if _listed(base) is None:
        return  # only reading everything would tell
    labels = labels_of(images)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"all {len(labels)} training samples are of one class, so there is nothing to tell apart; give samples of "
            "two or more classes"
        )


def check_labels(labels: Tensor, outputs: int) -> None:
    """Raise an ``InputError`` unless every label names one of the model's outputs.

    Args:
        labels: Integers of any shape; negative ones other than -100, which the loss ignores, name nothing.
        outputs: Number of classes that the model tells apart.
    """
    valid = labels[labels != -100]
    if valid.numel() and (int(valid.max()) >= outputs or int(valid.min()) < 0):
        bad = int(valid.max()) if int(valid.max()) >= outputs else int(valid.min())
        raise InputError(
            f"a label is {bad}, but the model has {outputs} outputs, which stand for labels 0 to {outputs - 1}; give "
            "data with those classes, or a model whose last layer has as many outputs as there are classes"
        )


def _digits(looks: Looks) -> Splits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing("scikit-learn", error) from error
    found = load_digits()
    images = found.images.astype(np.uint8)[:, None]
    labels = found.target.astype(np.int64)
    sets = [
        ArrayImages(images[index], labels[index], 16.0, looks.of_tensors(8, train=part == 0))
        for part, index in enumerate(_split(labels, (0.7, 0.1, 0.2)))
    ]
    return Splits("digits", sets[0], sets[1], sets[2], tuple(str(name) for name in found.target_names))


def _shapes(looks: Looks, **arguments: Any) -> Splits:
    known = {"train": 5000, "validation": 1000, "test": 2000, "difficulty": 0.5, "seed": 0}
    if unknown := set(arguments) - set(known):
        raise InputError(f"shapes take no argument {sorted(unknown)[0]!r}; they take {', '.join(known)}")
    known |= arguments
    if not isinstance(known["seed"], int) or isinstance(known["seed"], bool) or known["seed"] < 0:
        raise InputError(f"shapes: seed={known['seed']!r} is no seed; give a whole number of 0 or above")
    if not isinstance(known["difficulty"], int | float) or isinstance(known["difficulty"], bool):
        raise InputError(f"shapes: difficulty={known['difficulty']!r} is no number; give one in [0, 1]")
    sets = []
    for part, name in enumerate(("train", "validation", "test")):
        if not isinstance(known[name], int) or isinstance(known[name], bool):
            raise InputError(f"shapes: {name}={known[name]!r} is no count; give a whole number")
        # A stream of its own for each set, so that the others stay as they are when one is made larger.
        images, labels = make_shapes(int(known[name]), int(known["seed"]) * 3 + part, float(known["difficulty"]))
        sets.append(ArrayImages(images, labels, transform=looks.of_tensors(32, train=part == 0)))
    return Splits("shapes", sets[0], sets[1], sets[2], SHAPES)


def _folder(root: Path, looks: Looks) -> Splits:
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; give the folder that holds a folder of images for each class")
    named = {part: next((root / n for n in names if (root / n).is_dir()), None) for part, names in _FOLDERS.items()}
    if named["train"] is None:
        plain, moved = (_image_folder(root, looks, train) for train in (False, True))
        index = _split(labels_of(plain), (0.7, 0.1, 0.2))
        return Splits(
            "folder", Subset(moved, index[0]), Subset(plain, index[1]), Subset(plain, index[2]), _names(plain)
        )
    plain, moved = (_image_folder(named["train"], looks, train) for train in (False, True))
    others = {part: _image_folder(place, looks, False) for part, place in named.items() if place and part != "train"}
    for part, images in others.items():
        if _names(images) != _names(plain):
            raise InputError(
                f"the classes in {named[part]} are {', '.join(_names(images)[:5])}, those in {named['train']} "
                f"{', '.join(_names(plain)[:5])}; both need the same folders"
            )
    if len(others) == 2:
        return Splits("folder", moved, others["validation"], others["test"], _names(plain))
    if not others:
        index = _split(labels_of(plain), (0.7, 0.1, 0.2))
        return Splits(
            "folder", Subset(moved, index[0]), Subset(plain, index[1]), Subset(plain, index[2]), _names(plain)
        )
    first, second = _split(labels_of(plain), (0.9, 0.1))
    held: Images = Subset(plain, second)
    sets = {"validation": held, "test": held} | others  # the one that is missing is taken from the training images
    return Splits("folder", Subset(moved, first), sets["validation"], sets["test"], _names(plain))


_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


def _image_folder(root: Path, looks: Looks, train: bool) -> Any:
    try:
        from torchvision.datasets import ImageFolder
    except ImportError as error:
        raise missing("torchvision", error) from error
    try:
        return ImageFolder(os.fspath(root), transform=looks.of_files(train), loader=open_image)
    except (FileNotFoundError, OSError) as error:
        raise InputError(
            f"{root} holds no images to learn from ({str(error).splitlines()[0]}); give a folder that holds a folder "
            "of images for each class"
        ) from error


def _torchvision(name: str, root: Path, looks: Looks) -> Splits:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise missing("torchvision", error) from error
    cls, of_train, of_test, side = _TORCHVISION[name]
    looks = looks if side else replace(looks, size=looks.size or VARIED)
    make = getattr(datasets, cls)
    try:
        moved = make(os.fspath(root), **of_train, transform=looks.of_files(True, side), download=False)
        plain = make(os.fspath(root), **of_train, transform=looks.of_files(False), download=False)
        test = make(os.fspath(root), **of_test, transform=looks.of_files(False), download=False)
    except Exception as error:  # each set has its own way to say that it is not there
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise InputError(
            f"{root} does not hold the data set {name} as torchvision.datasets.{cls} writes it "
            f"({type(error).__name__}: {reason}); fxprune never downloads: put the files there first"
        ) from error
    first, second = _split(labels_of(plain), (0.9, 0.1))
    return Splits(name, Subset(moved, first), Subset(plain, second), test, _names(plain))


def _names(images: Any) -> tuple[str, ...]:
    found = getattr(images, "classes", None)
    return tuple(map(str, found)) if found else tuple(map(str, sorted(set(labels_of(images).tolist()))))


def _split(labels: npt.NDArray[np.int64], shares: Sequence[float]) -> list[list[int]]:
    """Divide the indices of each class by the shares; every class is in the first part, and in order of the indices."""
    rng = np.random.default_rng(SPLIT_SEED)
    parts: list[list[int]] = [[] for _ in shares]
    for label in np.unique(labels):
        index = rng.permutation(np.flatnonzero(labels == label))
        ends = np.ceil(np.cumsum(shares) * len(index) - 1e-9).astype(int)
        for part, chunk in zip(parts, np.split(index, ends[:-1]), strict=True):
            part.extend(chunk.tolist())
    return [sorted(part) for part in parts]


def _share(images: Images, fraction: float) -> Images:
    if fraction == 1:
        return images
    return Subset(images, _split(labels_of(images), (fraction, 1 - fraction))[0])


def _check(splits: Splits, spec: str) -> None:
    for part in ("train", "validation", "test"):
        labels = labels_of(getattr(splits, part))
        if not len(labels):
            raise InputError(f"the {part} set of {spec} is empty; give more images, at least ten of each class")
        if part == "train" and len(np.unique(labels)) < 2:
            raise InputError(
                f"all {len(labels)} training images of {spec} are of one class, so there is nothing to tell apart; "
                "give a folder for each of two or more classes"
            )
