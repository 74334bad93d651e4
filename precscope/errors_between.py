"""The error of a tensor against its float32 reference: flushed and overflowed values, relative error, SQNR, cosine.

All of it follows from ten sums, which add up over the calls of a layer and over the parts of a batch. This is the
reference implementation, in NumPy; `precscope.probes.tensor_errors` computes the same sums where the tensors are.

Definitions. r is the reference and p what it is compared with, element by element; sums go over the elements at which
both are finite.

- Relative error: ||p - r|| / ||r|| in the Euclidean norm (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
  edition, section 1.2).
- SQNR, the signal to quantization noise ratio in decibels: 10 log10(sum r^2 / sum (p - r)^2) (Oppenheim and Schafer,
  Discrete-Time Signal Processing, section 4.8.3). It is -20 log10 of the relative error. Rounding alone leaves about
  74 dB in float16, with its 11 significant bits, and about 56 dB in bfloat16, with 8.
- Cosine: sum r p / (||r|| ||p||).
- Flushed: r is not zero and p is: true underflow (Micikevicius et al., Mixed Precision Training, arXiv 1710.03740,
  section 3.2, count such gradients).
- Overflowed: r is finite and p is infinite.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["TensorErrors", "errors_between"]


@dataclass(frozen=True)
class TensorErrors:
    """The sums over one pair of tensors, or several, and what follows from them.

    Attributes:
        count: Elements.
        reference_nonzero: Elements of the reference that are finite and not zero.
        flushed: Those of them that are zero in the other tensor.
        overflowed: Elements that are finite in the reference and infinite in the other.
        nans: Elements that are finite in the reference and NaN in the other.
        compared: Elements that are finite in both; the sums below go over these.
        reference_squares: Sum of the squares of the reference.
        other_squares: Sum of the squares of the other tensor.
        products: Sum of the products of the two.
        error_squares: Sum of the squares of their differences.
    """

    count: int = 0
    reference_nonzero: int = 0
    flushed: int = 0
    overflowed: int = 0
    nans: int = 0
    compared: int = 0
    reference_squares: float = 0.0
    other_squares: float = 0.0
    products: float = 0.0
    error_squares: float = 0.0

    @classmethod
    def from_sums(cls, sums: Iterable[float]) -> TensorErrors:
        """Return the errors of ten numbers in the order of the attributes."""
        values = [float(value) for value in sums]
        return cls(*map(int, values[:6]), *values[6:])  # six counts, four sums

    def __add__(self, other: TensorErrors) -> TensorErrors:
        """Return the errors of both pairs together."""
        return TensorErrors(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def relative_error(self) -> float | None:
        """||p - r|| / ||r||; None where nothing was compared or the reference is zero."""
        return self.error_relative_to(self)

    def error_relative_to(self, reference: TensorErrors) -> float | None:
        """Return this error, relative to the norm of another reference; None where that is zero or nothing compared."""
        if not self.compared or not reference.reference_squares:
            return None
        return math.sqrt(self.error_squares / reference.reference_squares)

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise ratio in decibels; None where there is no signal, or no noise."""
        if not self.reference_squares or not self.error_squares:
            return None
        return 10 * math.log10(self.reference_squares / self.error_squares)

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two, -1 to 1; None where one of them is zero."""
        norms = math.sqrt(self.reference_squares) * math.sqrt(self.other_squares)
        return None if not norms else max(-1.0, min(1.0, self.products / norms))

    @property
    def flushed_share(self) -> float | None:
        """Share of the reference's non-zero values that are zero in the other tensor; None where it has none."""
        return self.flushed / self.reference_nonzero if self.reference_nonzero else None


def errors_between(reference: NDArray[Any], other: NDArray[Any]) -> TensorErrors:
    """Return the errors of `other` against `reference`, arrays of one shape and any float dtype.

    Args:
        reference: The values in float32.
        other: The values in a training's policy, unscaled.

    Raises:
        ValueError: The shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"Tensors of one shape can be compared; received {reference.shape} and {other.shape}.")
    r, p = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    finite = np.isfinite(r)
    both = finite & np.isfinite(p)
    r_both, p_both = r[both], p[both]
    nonzero = finite & (r != 0)
    return TensorErrors(
        count=r.size,
        reference_nonzero=int(np.count_nonzero(nonzero)),
        flushed=int(np.count_nonzero(nonzero & (p == 0))),
        overflowed=int(np.count_nonzero(finite & np.isinf(p))),
        nans=int(np.count_nonzero(finite & np.isnan(p))),
        compared=int(np.count_nonzero(both)),
        reference_squares=float(np.sum(r_both * r_both)),
        other_squares=float(np.sum(p_both * p_both)),
        products=float(np.sum(r_both * p_both)),
        error_squares=float(np.sum((p_both - r_both) ** 2)),
    )
