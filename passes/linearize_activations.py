"""Write activations as something linear, by degrees, so that the layers around them become one.

An activation ``f`` behind a layer becomes ``(1 - share) f(x) + share slope x``: nothing changes at a share of 0, and
nothing but a trained number per layer is left of it at 1. Then :class:`~fxprune.passes.Reparameterize` folds
convolution, number and convolution into one layer, where that is exact and pays. In between a training takes the share
from 0 to 1 (:func:`fxprune.depth.slopes.set_share`), so that the network can follow.

This is a way to shallower networks for layers that change shapes, which cannot be left out. ResConv (arXiv 2011.14356
[ABS]) trains scaled identities beside convolutions and folds them; which factor gates what was not found. The mixture
of an activation with a scaled identity, and its schedule, are a reconstruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fxprune.capture import Traced
from fxprune.depth.slopes import Place, linear, mix, places_of, verify_mixture
from fxprune.errors import InputError
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip


@dataclass(frozen=True)
class LinearizeActivations(Pass):
    """Mix the activations behind some layers with a scaled identity, or leave nothing but that.

    A layer at path ``X`` gets ``X_activation.slope``, a parameter, and ``X_activation.share``, a buffer. With
    ``share=1`` the activation and its share go, and the slope stays. A Pipeline checks in
    float64 that the result is the original with its activations so mixed.

    Attributes:
        layers: Paths of the layers whose activation it is; a norm may lie between.
        share: Share of the identity, in [0, 1]; 1 writes it alone.
        slope: What the slope begins at; one that is there already stays.

    Raises:
        InputError: The share or the layers are none.
    """

    name: ClassVar[str] = "linearize-activations"
    keeps: ClassVar[Keeps] = Keeps.SIGNATURE

    layers: Sequence[str]
    share: float = 0.0
    slope: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.layers, str) or not all(isinstance(layer, str) for layer in self.layers):
            raise InputError(f"{self.name}: layers is {self.layers!r}; give a list of paths, such as ['features.3']")
        if isinstance(self.share, bool) or not 0.0 <= self.share <= 1.0:
            raise InputError(f"{self.name}: share={self.share!r} is not in [0, 1]")
        object.__setattr__(self, "layers", tuple(self.layers))

    def requires(self, traced: Traced) -> None:
        """Raise ``InputError`` for a path that is no layer of the graph."""
        places_of(traced, self.layers)

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Mix, or take the activations out; what is linear already, or mixed to this share, is left at that."""
        for layer, place in places_of(traced, self.layers).items():
            if not isinstance(place, Place):
                yield Skip(layer, place)
            elif self.share == 1.0:
                linear(traced.module, layer, place, self.slope)
                yield Change(
                    layer, f"its activation {place.activation.name} became a number, trained or {self.slope:g}"
                )
            elif mix(traced.module, layer, place, self.share, self.slope):
                yield Change(layer, f"{self.share:g} of its activation {place.activation.name} is an identity")
            else:
                yield Skip(layer, f"{self.share:g} of its activation {place.activation.name} is an identity already")

    def check(self, before: Traced, after: Traced) -> None:
        """Compare with the original, its activations replaced while it runs."""
        places = {n: place for n, place in places_of(before, self.layers).items() if isinstance(place, Place)}
        if places:
            verify_mixture(before, after, places, self.share, self.slope)
