"""Which samples make up each step, as a function of seed and epoch alone.

The loader's own sampler decides the order, asked under a seed that follows from the epoch, and so a training can go on
in the middle of an epoch without storing more than two numbers. Random transforms are seeded for each sample, so that
they do not depend on prefetching, on workers or processes, or on where a training was interrupted. That is why batches
are not divided by accelerate, whose loaders draw from the global generators ahead of their use.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset

from fxprune.errors import FxPruneError, InputError
from fxprune.training.randomness import derived_seed, seed_all, seeded

ORDER, CONTENT = 1, 2  # what a derived seed is for


@dataclass(frozen=True)
class Fetch:
    """One batch of one process: the samples, the place of the first in the epoch, and the seed of their transforms."""

    indices: tuple[int, ...]
    start: int
    seed: int


class SeededDataset(Dataset[Any]):
    """A dataset that is asked for whole batches, each sample under a seed of its own.

    A dataset that can only give whole batches at a time (``__getitems__``) has one seed for each.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, fetch: Fetch) -> list[Any]:
        """Return the samples of one batch; torch's loaders call this with what the batch sampler gives."""
        with seeded(derived_seed(fetch.seed, fetch.start)):
            if (several := _several(self.dataset)) is not None:
                return several(list(fetch.indices))
            samples = []
            for place, index in enumerate(fetch.indices, fetch.start):
                seed_all(derived_seed(fetch.seed, place), devices=False)
                try:
                    samples.append(self.dataset[index])
                except FxPruneError:
                    raise  # it names the sample itself
                except Exception as error:
                    error.add_note(f"This is sample {index} of a {type(self.dataset).__name__} that was given as data.")
                    raise
            return samples


def _several(dataset: Any) -> Callable[[list[int]], list[Any]] | None:
    """Return what gives many samples at once, unless it takes them one by one, as a subset mostly does."""
    base = dataset
    while isinstance(base, Subset):
        base = base.dataset
    return dataset.__getitems__ if hasattr(base, "__getitems__") else None


def as_loader(data: Any, batch_size: int, shuffle: bool, what: str) -> DataLoader[Any]:
    """Return data as a loader whose samples can be asked for by index.

    Raises:
        InputError: The data are no dataset or loader, have no indices or batches, are empty, or are divided among
            processes already.
    """
    if isinstance(data, DataLoader):
        loader = data
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        loader = DataLoader(data, batch_size=batch_size, shuffle=shuffle and len(data) > 0)
    else:
        raise InputError(f"the {what} data are a {type(data).__name__}; give a DataLoader or a dataset with a length")
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        raise InputError(
            f"the {what} data come as a stream without indices or batches, so that a training could not go on where it "
            "was interrupted; give a dataset with __getitem__ and a loader with a batch_size"
        )
    if isinstance(loader.sampler, DistributedSampler):
        raise InputError(
            f"the {what} loader divides its data among processes; give a plain loader, which finetune divides"
        )
    if len(loader) == 0:
        raise InputError(f"the {what} data hold no batch: {len(loader.dataset)} samples; give more, or a smaller batch")  # type: ignore[arg-type]
    return loader


class Batches:
    """The batches of one process, epoch by epoch.

    Every step of P processes takes P consecutive batches of the loader, one each; what is left at the end is divided
    evenly (a remainder of fewer than P samples is dropped, and all of it where the loader drops incomplete batches). So
    P processes with batches of b samples take the steps of one process with batches of P b.

    Args:
        loader: Of all samples; its sampler, collate function and workers are used.
        seed: Of order and transforms.
        accumulate: Batches per step of the optimiser, in each process.
        processes: How many there are.
        rank: Which this one is.
    """

    def __init__(
        self, loader: DataLoader[Any], seed: int, accumulate: int = 1, processes: int = 1, rank: int = 0
    ) -> None:
        self._loader, self._seed, self._accumulate = loader, seed, accumulate
        self._processes, self._rank = processes, rank

    def steps(self, epoch: int) -> list[list[Fetch]]:
        """Return for each step of the optimiser the batches that this process takes."""
        shared = _divided(self._order(epoch), self._processes, self._loader.drop_last)
        seed, start, mine = derived_seed(self._seed, CONTENT, epoch), 0, list[Fetch]()
        for parts in shared:
            before = sum(map(len, parts[: self._rank]))
            mine.append(Fetch(tuple(parts[self._rank]), start + before, seed))
            start += sum(map(len, parts))
        if not mine:
            raise InputError(
                f"an epoch has no full batch for {self._processes} processes; give more data, smaller batches or fewer "
                "processes"
            )
        return [mine[start : start + self._accumulate] for start in range(0, len(mine), self._accumulate)]

    def checksum(self, epoch: int) -> int:
        """Return a number that tells one order of samples from another."""
        return zlib.crc32(repr(self._order(epoch)).encode())

    def parts(self) -> list[Fetch]:
        """Return every processes'th batch of the loader, undivided: for sums over all samples, not for training."""
        return [
            Fetch(tuple(indices), position, derived_seed(self._seed, CONTENT))
            for position, indices in enumerate(self._order(0))
            if position % self._processes == self._rank
        ]

    def load(self, fetches: Sequence[Fetch]) -> Iterator[Any]:
        """Yield the collated batches.

        Raises:
            FxPruneError: What the dataset refuses, as it says it, also from within a worker.
        """
        loader, workers = self._loader, self._loader.num_workers
        iterator = DataLoader(
            SeededDataset(loader.dataset),
            batch_sampler=fetches,  # type: ignore[arg-type] # what SeededDataset understands
            num_workers=workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context if workers else None,
            generator=torch.Generator(),  # else it would draw from the global one, whose state is the training's
            prefetch_factor=loader.prefetch_factor if workers else None,
        )
        try:
            yield from iterator
        except FxPruneError as error:  # a worker adds its traceback to the text
            last = str(error).strip().splitlines()[-1]
            raise type(error)(last.split(f"{type(error).__name__}: ")[-1]) from error

    def _order(self, epoch: int) -> list[list[int]]:
        seed = derived_seed(self._seed, ORDER, epoch)
        batches = self._loader.batch_sampler
        assert batches is not None  # as_loader refuses it
        for sampler in (batches, getattr(batches, "sampler", None)):
            if isinstance(generator := getattr(sampler, "generator", None), torch.Generator):
                generator.manual_seed(seed)
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)
        with seeded(seed):
            return [[int(index) for index in indices] for indices in batches]


def _divided(batches: list[list[int]], processes: int, drop_last: bool) -> list[list[list[int]]]:
    """Return one batch for each process at every position."""
    whole = len(batches) - len(batches) % processes
    shared = [batches[start : start + processes] for start in range(0, whole, processes)]
    if shared and len({len(part) for part in shared[-1]}) > 1:  # the last batch is smaller than those beside it
        whole -= processes
        shared.pop()
    rest = [index for part in batches[whole:] for index in part]
    each = len(rest) // processes
    if each and not drop_last:
        shared.append([rest[rank * each : (rank + 1) * each] for rank in range(processes)])
    return shared
