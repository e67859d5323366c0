"""Where a runtime spends its time: the nodes of its own profile, by the modules of the model that they came from."""

from __future__ import annotations

import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import hypot

import numpy as np
import onnx

from fxprune.deploy.onnx import ExportReport
from fxprune.deploy.runtimes import KernelTime, Session, get_runtime, random_feeds
from fxprune.deploy.runtimes.base import Array

OUTSIDE = ""
"""Stands for what no module of the model asked for: changes of layout, and computing shapes."""

_LEAST_ROUNDS, _MOST_ROUNDS = 5, 100
_TICK = 1e-3  # milliseconds: profiles have whole microseconds
_STRETCH = 3.0  # milliseconds that a process surely runs without being interrupted, now and then
_MADE_BY_RUNTIME = re.compile(r"(_nchwc|_token_\d+|/[A-Za-z]*Fusion/?|_?fused.*)$", re.IGNORECASE)
_PRODUCTS = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "MatMul", "FusedMatMul", "FusedGemm"})


@dataclass(frozen=True)
class LayerTime:
    """What one module takes.

    Attributes:
        ms: Milliseconds of one inference.
        kernels: Operators that ran for it, as the runtime calls them, in order.
        scatter: Milliseconds by which a second measurement would differ.
    """

    ms: float
    kernels: tuple[str, ...]
    scatter: float = 0.0


def layer_times(
    files: Mapping[str, ExportReport],
    *,
    runtime: str,
    threads: int = 1,
    batch: int = 1,
    seconds: float = 3.0,
    seed: int = 0,
) -> dict[str, dict[str, LayerTime]]:
    """Profile files side by side and return for each what each module takes, by the module's path.

    Args:
        files: What was exported, by name.
        runtime: One with a profiler: onnxruntime or openvino.
        threads: Threads within an operator.
        batch: Batch size, where it is dynamic.
        seconds: Time at most, but for five rounds.
        seed: Seed of inputs and order.

    Raises:
        InputError: The runtime records no time per node.
        EnvironmentProblem: The runtime is missing.
    """
    chosen = get_runtime(runtime)
    sessions = {name: chosen.load(report.path, threads, profile=True) for name, report in files.items()}
    feeds = {name: random_feeds(session.inputs, batch=batch, seed=seed) for name, session in sessions.items()}
    spent = _run(sessions, feeds, seconds, seed)
    one_cpu_thread = chosen.clock(threads) == "cpu"
    found = {}
    for name, session in sessions.items():
        events = _by_kernel(session.profile())
        session.close()
        kernels = _kernel_ms(events, len(spent[name]))
        scatter = _scatter_ms(events, len(spent[name]))
        if one_cpu_thread:
            kernels = _without_waiting(kernels, float(np.median(spent[name])))
        found[name] = _by_module(kernels, scatter, _Origins(files[name]))
    return found


def _run(
    sessions: Mapping[str, Session], feeds: Mapping[str, Mapping[str, Array]], seconds: float, seed: int
) -> dict[str, list[float]]:
    """Run the sessions in turns and return the milliseconds of CPU time of every run."""
    order, shuffle, end = list(sessions), random.Random(seed).shuffle, time.monotonic() + seconds
    spent: dict[str, list[float]] = {name: [] for name in order}
    rounds = 0
    while rounds < _LEAST_ROUNDS or (rounds < _MOST_ROUNDS and time.monotonic() < end):
        shuffle(order)
        for name in order:
            start = time.process_time()
            sessions[name].run(feeds[name])
            spent[name].append((time.process_time() - start) * 1e3)
        rounds += 1
    return spent


def _by_kernel(events: list[KernelTime]) -> dict[KernelTime, list[float]]:
    """Return the milliseconds of each node in the order in which it ran."""
    times: dict[KernelTime, list[float]] = defaultdict(list)
    for event in events:
        times[replace(event, microseconds=0.0)].append(event.microseconds / 1e3)
    return times


def _kernel_ms(times: Mapping[KernelTime, list[float]], rounds: int) -> dict[KernelTime, float]:
    """Return the milliseconds per run of each node: its least time, as other work only ever adds to it."""
    return {kernel: min(found) * len(found) / rounds for kernel, found in times.items()}  # one in a loop runs often


def _scatter_ms(times: Mapping[KernelTime, list[float]], rounds: int) -> dict[KernelTime, float]:
    """Return by how much the least times of every other round differ, and by no less than what the profile can tell."""
    scatter = {}
    for kernel, found in times.items():
        each = max(1, len(found) // rounds)  # one in a loop runs often, and its turns may differ
        halves = [[ms for at, ms in enumerate(found) if at // each % 2 == half] or found for half in (0, 1)]
        scatter[kernel] = max(_TICK, abs(min(halves[0]) - min(halves[1]))) * len(found) / rounds
    return scatter


def _without_waiting(kernels: dict[KernelTime, float], cpu_ms: float) -> dict[KernelTime, float]:
    """Take off what long kernels waited for other work on the machine, so that all together take their CPU time.

    A kernel that takes longer than the system lets a process run at a stretch is interrupted every time, and not even
    its least time is its own; shorter ones have a run in which they were not.
    """
    long = {kernel for kernel, ms in kernels.items() if ms > _STRETCH}
    rest = sum(ms for kernel, ms in kernels.items() if kernel not in long)
    whole = sum(kernels[kernel] for kernel in long)
    if rest + whole <= cpu_ms or not long:
        return kernels
    factor = max(cpu_ms - rest, 0.1 * whole) / whole
    return {kernel: ms * (factor if kernel in long else 1.0) for kernel, ms in kernels.items()}


class _Origins:
    """Tells which module a node of the runtime's graph came from."""

    def __init__(self, report: ExportReport) -> None:
        self._modules = report.modules
        graph = onnx.load(report.path, load_external_data=False).graph
        self._nodes = {node.name: node for node in graph.node}
        self._makers = {value: node for node in graph.node for value in node.output}

    def module(self, event: KernelTime) -> str:
        """Return the path of the module, ``OUTSIDE`` where there is none.

        A fused node carries the name of the last value or node that went into it, such as an activation; the layer is
        found by going back from there to the product.
        """
        name = event.node
        while name not in self._nodes and name not in self._makers:
            shorter = _MADE_BY_RUNTIME.sub("", name)
            if shorter == name:
                return OUTSIDE
            name = shorter
        node = self._nodes.get(name) or self._makers[name]
        if event.op in _PRODUCTS:
            for earlier in self._back(node):
                if earlier.op_type in _PRODUCTS:
                    return self._modules.get(earlier.name, OUTSIDE)
        return self._modules.get(node.name, OUTSIDE)

    def _back(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        seen: set[str] = set()
        waiting = [node]
        while waiting:
            here = waiting.pop(0)
            if here.name in seen:
                continue
            seen.add(here.name)
            yield here
            waiting += [self._makers[value] for value in here.input if value in self._makers]


def _by_module(
    kernels: Mapping[KernelTime, float], scatter: Mapping[KernelTime, float], origins: _Origins
) -> dict[str, LayerTime]:
    found: dict[str, LayerTime] = {}
    for kernel, ms in kernels.items():
        path = origins.module(kernel)
        before = found.get(path, LayerTime(0.0, ()))
        uncertain = hypot(before.scatter, scatter[kernel])
        found[path] = LayerTime(before.ms + ms, (*before.kernels, kernel.op), uncertain)
    return found
