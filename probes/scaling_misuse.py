"""How a train step uses the loss scale, watched while the step is traced: never, twice, or clipped before unscaling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from precscope.probes.internals.optimizers import loss_scaling, scale_variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["ScalingWatch"]

_CLIP_DISTANCE = 4  # ops between a clip and the optimizer: what `tf.clip_by_*` itself adds
_MOST_OPS = 100_000

NEVER_SCALED = (
    "the optimizer scales gradients back by the loss scale, but the train step never calls optimizer.scale_loss: every "
    "update is smaller by the loss scale (32,768 times, by default). Differentiate optimizer.scale_loss(loss)."
)
SCALED_TWICE = (
    "the loss passes through optimizer.scale_loss twice, and the optimizer divides by the loss scale once: every "
    "update is larger by the loss scale. Call optimizer.scale_loss once, on the final loss."
)
CLIPPED_SCALED = (
    "the train step clips gradients that still carry the loss scale, so the limit changes whenever the scale does. "
    "Give clipnorm, global_clipnorm or clipvalue to the inner optimizer, which clips what was scaled back."
)


class ScalingWatch:
    """Notes what one traced train step does; an eager step has no graph, so only the calls are counted.

    Args:
        optimizer: The optimizer of the step.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._is_scaled = loss_scaling(optimizer) != "none"
        self.begin()

    def begin(self) -> None:
        """Forget the last trace."""
        self._scaled: list[tuple[Any, Any]] = []
        self._applied = self._clipped = self._scaled_by_hand = False

    def scaled(self, loss: Any, result: Any) -> None:
        """Take note of a call of `optimizer.scale_loss`."""
        self._scaled.append((loss, result))

    def applied(self, gradients: Sequence[Any]) -> None:
        """Take note of the gradients that the optimizer receives."""
        self._applied = True
        self._clipped = _are_clipped(gradients)
        if not self._scaled:
            variable = scale_variable(self._optimizer)
            self._scaled_by_hand = any(_reads(gradient, variable) for gradient in gradients[-1:])

    def found(self) -> list[str]:
        """Return what is wrong, a sentence each; nothing where the loss is not scaled or nothing was applied."""
        if not (self._is_scaled and self._applied):
            return []
        if not self._scaled:
            return [] if self._scaled_by_hand else [NEVER_SCALED]
        twice = any(
            _leads_to(earlier, later)
            for position, (_, earlier) in enumerate(self._scaled)
            for later, _ in self._scaled[position + 1 :]
        )
        return [SCALED_TWICE] * twice + [CLIPPED_SCALED] * self._clipped


def _are_clipped(gradients: Sequence[Any]) -> bool:
    """Tell whether any gradient was clipped after it was made: not what a layer clips on its way forward.

    They are looked at together: where each of them was multiplied by the norm of all, looking behind one after the
    other would take the square of their number.
    """
    tensors = [one.values if isinstance(one, tf.IndexedSlices) else one for one in gradients]
    made_later = _ancestors(tensors, _CLIP_DISTANCE, lambda op: not _is_backward(op))
    return any("clip_by_" in op.name and not _is_backward(op) for op in made_later)


def _is_backward(op: Any) -> bool:
    """Tell whether a tape made this op: what it reads beside a gradient are values of the forward pass."""
    return "gradient_tape/" in op.name


def _reads(gradient: Any, variable: Any) -> bool:
    """Tell whether a gradient depends on a variable: a loss that was multiplied by the scale itself."""
    op = _op(gradient)
    if variable is None or op is None:
        return False
    inner = [id(captured) for outer, captured in getattr(op.graph, "captures", ()) if outer is variable.handle]
    return any(id(source) in inner for op in _ancestors([gradient], _MOST_OPS) for source in op.inputs)


def _leads_to(earlier: Any, later: Any) -> bool:
    if earlier is later:
        return True
    origin = _op(earlier)
    return origin is not None and any(op is origin for op in _ancestors([later], _MOST_OPS))


def _ancestors(
    tensors: Sequence[Any], distance: int, through: Callable[[Any], bool] = lambda op: True
) -> Iterator[Any]:
    """Yield the ops that symbolic tensors were computed by, the nearest first; not what lies behind one to stop at.

    Args:
        tensors: Where to begin.
        distance: How many ops to go back at most.
        through: Tells of an op whether to go on to what it reads.
    """
    level = list({id(op): op for op in map(_op, tensors) if op is not None}.values())
    seen = {id(op) for op in level}
    for _ in range(distance):
        yield from level
        inputs = [source.op for op in level if through(op) for source in op.inputs]
        level = list({id(op): op for op in inputs if id(op) not in seen}.values())
        seen.update(map(id, level))
        if not level or len(seen) > _MOST_OPS:
            return


def _op(tensor: Any) -> Any:
    return None if not tf.is_tensor(tensor) or not tf.is_symbolic_tensor(tensor) else tensor.op
