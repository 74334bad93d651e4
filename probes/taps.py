"""Taps on layers: an identity around the output of `layer.call`, while a probed step is traced."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.origin_records import DATA_ID
from precscope.probes import code_places
from precscope.probes.internals.graphs import current_graph, operation_count, operations_since
from precscope.probes.internals.layer_calls import shadow_call, with_mask_of
from precscope.probes.kept_relu import kept_relu
from precscope.probes.reading import TensorKey
from precscope.probes.tap_plan import CodeBetween, TapPlan
from precscope.probes.tensor_sources import TensorSources, is_float_tensor, map_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from precscope.probes.recorder import Recorder

__all__ = ["LayerTaps", "is_read_by_losses"]


class _Calling(threading.local):
    """Ids of the layers whose calls have begun and not ended; replicas are traced in threads that take turns."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.inner: list[list[tuple[Any, range]]] = []  # of each, the graph and the ops of the calls inside it


class LayerTaps:
    """Puts taps on a model's layers while a probed step is traced, and takes them off again.

    Args:
        plans: What is recorded of each layer.
        recorder: Takes what the taps see.
        selects: Asked with id and type whether the batch, or code between layers, is to be recorded as well; by
            default nothing is.
        look: Called once for a layer, with its id, the layer and the ops that its first call made, those of layers
            inside it not among them.

    Attributes:
        plans: What is recorded of each layer.
        between: What was seen of the batch and of code between layers, by id.
    """

    def __init__(
        self,
        plans: dict[str, TapPlan],
        recorder: Recorder,
        selects: Callable[[str, str], bool] = lambda layer_id, layer_type: False,
        look: Callable[[str, Any, Sequence[Any]], None] = lambda layer_id, layer, ops: None,
    ) -> None:
        self._look = look
        self.plans = plans
        self.between: dict[str, TapPlan] = {}
        self._recorder = recorder
        self._selects = selects
        self._sources = TensorSources()
        self._calling = _Calling()
        self._calls = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Shadow `call` of every layer for as long as the context lasts."""
        with ExitStack() as stack:
            stack.enter_context(kept_relu(self._recorder))
            for plan in self.plans.values():
                stack.callback(shadow_call(plan.layer, partial(self._tapped, plan)))
            try:
                yield
            finally:
                self._sources.clear()

    def tap_batch(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return a train step's arguments with a tap on every float tensor: the batch is recorded as an input layer."""
        return map_named(self._tap_data, arguments) if self._recorder.active else arguments

    def _tap_data(self, name: str, tensor: Any) -> Any:
        plan = (
            self._plan_between(DATA_ID, CodeBetween("InputLayer", tensor.dtype.name))
            if is_float_tensor(tensor)
            else None
        )
        if plan is None:
            return tensor
        tapped = self._recorder.record(TensorKey(DATA_ID, "activation", name), tensor)
        self._sources.add(tapped, DATA_ID)
        return tapped

    def _plan_between(self, layer_id: str, code: CodeBetween) -> TapPlan | None:
        """Return the plan for what is no layer, its order noted; None where it is not to be recorded."""
        if layer_id not in self.between:
            if not self._selects(layer_id, code.op_type):
                return None
            plan = TapPlan(layer_id, code)
            if layer_id == DATA_ID:
                plan.gradient_unseen = "nothing learns from it"
            self._number(plan)
            self.between[layer_id] = plan
        return self.between[layer_id]

    def _number(self, plan: TapPlan) -> None:
        plan.order, self._calls = self._calls, self._calls + 1

    def _tapped(self, plan: TapPlan, call: Callable[..., Any]) -> Callable[..., Any]:
        def tapped_call(*args: Any, **kwargs: Any) -> Any:
            if not self._recorder.active:
                return call(*args, **kwargs)
            graph, calling = current_graph(), self._calling
            first = operation_count(graph)
            args, kwargs = self._note_inputs(plan, args, kwargs)
            begin = operation_count(graph)
            calling.layers.append(plan.id)
            calling.inner.append([])
            try:
                outputs = call(*args, **kwargs)
            finally:
                calling.layers.pop()
                inner = calling.inner.pop()
            if plan.order is None:
                self._number(plan)
                ops = operations_since(graph, begin)
                plan.place = code_places.place_of_call(plan.layer, ops)
                of_others = {place for other, places in inner if other is graph for place in places}
                own = [op for place, op in enumerate(ops, start=begin) if place not in of_others]
                self._look(plan.id, plan.layer, own)
            outputs = self._tap_outputs(plan, outputs)
            if calling.inner:
                calling.inner[-1].append((graph, range(first, operation_count(graph))))
            return outputs

        return tapped_call

    def _note_inputs(self, plan: TapPlan, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Note whose outputs the arguments are, and return the arguments, with taps on what code between computed."""
        replaced: dict[int, Any] = {}
        for tensor in keras.tree.flatten((args, kwargs)):
            if not tf.is_tensor(tensor) or isinstance(tensor, keras.Variable):  # a stateful RNN's state
                continue
            producer = self._sources.producer(tensor)
            names = [] if producer is None else [producer]
            if producer is None and is_float_tensor(tensor) and self._recorder.place() == "root":
                names, tapped = self._tap_code_before(plan, tensor)
                if tapped is not None:
                    replaced[id(tensor)] = tapped
            plan.inputs += [name for name in names if name not in plan.inputs and name != plan.id]
        if not replaced:
            return args, kwargs
        return keras.tree.map_structure(lambda leaf: replaced.get(id(leaf), leaf), (args, kwargs))

    def _tap_code_before(self, plan: TapPlan, tensor: Any) -> tuple[list[str], Any]:
        """Return whose outputs a tensor was computed from, and that tensor tapped where code in between computed it.

        Such code is the model's own, or that of the layer that calls the one at hand.
        """
        producers, computing = self._sources.computed_from(tensor)
        if not producers or not computing:
            return producers, None
        owner = f"{self._calling.layers[-1]}/" if self._calling.layers else ""
        name = plan.id.removeprefix(owner)
        code = self._plan_between(f"{owner}(before {name})", CodeBetween(computing[0].type, tensor.dtype.name))
        if code is None:
            return producers, None
        code.inputs += [name for name in producers if name not in code.inputs]
        code.place = code.place or code_places.place_of_ops(computing)
        return [code.id], self._tap_outputs(code, tensor)

    def _tap_outputs(self, plan: TapPlan, outputs: Any) -> Any:
        flat = keras.tree.flatten(outputs)
        tapped = [self._tap(plan, str(index), tensor) for index, tensor in enumerate(flat)]
        for tensor in tapped:
            self._sources.add(tensor, plan.id)
        return keras.tree.pack_sequence_as(outputs, tapped)

    def _tap(self, plan: TapPlan, name: str, tensor: Any) -> Any:
        if not is_float_tensor(tensor) or (plan.unseen and plan.gradient_unseen):
            return tensor
        recorder = self._recorder
        if is_read_by_losses(tensor) and recorder.place() == "root":
            plan.no_gradient = "Keras' losses look for the logits behind it, so nothing may stand between"
            if not plan.unseen:
                recorder.record(TensorKey(plan.id, "activation", name), tensor)
            return tensor
        forward, backward = TensorKey(plan.id, "activation", name), TensorKey(plan.id, "gradient", name)
        if recorder.place() == "loop":  # a side effect in the gradient of a loop is refused by TensorFlow
            plan.no_gradient = "inside a loop only the forward pass can be recorded"
            return tensor if plan.unseen else recorder.record(forward, tensor)

        def tap(x: Any) -> Any:
            x = x if plan.unseen else recorder.record(forward, x)
            return tf.identity(x), lambda gradient: _tap_gradient(recorder, backward, plan, gradient)

        return with_mask_of(tensor, tf.custom_gradient(tap)(tensor))


def is_read_by_losses(tensor: Any) -> bool:
    """Tell whether a loss of Keras, given this tensor, would take the logits from the op that made it.

    It does so where that op is a softmax or a sigmoid, and works on the probabilities otherwise: a tap would change the
    loss. In 16 bits a cast to float32 lies in between already.
    """
    op = None if current_graph() is None else getattr(tensor, "op", None)
    return op is not None and op.type in ("Softmax", "Sigmoid") and tensor.dtype == tf.float32


def _tap_gradient(recorder: Recorder, key: TensorKey, plan: TapPlan, gradient: Any) -> Any:
    if plan.gradient_unseen or not recorder.active or not isinstance(gradient, tf.Tensor):
        return gradient
    return recorder.record(key, gradient)
