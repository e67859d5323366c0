"""Accuracy as a polynomial of depth, width and resolution, fitted to a few networks.

*Accelerate CNNs from Three Dimensions* (Wang et al. 2021, arXiv 2010.04879): a network is described by the shares of
its depth, width and resolution that are kept, and its accuracy by ``sum of c[i, j, k] d^i w^j r^k``, up to a degree in
each. The *specialised* predictor takes a tensor of coefficients of rank 1, ``D(d) W(w) R(r)``, which has ten free
numbers for degree 3 instead of 64, and which networks that are pruned along one dimension each determine. That the
substitute is of low rank is the paper's; rank 1, degree 3 and how it is fitted are this project's reconstruction.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from fxprune.errors import InputError

Floats = NDArray[np.float64]

DIMENSIONS = ("depth", "width", "resolution")
_SWEEPS = 50
_STILL = 1e-3  # relative change of the squared error at which sweeps end
_ZERO = 1e-12


@dataclass(frozen=True)
class Point:
    """A network and what it reached.

    Attributes:
        depth: Share of the depth that is kept, in (0, 1].
        width: Share of the width.
        resolution: Share of the side of the images.
        accuracy: On images that neither trained nor will judge the result, in [0, 1].
    """

    depth: float
    width: float
    resolution: float
    accuracy: float

    @property
    def shares(self) -> tuple[float, float, float]:
        """Depth, width and resolution."""
        return self.depth, self.width, self.resolution


class Predictor(ABC):
    """Predicts the accuracy of networks that nobody has trained."""

    @abstractmethod
    def at(self, shares: Floats) -> Floats:
        """Return predicted accuracies, shape (n,), for shares of depth, width and resolution, shape (n, 3)."""

    def __call__(self, depth: float, width: float, resolution: float) -> float:
        """Return the predicted accuracy of one network."""
        return float(self.at(np.array([[depth, width, resolution]], np.float64))[0])


@dataclass(frozen=True)
class Specialised(Predictor):
    """``D(d) W(w) R(r)``, each a polynomial of one variable; ``W(1) = R(1) = 1``.

    Attributes:
        factors: Coefficients of the three, by powers of what is removed (one less the share), lowest first.
    """

    factors: tuple[Floats, Floats, Floats]

    def at(self, shares: Floats) -> Floats:
        """Return predicted accuracies, shape (n,)."""
        return np.asarray(_product([_powers(shares[:, d], f.size - 1) @ f for d, f in enumerate(self.factors)]))


@dataclass(frozen=True)
class Full(Predictor):
    """All products of powers, with a coefficient each.

    Attributes:
        coefficients: By the powers of what is removed of depth, width and resolution.
    """

    coefficients: Floats

    def at(self, shares: Floats) -> Floats:
        """Return predicted accuracies, shape (n,)."""
        degree = self.coefficients.shape[0] - 1
        return np.asarray(_monomials(shares, degree) @ self.coefficients.reshape(-1))


Fit = Callable[[Sequence[Point]], Predictor]


def fit_specialised(points: Sequence[Point], degree: int = 3, ridge: float = 1e-6) -> Specialised:
    """Fit the specialised predictor by alternating least squares.

    With two of the polynomials fixed the third is a linear least-squares problem. It begins with each dimension's own
    points, and ends with Gauss-Newton steps on all coefficients at once, because alternating alone crawls. A dimension
    that has fewer different values than coefficients gets a polynomial of a lower degree. The ridge, for each point,
    pulls all coefficients towards zero but the constants, so that what the points do not determine stays flat.

    Args:
        points: At least one.
        degree: Of each polynomial, at most.
        ridge: How strongly.

    Raises:
        InputError: There are no points, or accuracies that are no numbers.
    """
    shares, accuracy = _arrays(points)
    degrees = [min(degree, np.unique(shares[:, d]).size - 1) for d in range(3)]
    powers = [_powers(shares[:, d], degrees[d]) for d in range(3)]
    weight = float(np.sqrt(ridge * accuracy.size))
    factors = _alternate(powers, accuracy, _along_axes(shares, accuracy, powers, weight), weight)
    return _polished(powers, accuracy, factors, weight)


def fit_full(points: Sequence[Point], degree: int = 3, ridge: float = 1e-6) -> Full:
    """Fit all coefficients by least squares; of those that the points do not determine the smallest.

    Args:
        points: At least one.
        degree: The largest power of each variable.
        ridge: As for :func:`fit_specialised`.

    Raises:
        InputError: As for :func:`fit_specialised`.
    """
    shares, accuracy = _arrays(points)
    found = _least_squares(_monomials(shares, degree), accuracy, float(np.sqrt(ridge * accuracy.size)))
    return Full(found.reshape((degree + 1,) * 3))


def leave_one_out(points: Sequence[Point], fit: Fit) -> float:
    """Return the root mean square error at each point of what is fitted to all others."""
    if len(points) < 2:
        return float("nan")
    errors = [fit([*points[:i], *points[i + 1 :]])(*point.shares) - point.accuracy for i, point in enumerate(points)]
    return float(np.sqrt(np.mean(np.square(errors))))


def choose_degree(points: Sequence[Point], degrees: Sequence[int] = (1, 2, 3)) -> tuple[int, dict[int, float]]:
    """Return the degree of the specialised predictor with the least leave-one-out error, and all errors by degree."""
    errors = {k: leave_one_out(points, lambda rest, k=k: fit_specialised(rest, k)) for k in degrees}  # type: ignore[misc]
    return min(errors, key=lambda k: (errors[k], k)), errors


# ---------------------------------------------------------------- algebra


def _arrays(points: Sequence[Point]) -> tuple[Floats, Floats]:
    if not points:
        raise InputError("A predictor of accuracy needs at least one network whose accuracy is known; there is none.")
    shares = np.array([point.shares for point in points], np.float64)
    accuracy = np.array([point.accuracy for point in points], np.float64)
    if not (np.isfinite(shares).all() and np.isfinite(accuracy).all()):
        raise InputError("A predictor of accuracy needs finite numbers; leave out networks whose training failed.")
    return shares, accuracy


def _powers(values: Floats, degree: int) -> Floats:
    """Return powers of what is removed: the same polynomials, and the constant is what the whole network reaches."""
    return np.vander(1.0 - values, degree + 1, increasing=True)


def _monomials(shares: Floats, degree: int) -> Floats:
    columns = [_powers(shares[:, d], degree) for d in range(3)]
    every = itertools.product(range(degree + 1), repeat=3)
    return np.stack([columns[0][:, i] * columns[1][:, j] * columns[2][:, k] for i, j, k in every], axis=1)


def _product(values: Sequence[Floats]) -> Floats:
    return np.asarray(np.prod(np.stack(values), axis=0))


def _least_squares(matrix: Floats, target: Floats, weight: float) -> Floats:
    """Return the ridge solution; the first column, the constant, goes free."""
    penalty = weight * np.eye(matrix.shape[1])
    penalty[0, 0] = 0.0
    rows, right = np.vstack([matrix, penalty]), np.concatenate([target, np.zeros(matrix.shape[1])])
    return np.asarray(np.linalg.lstsq(rows, right, rcond=None)[0])


def _along_axes(shares: Floats, accuracy: Floats, powers: list[Floats], weight: float) -> list[Floats]:
    """Return polynomials fitted to the points that are pruned in one dimension only; constant where none are."""
    factors = []
    for d in range(3):
        alone = (np.delete(shares, d, axis=1) == 1).all(axis=1)
        constant = np.eye(1, powers[d].shape[1]).reshape(-1)
        found = _least_squares(powers[d][alone], accuracy[alone], weight) if alone.sum() > 1 else constant
        factors.append(found / found[0] if abs(found[0]) > _ZERO else constant)
    factors[0] = factors[0] * accuracy.mean()
    return factors


def _alternate(powers: list[Floats], accuracy: Floats, factors: list[Floats], weight: float) -> list[Floats]:
    before = np.inf
    for _ in range(_SWEEPS):
        for d in range(3):
            others = _product([powers[e] @ factors[e] for e in range(3) if e != d])
            factors[d] = _least_squares(powers[d] * others[:, None], accuracy, weight)
            factors = _normalised(factors)
        error = float(((_product([p @ f for p, f in zip(powers, factors, strict=True)]) - accuracy) ** 2).sum())
        if before - error <= _STILL * before:
            break
        before = error
    return factors


def _normalised(factors: list[Floats]) -> list[Floats]:
    """Move the constants of the last two into the first, where they are not zero."""
    first, *rest = factors
    for d, factor in enumerate(rest):
        scale = factor[0]
        if abs(scale) > _ZERO:
            rest[d], first = factor / scale, first * scale
    return [first, *rest]


def _polished(powers: list[Floats], accuracy: Floats, factors: list[Floats], weight: float) -> Specialised:
    """Take Gauss-Newton steps on what the whole network reaches and the slopes of all three together."""
    ends = np.cumsum([f.size - 1 for f in factors])[:-1]

    def parts(free: Floats) -> tuple[Floats, Floats, Floats]:
        first, second, third = (np.concatenate([[1.0], slopes]) for slopes in np.split(free[1:], ends))
        return free[0] * first, second, third

    def errors(free: Floats) -> Floats:
        wrong = _product([p @ f for p, f in zip(powers, parts(free), strict=True)]) - accuracy
        return np.concatenate([wrong, weight * free[1:]])

    whole = factors[0][0] if abs(factors[0][0]) > _ZERO else 1.0
    start = np.concatenate([[whole], factors[0][1:] / whole, factors[1][1:], factors[2][1:]])
    return Specialised(parts(least_squares(errors, start, method="lm" if start.size > 1 else "trf").x))
