"""What every test shares."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples each time, however long each takes; --hypothesis-profile=default draws others.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's job in the background ignores it, and tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests run many at a time on few cores; more threads would make each slower."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured layers come from no earlier run and go into no user's cache, in processes that tests start neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FXPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="module")
def older_objects_set_aside() -> None:
    """What earlier modules left alive is not looked through again by each full collection.

    Imports and what torch remembers of captures grow to millions of objects, which take seconds to look through, and
    accelerate collects at the end of every training. What can go is collected first, so that it is still reported.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let everything go at the end: libraries look then for what is left of theirs, and call it a leak."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Weights are random in many tests, and the same in each run."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """What several tests share is the same too, whatever ran before: which worker runs it depends on times."""
    if fixturedef.scope != "function":
        torch.manual_seed(0)
