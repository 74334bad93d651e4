"""The float32 pass of a reference step: what each layer computes, and what it would compute in its own policy.

While the pass is traced, each layer that trains in 16 bits is called twice on the float32 input: as it is in this pass,
in float32, and as its twin, under the policy that it trains with. What differs is the layer's own error. The same for
its backward pass, from the float32 gradient that arrives. Twins lead nowhere: the loss does not depend on them.
A third call, in float32 on the input rounded to the training's format, tells how much of the own error float32 inside
the layer would not cure.

The pass is scaled by the training's loss scale, so that twins get gradients of the size that they get in the training.
In float32 a scale that is a power of 2 changes no digit.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import keras
import tensorflow as tf

from precscope.error_text import error_in_a_line
from precscope.probes.internals.dtype_policies import (
    float32_compute_policy,
    own_policy,
    refresh_dtype_cache,
    set_own_policy,
)
from precscope.probes.internals.graphs import current_graph, operation_count, operations_since
from precscope.probes.internals.layer_calls import (
    AddedLosses,
    call_state,
    call_under_policy,
    kept_losses,
    set_instance_attribute,
    with_mask_of,
)
from precscope.probes.internals.layer_tree import own_variables, walk_layers
from precscope.probes.layer_policies import cannot_flip, model_layers
from precscope.probes.observed_layers import added_loss_key
from precscope.probes.reading import TensorKey
from precscope.probes.taps import is_read_by_losses
from precscope.probes.tensor_errors import error_sums
from precscope.probes.tensor_sources import is_float_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from precscope.probes.shadow_step import ShadowTrace
    from precscope.probes.tap_plan import TapPlan

__all__ = ["Part", "ReferencePass"]

_NARROW = ("float16", "bfloat16")
_KINDS: tuple[Literal["activation"], Literal["gradient"]] = ("activation", "gradient")
_READS = ("ReadVariableOp", "ResourceGather", "Identity")  # of variables that are in 16 bits
_FAILURES = (TypeError, ValueError, tf.errors.InvalidArgumentError)


class Part(NamedTuple):
    """Names what a reference step keeps of one call of a layer.

    Attributes:
        what: "reference" and "twin" are tensors, "own", "whole", "inherited" and "rounded" sums of errors.
        key: The tensor.
        call: The number of the layer's call, from 0.
    """

    what: Literal["reference", "twin", "own", "whole", "inherited", "rounded"]
    key: TensorKey
    call: int


@dataclass
class _Twin:
    """A layer's call and its twin, each with the tape that recorded it and the losses that it added."""

    inputs: list[Any]
    variables: dict[TensorKey, Any]
    outputs: list[Any]
    twins: list[Any]
    rounded: list[Any] | None  # outputs in float32 of the rounded input; None where it has none but the data
    losses: list[Any]
    twin_losses: list[Any]
    tape: tf.GradientTape
    twin_tape: tf.GradientTape


class ReferencePass:
    """Taps for the float32 pass (`taps`), and how the layers get there (`policies`).

    Args:
        model: A built model.
        plans: What is to be recorded of each layer, by id.

    Attributes:
        policies: Names of the dtype policies for the pass, by layer id.
        left_out: Why a layer could not be run in float32, or its twin not, by id; known once the pass was traced.
    """

    def __init__(self, model: Any, plans: dict[str, TapPlan]) -> None:
        layers = model_layers(model)
        in_cells = {id(inner) for layer in layers.values() for inner in _inside_cell(layer)}
        self._plans = [
            plan
            for plan in plans.values()
            if id(plan.layer) not in in_cells and (plan.unseen is None or plan.gradient_unseen is None)
        ]
        self._trained = {id(layer): own_policy(layer) for layer in layers.values()}
        self._unnamed: list[Any] = []  # layers with 16-bit variables: Keras has no name for the policy they need
        self.policies: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        for layer_id, layer in layers.items():
            reason = cannot_flip(layer)
            if layer.compute_dtype not in _NARROW:
                continue
            if reason is None:
                self.policies[layer_id] = "float32"
            elif layer.variable_dtype in _NARROW and self._trained[id(layer)].quantization_mode is None:
                self._unnamed.append(layer)
            else:
                self.left_out[layer_id] = reason
        self._ids = {id(layer): layer_id for layer_id, layer in layers.items()}
        self._in_twin = False

    @contextmanager
    def taps(self, trace: ShadowTrace) -> Iterator[None]:
        """Hold while the pass is traced."""
        self._trace = trace
        self._claimed: set[int] = set()  # ops of calls that ended
        self._weights: dict[TensorKey, list[tuple[Any, Any]]] = defaultdict(list)
        with ExitStack() as stack:
            for layer in self._unnamed:
                policy = float32_compute_policy(layer)
                stack.callback(set_own_policy(layer, policy))
            for plan in self._plans:
                call = self._doubled(plan, plan.layer.call)
                stack.callback(set_instance_attribute(plan.layer, "call", call))
            yield
            self._keep_weights()

    def _doubled(self, plan: TapPlan, call: Callable[..., Any]) -> Callable[..., Any]:
        family = [plan.layer, *(inner for _, inner in walk_layers(plan.layer))]
        is_narrow = any(self._trained[id(layer)].compute_dtype in _NARROW for layer in family)
        calls = 0

        def doubled_call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if self._in_twin or not self._trace.is_at_root:
                return call(*args, **kwargs)
            number, calls = calls, calls + 1
            begin = _op_count()
            added = AddedLosses(plan.layer)
            if is_narrow and plan.id not in self.left_out:
                outputs, twin = self._call_twice(plan, family, call, args, kwargs)
            else:
                outputs, twin = call(*args, **kwargs), None
            self._look_for_narrow_ops(plan, begin)
            if plan.unseen is None:
                self._keep_losses(plan, number, added(), twin)
            if plan.id in self.left_out:  # the layers that follow are to go on in float32
                outputs = keras.tree.map_structure(_widened, outputs)
            flat = keras.tree.flatten(outputs)
            tapped = [self._tap(plan, number, place, tensor, twin) for place, tensor in enumerate(flat)]
            return keras.tree.pack_sequence_as(outputs, tapped)

        return doubled_call

    def _call_twice(
        self, plan: TapPlan, family: Sequence[Any], call: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, _Twin | None]:
        """Call the layer in float32 and its twin, both from the same state; the state goes on from the first."""
        state = call_state(family)
        before = _values(state)
        inputs = [x for x in keras.tree.flatten((args, kwargs)) if is_float_tensor(x)]
        # The twin gets structures of its own: augmentation layers write into the dict that they are given.
        twin_args, twin_kwargs = keras.tree.map_structure(lambda x: x, (args, kwargs))
        added = AddedLosses(plan.layer)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            try:
                outputs = call(*args, **kwargs)
            except _FAILURES as error:
                self.left_out[plan.id] = f"it fails in float32 ({error_in_a_line(error, 200)})"
                return self._call_twin(family, call, twin_args, twin_kwargs)[0], None
        losses = added()
        after = _values(state)
        _assign(state, before)
        with tf.GradientTape(persistent=True) as twin_tape:
            twin_tape.watch(inputs)
            twins, twin_losses = self._call_twin_or_leave_out(plan, family, call, twin_args, twin_kwargs)
        _assign(state, before)
        rounded = self._call_rounded(plan, family, call, twin_args, twin_kwargs)
        _assign(state, after)
        if plan.id in self.left_out:
            return outputs, None
        return outputs, _Twin(
            inputs=[x for x in inputs if not _is_data(x)],
            variables=self._variables_of(plan.layer),
            outputs=keras.tree.flatten(outputs),
            twins=keras.tree.flatten(twins),
            rounded=rounded,
            losses=losses,
            twin_losses=twin_losses,
            tape=tape,
            twin_tape=twin_tape,
        )

    def _variables_of(self, layer: Any) -> dict[TensorKey, Any]:
        """Return the trained variables whose gradients this layer's backward pass makes: its own, and its cell's."""
        return {
            TensorKey(self._ids[id(owner)], "weight_gradient", variable.name): variable
            for owner in (layer, *_inside_cell(layer))
            for variable in own_variables(owner)
            if variable.trainable
        }

    def _call_twin_or_leave_out(
        self, plan: TapPlan, family: Sequence[Any], call: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, list[Any]]:
        """Call the twin; of a layer whose twin fails only the whole error is measured."""
        try:
            return self._call_twin(family, call, args, kwargs)
        except _FAILURES as error:
            trained = self._trained[id(plan.layer)].compute_dtype
            self.left_out[plan.id] = f"its twin in {trained} fails ({error_in_a_line(error, 200)})"
            return None, []

    def _call_rounded(
        self, plan: TapPlan, family: Sequence[Any], call: Callable[..., Any], args: Any, kwargs: Any
    ) -> list[Any] | None:
        """Call the layer in float32 on what layers before it would hand over in 16 bits; data stay as they are."""
        narrow = self._trained[id(plan.layer)].compute_dtype
        given = [x for x in keras.tree.flatten((args, kwargs)) if is_float_tensor(x) and not _is_data(x)]
        if narrow not in _NARROW or plan.id in self.left_out or not given:
            return None

        def rounded(x: Any) -> Any:
            return tf.cast(tf.cast(x, narrow), x.dtype) if is_float_tensor(x) and not _is_data(x) else x

        begin = _op_count()
        self._in_twin = True
        try:
            args, kwargs = keras.tree.map_structure(rounded, (args, kwargs))
            with kept_losses(family):
                return list(keras.tree.flatten(call(*args, **kwargs)))
        finally:
            self._in_twin = False
            self._claimed.update(map(id, _ops_from(begin)))

    def _keep_losses(self, plan: TapPlan, call: int, losses: Sequence[Any], twin: _Twin | None) -> None:
        """Compare the losses that a layer adds in its call as if they were outputs."""
        twins = twin.twin_losses if twin is not None else []
        for number, loss in enumerate(losses):
            key = added_loss_key(plan.id, number)
            self._trace.keep(Part("reference", key, call), loss)
            if len(twins) == len(losses):
                self._trace.keep(Part("twin", key, call), twins[number])
                self._trace.keep(Part("own", key, call), error_sums(loss, twins[number]))

    def _call_twin(
        self, family: Sequence[Any], call: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, list[Any]]:
        """Return what the twin puts out, and the losses that it adds."""
        begin = _op_count()
        self._in_twin = True
        try:
            with ExitStack() as stack:
                stack.enter_context(kept_losses(family))
                for layer in family:
                    stack.callback(set_own_policy(layer, self._trained[id(layer)]))
                    stack.callback(refresh_dtype_cache(layer))
                added = AddedLosses(family[0])
                return call_under_policy(family[0], call, args, kwargs), added()
        finally:
            self._in_twin = False
            self._claimed.update(map(id, _ops_from(begin)))

    def _look_for_narrow_ops(self, plan: TapPlan, begin: int) -> None:
        """Find a layer that computes in 16 bits by itself, by its ops in float32: those of inner calls not counted."""
        reads = _READS if plan.layer in self._unnamed else ()
        for operation in _ops_from(begin):
            narrow = next((x.dtype.name for x in operation.outputs if x.dtype.name in _NARROW), None)
            is_new = id(operation) not in self._claimed and operation.type not in reads
            if narrow and is_new and plan.id not in self.left_out:
                self.left_out[plan.id] = f"it computes in {narrow} by itself, whatever its policy says"
            self._claimed.add(id(operation))

    def _tap(self, plan: TapPlan, call: int, place: int, tensor: Any, twin: _Twin | None) -> Any:
        if not is_float_tensor(tensor):
            return tensor
        activation, arriving = (TensorKey(plan.id, kind, str(place)) for kind in _KINDS)
        keep = self._trace.keep

        if twin is None and is_read_by_losses(tensor):  # in the training too: the loss takes the logits from its op
            if plan.unseen is None:
                keep(Part("reference", activation, call), tensor)
            return tensor

        def tap(x: Any) -> Any:
            if plan.unseen is None:
                keep(Part("reference", activation, call), x)
                if twin is not None:
                    self._keep_own_errors(activation, call, place, x, twin)

            def gradient_of(gradient: Any) -> Any:
                if isinstance(gradient, tf.Tensor) and self._trace.is_at_root and plan.gradient_unseen is None:
                    keep(Part("reference", arriving, call), gradient)
                    if twin is not None:
                        self._keep_own_gradients(Part("own", arriving, call), twin, place, gradient)
                return gradient

            return tf.identity(x), gradient_of

        return with_mask_of(tensor, tf.custom_gradient(tap)(tensor))

    def _keep_own_errors(self, key: TensorKey, call: int, place: int, reference: Any, twin: _Twin) -> None:
        self._trace.keep(Part("twin", key, call), twin.twins[place])
        self._trace.keep(Part("own", key, call), error_sums(reference, twin.twins[place]))
        if twin.rounded is not None:
            self._trace.keep(Part("rounded", key, call), error_sums(reference, twin.rounded[place]))

    def _keep_own_gradients(self, part: Part, twin: _Twin, place: int, gradient: Any) -> None:
        """Run both backward passes from the gradient that arrives at one output."""
        sources, keys = [*twin.inputs, *twin.variables.values()], list(twin.variables)
        references = twin.tape.gradient(twin.outputs[place], sources, gradient)
        twins = twin.twin_tape.gradient(twin.twins[place], sources, tf.cast(gradient, twin.twins[place].dtype))
        inputs: list[Any] = []
        for number, (reference, other) in enumerate(zip(references, twins, strict=True)):
            if reference is None or other is None:
                continue
            if number < len(twin.inputs):
                inputs.append(error_sums(reference, other))
            else:
                pair = tf.convert_to_tensor(reference), tf.convert_to_tensor(other)
                self._weights[keys[number - len(twin.inputs)]].append(pair)
        if inputs:
            self._trace.keep(part, tf.add_n(inputs))

    def _keep_weights(self) -> None:
        """Compare the gradients of weights, each summed over the layer's calls and outputs."""
        for key, pairs in self._weights.items():
            reference, other = (tf.add_n([tf.cast(x, tf.float32) for x in side]) for side in zip(*pairs, strict=True))
            self._trace.keep(Part("own", key, 0), error_sums(reference, other))
            self._trace.keep(Part("twin", key, 0), other)


def _inside_cell(layer: Any) -> list[Any]:
    """Return the cell of an RNN and what it owns: they run in the RNN's loop."""
    cell = getattr(layer, "cell", None) if isinstance(layer, keras.layers.RNN) else None
    if not isinstance(cell, keras.layers.Layer):
        return []
    return [cell, *(inner for _, inner in walk_layers(cell))]


def _op_count() -> int:
    return operation_count(current_graph())


def _ops_from(begin: int) -> list[Any]:
    return operations_since(current_graph(), begin)


def _values(variables: Sequence[Any]) -> list[Any]:
    return [tf.identity(variable.read_value()) for variable in variables]


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _widened(tensor: Any) -> Any:
    return tf.cast(tensor, tf.float32) if is_float_tensor(tensor) else tensor


def _is_data(tensor: Any) -> bool:
    """Tell whether a tensor of the graph is the batch itself: no gradient is wanted there."""
    while tensor.op.type in ("Cast", "Identity"):
        tensor = tensor.op.inputs[0]
    return tensor.op.type == "Placeholder"
