"""What a session has to say about a training on several devices before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import keras

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.options import Options
    from precscope.probes.internals.distribution import Replicas

__all__ = ["replica_notices"]


def replica_notices(replicas: Replicas, options: Options) -> Iterator[tuple[Literal["info", "warning"], str]]:
    """Yield what is not as the user may expect it, with its level."""
    if keras.distribution.distribution() is not None:
        name = type(keras.distribution.distribution()).__name__
        yield (
            "warning",
            f"keras.distribution.{name} has no effect on TensorFlow: Keras trains the model on one device. Use "
            "tf.distribute.MirroredStrategy for several.",
        )
    if not replicas.devices:
        yield (
            "warning",
            f"{replicas.total} replicas train under {replicas.strategy}; replicas can be recorded under "
            "MirroredStrategy and MultiWorkerMirroredStrategy only, so nothing is.",
        )
    names = ("tripwire", "keep_batches_mib", "reference")
    wanted = [name for name in names if not replicas.batch_is_here and getattr(options, name) not in (False, 0, "auto")]
    if wanted:
        where = f"{replicas.workers} workers" if replicas.workers > 1 else replicas.strategy
        yield (
            "warning",
            f"{', '.join(wanted)}: not with {where}. A batch is run again, or kept, where one process has all of it: "
            "on one device, or under MirroredStrategy. Everything else is recorded.",
        )
