"""A model that was captured by region as ONNX files, one for each region, compared and measured one by one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.capture.regions import Call, part
from fxprune.deploy.latency import Latency, measure_latency
from fxprune.deploy.latency_budget import takes_files
from fxprune.deploy.onnx import ExportReport, export_onnx, size_name
from fxprune.deploy.parity import Parity, check_parity
from fxprune.deploy.runtimes import DEFAULT_RUNTIME
from fxprune.errors import InputError


@dataclass(frozen=True)
class RegionFile:
    """A region as a file.

    Attributes:
        call: Which region, at the largest sizes that it is called with.
        traced: Its graph by itself.
        export: The file.
        batch: How many samples the model gives it at once, so that is what it is measured with.
        times: How many runs at these sizes one forward of the model amounts to, by the elements that go in.
        tensors: Which of what the sub-module is called with are tensors, and so inputs of the file.
    """

    call: Call
    traced: Traced
    export: ExportReport
    batch: int
    times: float
    tensors: list[bool]

    @property
    def inputs(self) -> dict[str, str]:
        """The place of each of the file's inputs in what the sub-module is called with: positional, then keyword."""
        return _placed(self.export.inputs, self.call.nested, self.tensors)

    @property
    def outputs(self) -> dict[str, str]:
        """The place of each of the file's outputs in what the sub-module returns."""
        leaves: Any = self.traced.module.graph.output_node().args[0]
        return _placed(self.export.outputs, self.call.returned, [isinstance(leaf, fx.Node) for leaf in leaves])

    def check(self, *, seed: int = 0) -> Parity:
        """Compare the file with the graph; see :func:`fxprune.check_parity`."""
        return check_parity(self.traced, self.export.path, seed=seed)

    def measure(self, baseline: RegionFile, *, runtime: str = DEFAULT_RUNTIME, **options: Any) -> Latency:
        """Measure it beside another file of the same region, at the sizes that the model calls it with."""
        sizes = {
            size_name(number, d): size
            for number, leaf in enumerate(self.traced.args)
            for d, size in enumerate(leaf.shape)
            if d > 0
        }
        pair: list[Any] = [file.export.path if takes_files(runtime) else file.traced for file in (self, baseline)]
        return measure_latency(*pair, runtime=runtime, batch=self.batch, sizes=sizes, **options)


def _placed(names: Sequence[str], nested: pytree.TreeSpec, tensors: list[bool]) -> dict[str, str]:
    """Return names with the places of the leaves that are tensors, as Python spells them: ``[0]['pool']``."""
    tree = pytree.tree_unflatten(list(range(nested.num_leaves)), nested)
    places = [pytree.keystr(path) for path, number in pytree.tree_leaves_with_path(tree) if tensors[number]]
    return dict(zip(names, places, strict=True)) if len(names) == len(places) else {}


def export_regions(
    traced: Traced,
    folder: str | os.PathLike[str],
    *,
    stem: str = "model",
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[RegionFile]:
    """Write every region of a model that was captured by region as an ONNX file of its own.

    A file takes the tensors that the sub-module does and returns what that does, one by one, in the order of
    ``torch.utils._pytree`` (dictionaries by the order of their keys). It is called ``model.PATH.onnx``, and
    ``model.PATH-2.onnx`` where a second kind of inputs led to another graph.

    Args:
        traced: The capture.
        folder: Where to write; it must exist.
        stem: What the names begin with.
        opset: Version of the operator set; None takes the exporter's default.
        metadata: Entries for each file's ``metadata_props``; the region is added.

    Raises:
        InputError: The model was captured whole, or a region cannot be exported.
        VerifyError: The exporter fixed the batch of a region whose batch is dynamic.
    """
    if traced.regions is None:
        raise InputError(f"{traced.name} was captured whole, and makes one file: use export_onnx")
    found = []
    for call in traced.regions.variants():
        mine = part(traced, call)
        path = Path(folder) / f"{stem}.{call.name}.onnx"
        about = {**(metadata or {}), "region": call.path}
        export = export_onnx(mine, path, opset=opset, metadata=about)
        tensors = [isinstance(leaf, Tensor) for leaf in traced.args[call.inputs]]
        fewer = mine.batch_is_dynamic and call.times < 1  # a single sample was taken for two
        batch = max(1, round(mine.batch * call.times)) if fewer else mine.batch
        times = _times(traced, call) * mine.batch / batch
        found.append(RegionFile(call, mine, export, batch, times, tensors))
    return found


def _times(traced: Traced, first: Call) -> float:
    def elements(call: Call) -> int:
        return sum(leaf.numel() for leaf in traced.args[call.inputs] if isinstance(leaf, Tensor))

    assert traced.regions is not None
    calls = [c for c in traced.regions.calls if (c.path, c.variant) == (first.path, first.variant)]
    return sum(call.times * elements(call) for call in calls) / max(1, elements(first))
