"""Whether an input fits a graph that was captured on an example of it."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor


def same_kind(given: Tensor, example: Tensor) -> bool:
    """Whether the dtypes are the same, or both floats, which may be of any precision.

    Of all else, code may ask for the dtype: it takes bytes for pixels, and other integers for ids.
    """
    return given.dtype == example.dtype or (given.is_floating_point() and example.is_floating_point())


def same_sizes(given: Tensor, example: Tensor, open_dimensions: Collection[int]) -> bool:
    """Whether the sizes are the same but for those dimensions that may have any size."""
    return given.ndim == example.ndim and all(
        d in open_dimensions or n == m for d, (n, m) in enumerate(zip(given.shape, example.shape, strict=True))
    )


def sizes_of(example: Tensor, open_dimensions: Collection[int]) -> str:
    """Return what a message calls the sizes that fit: ``[any, 3, 8, 8]``."""
    return f"[{', '.join('any' if d in open_dimensions else str(n) for d, n in enumerate(example.shape))}]"
