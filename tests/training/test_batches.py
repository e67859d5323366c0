"""Which samples make up each step, whoever asks and whenever."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from fxprune.errors import InputError
from fxprune.training.batches import Batches, Fetch, as_loader


class Noisy(Dataset[Any]):
    """Samples that are random each time they are taken, from all three generators."""

    def __init__(self, count: int, broken: int = -1) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.broken:
            raise InputError(f"the image {index} cannot be read")
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def _loader(count: int = 22, size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(count), batch_size=size, **{"shuffle": True, **options})


def _indices(steps: list[list[Fetch]]) -> list[list[tuple[int, ...]]]:
    return [[fetch.indices for fetch in step] for step in steps]


def _all(batches: Batches, epoch: int) -> torch.Tensor:
    return torch.cat(list(batches.load([fetch for step in batches.steps(epoch) for fetch in step])))


def test_order_follows_from_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = Batches(_loader(), seed=3).steps(1)
    torch.manual_seed(2)
    assert Batches(_loader(), seed=3).steps(1) == first
    assert _indices(Batches(_loader(), seed=3).steps(2)) != _indices(first)
    assert _indices(Batches(_loader(), seed=4).steps(1)) != _indices(first)
    assert sorted(index for step in first for fetch in step for index in fetch.indices) == list(range(22))


def test_a_generator_of_the_loaders_own_is_seeded_too() -> None:
    loaders = [_loader(generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    assert Batches(loaders[0], seed=3).steps(0) == Batches(loaders[1], seed=3).steps(0)
    data = Noisy(22)
    samplers = [RandomSampler(data, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    loaders = [DataLoader(data, batch_sampler=BatchSampler(sampler, 4, drop_last=False)) for sampler in samplers]
    assert Batches(loaders[0], seed=3).steps(0) == Batches(loaders[1], seed=3).steps(0)


def test_batches_leave_the_global_generators_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _all(Batches(_loader(), seed=0), 0)
    assert torch.equal(torch.rand(3), expected)


def test_random_transforms_do_not_depend_on_what_was_loaded_before() -> None:
    batches = Batches(_loader(), seed=0)
    everything = _all(batches, 0)
    rest = [fetch for step in batches.steps(0)[3:] for fetch in step]
    assert torch.equal(torch.cat(list(batches.load(rest))), everything[12:])


def test_workers_give_the_same_samples() -> None:
    plain = Batches(_loader(), seed=0)
    many = Batches(_loader(num_workers=2, multiprocessing_context="fork"), seed=0)
    assert torch.equal(_all(plain, 0), _all(many, 0))


@pytest.mark.parametrize("count", [16, 20, 22, 23])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_take_the_steps_of_one_with_larger_batches(count: int, processes: int) -> None:
    loader = _loader(count, 4, shuffle=False)
    ranks = [Batches(loader, 0, processes=processes, rank=rank).steps(0) for rank in range(processes)]
    one = Batches(_loader(count, 4 * processes, shuffle=False), 0).steps(0)
    together = [
        sorted(index for step in steps for fetch in step for index in fetch.indices)
        for steps in zip(*ranks, strict=True)
    ]
    expected = [sorted(index for fetch in step for index in fetch.indices) for step in one]
    assert len(together) == len(expected)
    assert together[:-1] == expected[:-1]
    assert set(together[-1]) <= set(expected[-1])
    assert len(expected[-1]) - len(together[-1]) < processes
    assert len({tuple(len(f.indices) for s in steps for f in s) for steps in ranks}) == 1  # all ranks alike


@pytest.mark.parametrize("wrapped", [False, True])
def test_samples_are_random_in_the_same_way_in_one_process_and_in_two(wrapped: bool) -> None:
    data: Dataset[Any] = Subset(Noisy(30), range(22)) if wrapped else Noisy(22)
    small, large = (DataLoader(data, batch_size=size, shuffle=True) for size in (4, 8))
    ranks = [list(Batches(small, 0, processes=2, rank=rank).load(_flat(small, rank))) for rank in range(2)]
    together = torch.cat([part for parts in zip(*ranks, strict=True) for part in parts])
    assert torch.equal(together, _all(Batches(large, 0), 0))


def _flat(loader: DataLoader[Any], rank: int) -> list[Fetch]:
    return [fetch for step in Batches(loader, 0, processes=2, rank=rank).steps(0) for fetch in step]


def test_a_sample_taken_twice_differs_and_so_does_another_epoch() -> None:
    data = Noisy(1)
    batches = Batches(DataLoader(data, batch_size=2, sampler=RandomSampler(data, True, num_samples=4)), 0)
    values = torch.cat([_all(batches, 0), _all(batches, 1)])
    assert len(values[:, 1].unique()) == len(values[:, 3].unique()) == 8


class Whole(Noisy):
    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return [torch.rand(2) + index for index in indices]


def test_a_dataset_that_gives_whole_batches_is_asked_for_them() -> None:
    batches = Batches(DataLoader(Whole(8), batch_size=4), 0)
    assert _all(batches, 0).shape == (8, 2)
    assert torch.equal(_all(batches, 0), _all(batches, 0))


def test_incomplete_batches_are_dropped_where_the_loader_does() -> None:
    steps = Batches(_loader(23, 4, drop_last=True), 0, processes=2).steps(0)
    assert [[len(fetch.indices) for fetch in step] for step in steps] == [[4], [4]]


def test_accumulated_batches_share_a_step() -> None:
    steps = Batches(_loader(22, 4), 0, accumulate=4).steps(0)
    assert [len(step) for step in steps] == [4, 2]


def test_parts_cover_everything_once() -> None:
    parts = [Batches(_loader(23, 4), 0, processes=3, rank=rank).parts() for rank in range(3)]
    assert sorted(index for part in parts for fetch in part for index in fetch.indices) == list(range(23))


def test_the_checksum_tells_orders_apart() -> None:
    batches = Batches(_loader(), 0)
    assert batches.checksum(0) == Batches(_loader(), 0).checksum(0) != batches.checksum(1)
    assert Batches(_loader(23), 0).checksum(0) != batches.checksum(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_dataset_refuses_is_said_in_its_words(workers: int) -> None:
    context = "fork" if workers else None
    loader = DataLoader(Noisy(8, broken=5), batch_size=4, num_workers=workers, multiprocessing_context=context)
    with pytest.raises(InputError) as caught:
        _all(Batches(loader, 0), 0)
    assert str(caught.value) == "the image 5 cannot be read"


class Broken(Noisy):
    """A dataset of a user's own with a mistake in it."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return super().__getitem__(index) if index != 13 else torch.tensor(int("thirteen"))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_fails_in_a_dataset_names_the_sample(workers: int) -> None:
    loader = DataLoader(Broken(20), batch_size=4, num_workers=workers)
    with pytest.raises(ValueError, match="thirteen") as caught:
        list(_all(Batches(loader, seed=0), 0))
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])  # a worker's is text already
    assert "This is sample 13 of a Broken that was given as data." in said


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(4))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "are a int"),
        (DataLoader(Stream()), "come as a stream"),
        (DataLoader(Noisy(4), batch_size=None), "come as a stream"),
        (Noisy(0), "hold no batch: 0 samples"),
        (DataLoader(Noisy(3), batch_size=4, drop_last=True), "hold no batch: 3 samples"),
        (
            DataLoader(Noisy(4), sampler=DistributedSampler(Noisy(4), num_replicas=2, rank=0)),
            "divides its data among processes",
        ),
    ],
)
def test_data_that_cannot_be_gone_through_again(data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        as_loader(data, 4, True, "training")


def test_a_dataset_becomes_a_loader() -> None:
    loader = as_loader(TensorDataset(torch.zeros(5, 2)), 2, False, "training")
    assert [len(indices) for indices in Batches(loader, 0).parts() for indices in [indices.indices]] == [2, 2, 1]


def test_too_many_processes_for_the_data() -> None:
    with pytest.raises(InputError, match="no full batch for 8 processes"):
        Batches(_loader(5, 4), 0, processes=8).steps(0)
