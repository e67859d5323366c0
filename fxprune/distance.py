"""How far two tensors are apart: the one definition behind every comparison of outputs.

What the definition says:

- *Shapes*: another shape is infinitely far, also where it would broadcast.
- *Types*: floats of different precision are compared as they are, widened to float64 (complex128). Booleans, integers,
  real and complex numbers are kinds of their own, and another kind is infinitely far.
- *Whatever is no float*, such as integers and booleans, is equal or infinitely far: an index, a count or a label has no
  scale. How many entries differ is what :func:`differing` counts.
- *NaN* is infinitely far from every number, and from NaN as well, unless a caller accepts NaN in the same places.
- *Infinities* of the same sign are equal; an infinity is infinitely far from everything else.
- *Complex numbers* are as far apart as the magnitude of their difference.
- *Empty* tensors of one shape and kind are equal.

What is compared with what, relative to which scale, and how much is allowed, is each caller's own. This module knows
arrays of numpy as well as tensors and does not import torch, so that what only measures files need not load it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Values = NDArray[Any]


def distance(found: Tensor | Values, expected: Tensor | Values, *, same_nan: bool = False) -> float:
    """Return the largest difference of two entries at the same place; never NaN.

    Args:
        found: A tensor of torch, on any device, or an array.
        expected: What it is compared with; the order does not matter.
        same_nan: Whether NaN in both, at the same place, counts as equal.

    Returns:
        A number from 0 to infinity, in the units of the tensors. Infinite where no number says how far they are apart;
        see the top of this file.
    """
    a, b = _values(found), _values(expected)
    if a.shape != b.shape or _kind(a) != _kind(b):
        return math.inf
    if _kind(a) not in "fc":
        return math.inf if differing(a, b) else 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # inf - inf; what comes of it is looked at below
        gaps = np.where(a == b, 0.0, np.abs(a - b))
    if same_nan:
        gaps = np.where(np.isnan(a) & np.isnan(b), 0.0, gaps)
    largest = float(gaps.max(initial=0.0))
    return math.inf if math.isnan(largest) else largest


def relative(gap: float, scale: float) -> float:
    """Return a distance as a part of a scale; never NaN.

    Nothing is no part of anything: 0 is 0 at every scale, and everything else is infinite at a scale of 0.

    Args:
        gap: What :func:`distance` gave.
        scale: Finite, in the same units; as a rule the :func:`top` of what was expected.
    """
    if not 0.0 <= scale < math.inf:
        raise ValueError(f"a scale is a finite number from 0 on, not {scale}")
    if gap == 0.0:
        return 0.0
    return gap / scale if scale else math.inf


def top(value: Tensor | Values) -> float:
    """Return the largest finite magnitude of a float tensor; 0 where none is finite."""
    values = _values(value)
    with np.errstate(over="ignore"):  # the magnitude of a large complex number
        sizes = np.abs(values[np.isfinite(values)])
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))


def differing(found: Tensor | Values, expected: Tensor | Values) -> int:
    """Return how many entries of two tensors of one shape are not equal."""
    a, b = _values(found), _values(expected)
    if a.shape != b.shape:
        raise ValueError(f"entries of shapes {a.shape} and {b.shape} have no counterparts")
    return int(np.count_nonzero(a != b))


def is_finite(value: Tensor | Values) -> bool:
    """Return whether a tensor has neither NaN nor infinity; one that is not of floats has none."""
    values = _values(value)
    return _kind(values) not in "fc" or bool(np.isfinite(values).all())


def _values(value: Tensor | Values) -> Values:
    """Return an array of what a tensor holds; floats become float64, complex numbers complex128."""
    if isinstance(value, np.ndarray):
        wide = {"f": np.float64, "c": np.complex128}.get(value.dtype.kind)
        return value if wide is None else value.astype(wide, copy=False)
    plain = value.detach().cpu()
    if plain.is_complex():
        plain = plain.cdouble()  # type: ignore[attr-defined]  # the stubs do not list it
    elif plain.is_floating_point():
        plain = plain.double()
    values: Values = plain.resolve_conj().resolve_neg().numpy()
    return values


def _kind(values: Values) -> str:
    """Return b for booleans, i for integers of any sign and width, f and c for real and complex numbers."""
    kind = values.dtype.kind
    return "i" if kind == "u" else kind
