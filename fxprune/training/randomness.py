"""Random numbers that can be repeated: states of the global generators, and seeds that follow from their use."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def derived_seed(*keys: int) -> int:
    """Return a seed of 63 bits that depends on all keys, which must not be negative."""
    words = np.random.SeedSequence((len(keys), *keys)).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def seed_all(seed: int, devices: bool = True) -> None:
    """Seed the global generators of Python, numpy and torch, on the CPU or on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators on the CPU for a while; they go on afterwards as if nothing had been."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(seed, devices=False)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def capture_states() -> dict[str, Any]:
    """Return the states of this process's global generators as tensors and numbers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_states(states: dict[str, Any]) -> None:
    """Take back what :func:`capture_states` gave; a state of a device that is not here is left out."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
