"""The layers of a model that can be timed alone, each as a shape that is built in torch or as an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fxprune.capture import Traced
from fxprune.planning.cost import Product, products

_OPSET = 18


@dataclass(frozen=True)
class LayerShape:
    """One layer as the runtime sees it.

    Attributes:
        kind: ``conv`` or ``linear``.
        outputs: Output channels.
        inputs: Input channels, of all groups.
        groups: Groups of a convolution.
        kernel: Its kernel; empty for a linear layer.
        stride: Its stride.
        padding: Its padding, at both ends of each dimension.
        dilation: Its dilation.
        rows: Sizes of the input without channels: the batch and space of a convolution, all but the last of a linear
            layer.
    """

    kind: str
    outputs: int
    inputs: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved alone, so that only one width counts."""
        return self.groups > 1

    def resized(self, outputs: int, inputs: int) -> LayerShape:
        """Return the layer with other widths; a grouped one keeps the channels of a group and loses groups."""
        if not self.depthwise:
            return replace(self, outputs=outputs, inputs=inputs)
        groups = max(1, round(self.groups * outputs / self.outputs))
        return replace(
            self,
            outputs=self.outputs // self.groups * groups,
            inputs=self.inputs // self.groups * groups,
            groups=groups,
        )

    def layer(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Return the layer in torch, without a bias, and the sizes of its input."""
        if self.kind == "linear":
            return nn.Linear(self.inputs, self.outputs, bias=False).eval(), (*self.rows, self.inputs)
        kinds: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        layer = kinds[len(self.kernel)](self.inputs, self.outputs, self.kernel, **options, bias=False)
        return layer.eval(), (self.rows[0], self.inputs, *self.rows[1:])

    def model(self) -> onnx.ModelProto:
        """Return an ONNX file that holds just this layer."""
        generator = np.random.default_rng(0)
        if self.kind == "conv":
            weight = generator.standard_normal((self.outputs, self.inputs // self.groups, *self.kernel))
            shape = [self.rows[0], self.inputs, *self.rows[1:]]
            node = helper.make_node(
                "Conv",
                ["x", "w"],
                ["y"],
                group=self.groups,
                strides=self.stride,
                pads=[*self.padding, *self.padding],
                dilations=self.dilation,
            )
        else:
            weight = generator.standard_normal((self.inputs, self.outputs))
            shape = [*self.rows, self.inputs]
            node = helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array((weight * 0.05).astype(np.float32), "w")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)


def shape_of_layer(traced: Traced, product: Product, batch: int) -> LayerShape | None:
    """Return the shape of a product's layer; None where it is no convolution or linear layer with a zero padding."""
    node = product.node
    if node.op != "call_module":
        return None
    layer: Any = traced.module.get_submodule(str(node.target))
    source: Any = node.args[0]
    sizes = [int(size) for size in source.meta["val"].shape]
    rows = [batch if size == traced.batch and d == 0 else size for d, size in enumerate(sizes)]
    if isinstance(layer, nn.Linear):
        return LayerShape("linear", layer.out_features, layer.in_features, 1, (), (), (), (), tuple(rows[:-1]))
    plain = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and len(sizes) == 2 + len(layer.kernel_size)
    if not plain or layer.padding_mode != "zeros":
        return None
    padding = tuple(layer._reversed_padding_repeated_twice[::-2])
    return LayerShape(
        "conv",
        layer.out_channels,
        layer.in_channels,
        layer.groups,
        tuple(layer.kernel_size),
        tuple(layer.stride),
        padding,
        tuple(layer.dilation),
        (rows[0], *rows[2:]),
    )


def layer_shapes(traced: Traced, batch: int) -> dict[str, LayerShape]:
    """Return the shape of every layer that can be probed, by node name."""
    found = {}
    for product in products(traced):
        shape = shape_of_layer(traced, product, batch)
        if shape is not None:
            found[product.node.name] = shape
    return found
