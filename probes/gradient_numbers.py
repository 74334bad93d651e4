"""Numbers of gradients under a policy beside those in float32: TensorFlow functions over all variables in one call.

One by one they would take longer than a replay. They are in float64, for a product of two small float32 numbers may be
too small for float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["comparison_numbers", "noise_numbers"]


def comparison_numbers(references: Sequence[Any], gradients: Sequence[Any], scales: Any) -> Any:
    """Return float64 [variables, 4]: scalar product, both norms, and whether the second gradient is finite.

    Args:
        references: Gradients in float32, by variable.
        gradients: Those under the policy.
        scales: float64 [2], the loss scales that the two carry.
    """
    rows = []
    for expected, gradient in zip(references, gradients, strict=True):
        one, other = tf.cast(expected, tf.float64) / scales[0], tf.cast(gradient, tf.float64) / scales[1]
        finite = tf.cast(tf.reduce_all(tf.math.is_finite(other)), tf.float64)
        rows.append(tf.stack([tf.reduce_sum(one * other), tf.norm(one), tf.norm(other), finite]))
    return tf.stack(rows)


def noise_numbers(references: Sequence[Any], gradients: Sequence[Any], scales: Any) -> Any:
    """Return float64 [variables, 4]: what a `precscope.gradient_noise.Noise` holds.

    Args:
        references: Gradients in float32 at the same weights, by batch and variable; of two batches at least.
        gradients: Those under the policy.
        scales: float64 [2], the loss scales that the two carry.
    """
    batches = len(references)
    rows = []
    for of_variable in zip(*references, *gradients, strict=True):
        expected = [tf.cast(gradient, tf.float64) / scales[0] for gradient in of_variable[:batches]]
        given = [tf.cast(gradient, tf.float64) / scales[1] for gradient in of_variable[batches:]]
        errors = [one - other for one, other in zip(given, expected, strict=True)]
        squares, error_squares = (tf.add_n([_square(x) for x in tensors]) for tensors in (expected, errors))
        of_sum, of_error_sum = _square(tf.add_n(expected)), _square(tf.add_n(errors))
        rows.append(
            tf.stack(
                [
                    tf.maximum(squares - of_sum / batches, 0.0) / (batches - 1),
                    error_squares / batches,
                    (of_error_sum - error_squares) / (batches * (batches - 1)),
                    of_sum / batches**2,
                ]
            )
        )
    return tf.stack(rows)


def _square(tensor: Any) -> Any:
    return tf.reduce_sum(tf.square(tensor))
