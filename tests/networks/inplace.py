"""In-place operators, on tensors and on views."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from torch import Tensor, nn

from tests.networks.parts import Body, conv
from tests.networks.registry import IMAGE, network


@network(IMAGE, "stem.weight:0 c.weight:1")
class InplaceSlice(Body):
    """The write to a slice is seen by the whole."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, :4] *= 3
        x[:, 2:].relu_()
        return self.classify(self.c(x))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class InplaceAdd(Body):
    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, :4] += 1
        return self.classify(self.c(x))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class InplaceView(Body):
    """A write through a reshaped view."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.view(x.shape[0], 6, 64)
        y.add_(1)
        y.transpose(1, 2).mul_(2)
        return self.classify(self.c(x))


@network(IMAGE, "stem.weight:0 c.weight:1")
class InplaceBase(Body):
    """The view is taken first, its base written, then the view is read."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        first = x[:, 1:5]
        x.mul_(3).relu_()
        return self.classify(self.c(first))


@network(IMAGE, "stem.weight:0 b.weight:0 c.weight:1")
class InplaceCopy(Body):
    """A buffer of zeros is filled slice by slice: concatenation in disguise."""

    def __init__(self) -> None:
        super().__init__(4, 6)
        self.b, self.c = conv(3, 5), conv(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 9, 8, 8)
        out[:, :4] = self.stem(x)
        out[:, 4:] = self.b(x)
        return self.classify(self.c(out))


@network(IMAGE, "stem.weight:0 c.weight:1", zero_keeps=False)
class InplaceReshapeCopy(Body):
    """Reshaping a permuted tensor copies it: the write must not be seen through the original."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.c = conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.permute(0, 2, 3, 1).reshape(x.shape[0], 64, 6)
        y += 1
        return self.classify(self.c(x)) + y.mean((1, 2)).unsqueeze(1)


@network(IMAGE, "stem.weight:0 c.weight:1")
class InplaceContiguous(Body):
    """``contiguous`` copies the one, and is the other itself."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.c = conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        copy, same = x.transpose(2, 3).contiguous(), x.contiguous()
        copy.mul_(2)
        same.relu_()
        return self.classify(self.c(x - copy))


@network(IMAGE, "stem.weight:0 c.weight:1")
class InplaceNarrow(Body):
    """An in-place activation on one half; the whole is read afterwards."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.act, self.c, self.d = nn.ReLU(inplace=True), conv(4, 5), conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = x.narrow(1, 0, 4), x[:, 4:]
        b.mul_(2)
        y = self.c(self.act(a)) + self.c(b)
        return self.classify(y * self.d(x))


@network(IMAGE, "stem.weight:0 c.weight:1")
class InplaceNestedViews(Body):
    """A view of a view sees what is written to the base."""

    def __init__(self) -> None:
        super().__init__(7, 6)
        self.c = conv(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = x[:, 1:5][:, 1:]
        x.mul_(3)
        x[:, 3:5] *= 2
        return self.classify(self.c(inner))
