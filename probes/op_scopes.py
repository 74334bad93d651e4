"""From the name of an op to the layer and the direction that it works for.

Keras opens a name scope around each layer's call, so an op's name holds the path of its layer, and "gradient_tape" in
front of it in the backward pass:

    StatefulPartitionedCall/gradient_tape/sequential_1/conv_b_1/BiasAdd/BiasAddGrad:BiasAddGrad

TensorFlow makes scopes unique by "_1", "_2", ..., and Keras opens each scope twice, for building and for calling. So
the scope of a layer "conv" is "conv_1", that of a layer "conv_1" is "conv_1_1" or "conv_1_2", and of one that is called
a second time "conv_3". Which of the layers "conv" and "conv_1" a scope "conv_1" means depends on whether scopes carry
such numbers throughout; the names in the trace tell.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from precscope.op_records import Direction

__all__ = ["KERAS_OPTIMIZERS", "NOWHERE", "OpPlace", "OpScopes", "strip_wrappers"]

#: Scopes that Keras' optimizers open: their default names.
KERAS_OPTIMIZERS: Final = frozenset(
    {
        *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "ftrl", "lamb", "lion"),
        *("loss_scale_optimizer", "muon", "nadam", "rmsprop", "schedule_free_adamw", "sgd"),
    }
)
_BACKWARD_SCOPES: Final = frozenset({"gradient_tape", "gradients"})
_LOSS_SCOPE: Final = "compile_loss"
_INPUT_OPS: Final = ("IteratorGetNext", "OptionalHasValue", "OptionalGetValue", "OptionalFromValue")
#: Scopes that functions, loops and graph rewrites put around ops; they say nothing about what an op is for.
_WRAPPER: Final = re.compile(r"(Stateful)?PartitionedCall(_\d+)?|while(_\d+)?|body|_\d+|Func|ArithmeticOptimizer")
#: LossScaleOptimizer looks for infinities and NaN outside of every scope.
_FINITE_CHECKS: Final = frozenset({"IsFinite", "All"})

_Scopes = tuple[str, ...]


class OpPlace(NamedTuple):
    """What an op works for: a layer or None, and a direction or None."""

    layer: str | None
    direction: Direction | None


NOWHERE: Final = OpPlace(None, None)


def strip_wrappers(op_name: str) -> str:
    """Return an op's name without the function calls in front of it."""
    return re.sub(r"^((Stateful)?PartitionedCall(_\d+)?/)+", "", op_name)


class OpScopes:
    """Finds layers and directions by name; made for all names of one trace."""

    def __init__(
        self, layer_paths: Mapping[str, str], op_names: Iterable[str], optimizers: Collection[str] = KERAS_OPTIMIZERS
    ) -> None:
        """Prepare for the names of a trace.

        Args:
            layer_paths: Layer ids by path of names, or by name scope.
            op_names: All op names of the trace.
            optimizers: Names of optimizers, which are their scopes.
        """
        self._layers = {tuple(path.split("/")): layer for path, layer in layer_paths.items()}
        self._optimizers = frozenset(optimizers)
        self._names = {name for path in self._layers for name in path}
        self._by_last: dict[str, list[_Scopes]] = defaultdict(list)
        for path in sorted(self._layers, key=len, reverse=True):
            self._by_last[path[-1]].append(path)
        self._places: dict[tuple[str, str], OpPlace] = {}
        scopes = {_scopes(name) for name in op_names}
        self._numbered = self._are_numbered({name for path in scopes for name in path})
        # A layer's outermost scope is its model's. A condition around updates is LossScaleOptimizer's: all of it is.
        self._models = {path[0] for path in scopes if self._layer(path) is not None}
        self._conditions = {path[0] for path in scopes if path and _base(path[0]) == "cond" and self._is_update(path)}

    def place(self, op_name: str, op_type: str = "") -> OpPlace:
        """Return what the op with this name and TensorFlow op type works for."""
        key = (op_name, op_type)
        if key not in self._places:
            self._places[key] = self._find_place(op_name, op_type)
        return self._places[key]

    def _find_place(self, op_name: str, op_type: str) -> OpPlace:
        scopes = _scopes(op_name)
        if any(scope.startswith("precscope") for scope in op_name.split("/")):
            return OpPlace(None, "precscope")
        backward = not _BACKWARD_SCOPES.isdisjoint(scopes)
        if (layer := self._layer(scopes)) is not None:
            return OpPlace(layer, "backward" if backward else "forward")
        # The gradient of a tensor that several ops used is summed outside of every scope.
        if backward or (not scopes and op_type == "AddN"):
            return OpPlace(None, "backward")
        return OpPlace(None, self._direction(op_name, op_type, scopes))

    def _direction(self, op_name: str, op_type: str, scopes: _Scopes) -> Direction | None:
        """Return the direction of an op that is in no layer and not in the backward pass."""
        if op_name.startswith(_INPUT_OPS):
            return "input"
        if not scopes:
            return "optimizer" if op_type in _FINITE_CHECKS else None
        if self._is_update(scopes) or scopes[0] in self._conditions:
            return "optimizer"
        return "forward" if _LOSS_SCOPE in scopes or scopes[0] in self._models else None

    def _is_update(self, scopes: _Scopes) -> bool:
        return any(_base(scope) in self._optimizers for scope in scopes)

    def _layer(self, scopes: _Scopes) -> str | None:
        """Return the layer that ends deepest in `scopes`; of several the one with the longest path."""
        names = [self._resolve(scope) for scope in scopes]
        for depth in range(len(names) - 1, -1, -1):
            for path in self._by_last.get(names[depth], ()):
                if _is_subsequence(path[:-1], names[:depth]):
                    return self._layers[path]
        return None

    def _resolve(self, scope: str) -> str:
        """Return the layer's name that a scope stands for, or "" where it stands for none."""
        base = _base(scope)
        if scope in self._names and (base == scope or base not in self._names or not self._numbered):
            return scope
        return base if base in self._names else ""

    def _are_numbered(self, scopes: set[str]) -> bool:
        """Return whether scopes carry a number beyond the layer's name, by those that leave no doubt."""
        exact = sum(
            scope in self._names and (_base(scope) == scope or _base(scope) not in self._names) for scope in scopes
        )
        numbered = sum(scope not in self._names and _base(scope) in self._names for scope in scopes)
        return numbered > exact


def _scopes(op_name: str) -> _Scopes:
    """Return the scopes around an op, without those that say nothing, and without the op itself."""
    return tuple(scope for scope in op_name.split("/")[:-1] if not _WRAPPER.fullmatch(scope))


def _base(scope: str) -> str:
    return re.sub(r"_\d+$", "", scope)


def _is_subsequence(path: Sequence[str], names: Sequence[str]) -> bool:
    remaining = iter(names)
    return all(name in remaining for name in path)
