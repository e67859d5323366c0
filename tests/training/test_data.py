"""Where data come from, how they are split, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from fxprune.errors import InputError
from fxprune.training.data import check_labels, labels_of, load_data

SMALL = {"train": 60, "validation": 20, "test": 20}


def _images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10, size: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 255, (size, size + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_digits() -> None:
    splits = load_data("digits")
    sizes = [len(labels_of(part)) for part in (splits.train, splits.validation, splits.test)]
    assert sum(sizes) == 1797
    assert sizes[0] / 1797 == pytest.approx(0.7, abs=0.01)
    image, label = splits.train[0]
    assert image.shape == (1, 8, 8)
    assert -1 <= float(image.min()) < float(image.max()) <= 1
    assert isinstance(label, int)
    assert splits.classes == tuple("0123456789")


def test_size_and_channels() -> None:
    image, _ = load_data("digits", size=16, channels=3).test[0]
    assert image.shape == (3, 16, 16)
    image, _ = load_data("shapes", channels=1, arguments=SMALL).test[0]
    assert image.shape == (1, 32, 32)


def test_shapes_take_arguments_and_the_sets_do_not_depend_on_each_other() -> None:
    small = load_data("shapes", arguments=SMALL)
    large = load_data("shapes", arguments=SMALL | {"train": 80})
    assert len(labels_of(large.train)) == 80
    assert all(torch.equal(small.test[i][0], large.test[i][0]) for i in range(20))
    assert not torch.equal(small.test[0][0], small.validation[0][0])
    with pytest.raises(InputError, match="'colour'"):
        load_data("shapes", arguments={"colour": 1})
    with pytest.raises(InputError, match="no count"):
        load_data("shapes", arguments={"train": "many"})
    for bad in ({"seed": "x"}, {"seed": -1}, {"difficulty": "hard"}, {"difficulty": 2}):
        with pytest.raises(InputError, match=r"seed|difficulty"):
            load_data("shapes", arguments=SMALL | bad)


def test_a_fraction_is_of_every_class_and_nested() -> None:
    full = load_data("digits")

    def chosen(fraction: float) -> set[int]:
        part = load_data("digits", fraction=fraction).train
        assert set(labels_of(part)) == set(range(10))
        return set(part.indices)  # type: ignore[attr-defined]

    tenth, fifth = chosen(0.1), chosen(0.2)
    assert tenth < fifth
    assert len(tenth) == pytest.approx(len(labels_of(full.train)) / 10, abs=10)
    assert len(chosen(1e-6)) == 10
    with pytest.raises(InputError, match="fraction"):
        load_data("digits", fraction=0)


def test_augmentation_moves_training_images_only() -> None:
    splits = load_data("shapes", augment=True, arguments=SMALL)
    assert not torch.equal(splits.train[0][0], splits.train[0][0]) or not torch.equal(
        splits.train[1][0], splits.train[1][0]
    )
    assert torch.equal(splits.test[0][0], splits.test[0][0])


def test_a_folder_of_classes_is_split(tmp_path: Path) -> None:
    splits = load_data(f"folder:{_images(tmp_path)}", size=8)
    assert splits.classes == ("cat", "dog")
    assert [len(labels_of(part)) for part in (splits.train, splits.validation, splits.test)] == [14, 2, 4]
    image, label = splits.test[0]
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.float32
    assert label in (0, 1)


def test_a_folder_with_its_own_sets(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 3), ("test", 4)):
        _images(tmp_path / part, count=count)
    splits = load_data(f"folder:{tmp_path}", size=8, augment=True)
    assert [len(labels_of(part)) for part in (splits.train, splits.validation, splits.test)] == [20, 6, 8]
    assert splits.train[0][0].shape == (3, 8, 8)


def test_sets_with_other_classes_are_refused(tmp_path: Path) -> None:
    _images(tmp_path / "train")
    _images(tmp_path / "val", ("cat", "cow"))
    with pytest.raises(InputError, match="same folders"):
        load_data(f"folder:{tmp_path}", size=8)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    root = _images(tmp_path)
    for name in ("cat", "dog"):
        for path in (root / name).iterdir():
            path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"(cat|dog)/\d\.png cannot be read") as caught:
        load_data(f"folder:{root}", size=8).train[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nothing", "there are no data 'nothing'"),
        ("digits:here", "there are no data"),
        ("folder", "there are no data"),
        ("folder:{tmp}/absent", "there is no folder"),
        ("folder:{tmp}/empty", "holds no images"),
        ("folder:{tmp}/hollow", "holds no images"),
        ("folder:{tmp}/one", "of one class"),
        ("folder:{tmp}/few", "validation set of .* is empty"),
        ("cifar10:{tmp}/empty", "never downloads"),
    ],
)
def test_what_cannot_be_learned_from(tmp_path: Path, spec: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    _images(tmp_path / "one", ("cat",))
    _images(tmp_path / "few", count=1)
    with pytest.raises(InputError, match=words) as caught:
        load_data(spec.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_set_of_torchvision_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    names = [name for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list]
    for name in names:
        values = {"data": np.zeros((20, 3072), dtype=np.uint8), "labels": 2 * list(range(10))}
        (folder / name).write_bytes(pickle.dumps(values))
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "meta", "key": "names", "md5": None})
    (folder / "meta").write_bytes(pickle.dumps({"names": [f"class {i}" for i in range(10)]}))
    splits = load_data(f"cifar10:{tmp_path}", augment=True)
    assert [len(labels_of(part)) for part in (splits.train, splits.validation, splits.test)] == [90, 10, 20]
    assert splits.classes[3] == "class 3"
    assert splits.train[0][0].shape == (3, 32, 32)


def test_labels_are_read_without_images() -> None:
    data = TensorDataset(torch.zeros(4, 1), torch.tensor([3, 1, 2, 0]))
    assert labels_of(data).tolist() == [3, 1, 2, 0]


def test_labels_must_be_outputs() -> None:
    check_labels(torch.tensor([0, 4, -100]), 5)
    for labels in ([0, 5], [-1, 2]):
        with pytest.raises(InputError, match=f"a label is {5 if 5 in labels else -1}, but the model has 5 outputs"):
            check_labels(torch.tensor(labels), 5)


def test_a_folder_with_training_images_alone_is_split_in_three_parts_that_share_nothing(tmp_path: Path) -> None:
    _images(tmp_path / "train", count=20)
    splits = load_data(f"folder:{tmp_path}", size=8)
    parts = [set(part.indices) for part in (splits.train, splits.validation, splits.test)]  # type: ignore[attr-defined]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) <= 40
