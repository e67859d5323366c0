"""Several inputs, several outputs, and values inside that are outputs too."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import HEAD, Body, conv
from tests.networks.registry import IMAGE, Inputs, network, normal


@network(IMAGE, "stem.weight:0", {**HEAD, "boxes.weight:0": "output", "feature.weight:0": "output"})
class SeveralOutputs(Body):
    def __init__(self) -> None:
        super().__init__(6, 6)
        self.boxes, self.feature = conv(6, 5), conv(6, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.relu(self.stem(x))
        return self.classify(x), [self.boxes(x), self.feature(x).flatten(2)]


@network(IMAGE, "stem.weight:0", {**HEAD, "mask.weight:0": "output"})
class DictOutput(Body):
    def __init__(self) -> None:
        super().__init__(6, 6)
        self.mask = conv(6, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(x))
        return {"logits": self.classify(x), "mask": F.interpolate(self.mask(x), scale_factor=2)}


@network(IMAGE, "c.weight:0", {"stem.weight:0": "output", "c.weight:1": "output"})
class HiddenOutput(Body):
    """A hidden tensor is also an output: its channels are the caller's."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.classify(self.c(x)), x


@network(
    Inputs((normal(2, 3, 8, 8), normal(2, 5, 6))), "stem.weight:0 text.weight:0 c.weight:1", {"text.weight:1": "input"}
)
class SeveralInputs(Body):
    def __init__(self) -> None:
        super().__init__(6, 7)
        self.text, self.c = nn.Linear(6, 6), conv(6, 7)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.classify(self.c(self.stem(image) + self.text(text).mean(1)[:, :, None, None]))


@network(Inputs((normal(2, 3, 8, 8),), {"scale": normal(2, 5, 1, 1, seed=1)}), "c.weight:0", {"stem.weight:0": "input"})
class KeywordInput(Body):
    """A tensor given by keyword has an entry per channel: those channels are the caller's."""

    def __init__(self) -> None:
        super().__init__(5, 6)
        self.c = conv(5, 6)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        return self.classify(self.c(x if scale is None else x * scale))


@network(Inputs((normal(2, 5), normal(2, 6))), "left.weight:0 right.weight:0 a.weight:0", {"a.weight:1": "input"})
class TwoTowers(nn.Module):
    """Two encoders meet in one inner product per pair of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.left, self.right = nn.Linear(5, 7), nn.Linear(7, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.left(F.relu(self.a(x))) @ self.right(y).t()


@network(IMAGE, "stem.weight:0 a.weight:0 b.weight:1", {**HEAD, "side.weight:0": "output"})
class DeepSupervision(Body):
    def __init__(self) -> None:
        super().__init__(5, 7)
        self.a, self.b, self.side = conv(5, 6, stride=2), conv(6, 7), conv(6, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.a(F.relu(self.stem(x))))
        return [self.classify(F.relu(self.b(x))), F.interpolate(self.side(x), size=(8, 8), mode="bilinear")]
