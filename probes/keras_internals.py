"""The one door to what Keras and TensorFlow do not promise to keep.

Everything here was read in Keras 3.15 and TensorFlow 2.21; when a new release breaks PrecScope, it should break here.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras.src.models.functional import Functional
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_optimization_barrier, xla_variadic_reduce_v2
from tensorflow.python.framework import ops as tf_ops
from tensorflow.python.ops.control_flow_v2_func_graphs import (
    CondBranchFuncGraph,
    WhileBodyFuncGraph,
    WhileCondFuncGraph,
)
from tensorflow.python.util import tf_stack

from precscope.policy import MODEL
from precscope.probes.replica_internals import local_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "MODEL_ID",
    "build_train_function",
    "clone_function",
    "compilation",
    "converted_function",
    "current_graph",
    "growth_counter",
    "growth_steps",
    "has_named_layers",
    "in_control_flow_of",
    "initial_scale",
    "inner_optimizer",
    "is_compiled_by_xla",
    "is_dynamic",
    "leading_optimizer",
    "loss_scale",
    "loss_scaling",
    "optimized_variables",
    "optimizers_of",
    "overrides_compute_dtype",
    "own_policy",
    "own_variables",
    "reduce_together",
    "refresh_dtype_cache",
    "running_loss",
    "scale_variable",
    "set_instance_attribute",
    "set_own_policy",
    "stack",
    "state_variables",
    "steps_per_epoch",
    "tie",
    "update_counter",
    "updates_every_step",
    "usual_batch",
    "walk_layers",
]

#: Id of the model itself, for variables that no layer owns.
MODEL_ID = MODEL
_BOOKKEEPING = ("_layers", "_metrics", "_tracker", "_parent", "_loss_tracker", "optimizer")
_CONTROL_FLOW = (WhileBodyFuncGraph, WhileCondFuncGraph, CondBranchFuncGraph)


def walk_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield (id, layer) for every layer inside `model`, each once, owners before what they own.

    The id is the path by ownership: a layer's name inside a Sequential or functional model (where names are unique),
    and the attribute that holds it elsewhere ("encoder/blocks/0/attention"). Keras' own `layer.path` will not do: it is
    None for sub-layers without variables, and equal for equally named layers of two nested models.
    """
    seen = {id(model)}

    def walk(owner: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, layer in _children(owner):
            if id(layer) not in seen:
                seen.add(id(layer))
                path = f"{prefix}{name}"
                yield path, layer
                yield from walk(layer, f"{path}/")

    yield from walk(model, "")


def _children(owner: Any) -> Iterator[tuple[str, Any]]:
    is_named = has_named_layers(owner)
    found = {id(layer): layer.name for layer in owner.layers} if is_named else {}
    if is_named:
        yield from ((layer.name, layer) for layer in owner.layers)
    for attribute, value in list(vars(owner).items()):
        if attribute in _BOOKKEEPING or attribute.startswith("_self_"):  # Keras' and TensorFlow's own lists
            continue
        if is_named and attribute.startswith("_"):  # beside its layers only what a user added
            continue
        for name, layer in _layers_in(attribute, value):
            if id(layer) not in found:
                yield f"{name}:own" if name in found.values() else name, layer
                found[id(layer)] = name
    for position, layer in enumerate(() if is_named else getattr(owner, "_layers", ())):  # held by nothing searched
        if id(layer) not in found:
            yield f"{layer.name}:{position}", layer


def has_named_layers(layer: Any) -> bool:
    """Tell whether `layer` is a Sequential or functional model: it only passes tensors from layer to layer."""
    return isinstance(layer, (keras.Sequential, Functional))


def _layers_in(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, keras.layers.Layer):
        yield name, value
    elif depth < 4 and isinstance(value, dict):
        for key, item in value.items():
            yield from _layers_in(f"{name}/{key}", item, depth + 1)
    elif depth < 4 and isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from _layers_in(f"{name}/{position}", item, depth + 1)


def own_variables(layer: Any) -> list[Any]:
    """Return the variables that `layer` itself owns, not those of its sub-layers."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def state_variables(model: Any) -> list[tuple[str, Any]]:
    """Return (name, variable) of all that a step of a built model depends on: weights, statistics, states of seeds.

    Metrics are left out. The name is the variable's path, numbered where several have the same.
    """
    metrics = {id(variable) for variable in getattr(model, "metrics_variables", ())}
    named: dict[str, Any] = {}
    for variable in model.variables:
        if id(variable) in metrics:
            continue
        name, number = variable.path, 1
        while name in named:
            number += 1
            name = f"{variable.path}:{number}"
        named[name] = variable
    return list(named.items())


def own_policy(layer: Any) -> Any:
    """Return the dtype policy that `layer` follows: of a DTypePolicyMap, what the map says about this layer."""
    policy = layer._dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        return policy[layer.path] if layer.path else policy.default_policy
    return policy


def overrides_compute_dtype(layer: Any) -> bool:
    """Tell whether the layer's class computes in a dtype of its own choice, whatever its policy says."""
    return type(layer).compute_dtype is not keras.layers.Layer.compute_dtype


def set_own_policy(layer: Any, policy: Any) -> Callable[[], None]:
    """Give `layer` this dtype policy and no other layer; return a function that undoes it.

    Past Keras' setter, which writes into a DTypePolicyMap that other layers, and Keras' global policy, share.
    """
    before = layer._dtype_policy
    layer._dtype_policy = policy

    def undo() -> None:
        layer._dtype_policy = before

    return undo


def refresh_dtype_cache(layer: Any) -> Callable[[], None]:
    """Bring what a layer keeps in its compute dtype to the present policy; return a function that undoes it.

    Normalization keeps mean and variance as constants. A Sequential or functional model inside another casts its input
    to the dtype of its first symbolic tensor, which is that of the layer before it when it was built.
    """
    if has_named_layers(layer) and layer.compute_dtype == "float32":
        return _widen_inputs(layer)
    if not isinstance(layer, keras.layers.Normalization) or getattr(layer, "mean", None) is None:
        return lambda: None
    before = layer.mean, layer.variance
    with tf.init_scope():
        if layer.input_mean is None:
            layer.finalize_state()
        else:  # given by the user, perhaps with more digits than the cast ones have
            pairs = zip(before, (layer.input_mean, layer.input_variance), strict=True)
            layer.mean, layer.variance = (_given(layer, cast, given) for cast, given in pairs)

    def undo() -> None:
        layer.mean, layer.variance = before

    return undo


def _widen_inputs(model: Any) -> Callable[[], None]:
    """Let a Sequential or functional model take float32 where it was built for 16 bits; return what undoes it."""
    functional = getattr(model, "_functional", None) if isinstance(model, keras.Sequential) else model
    entries = [*getattr(functional, "_inputs", ()), *model._layers[:1]]  # Sequential asks its InputLayer as well
    inputs = [x for x in entries if isinstance(x, (keras.KerasTensor, keras.layers.InputLayer))]
    narrow = [x for x in inputs if x.dtype in ("float16", "bfloat16")]
    before = [(x, x._dtype) for x in narrow]
    for x in narrow:
        x._dtype = "float32"

    def undo() -> None:
        for x, dtype in before:
            x._dtype = dtype

    return undo


def _given(layer: Any, cast: Any, given: Any) -> Any:
    """Return a constant of a Normalization layer as it was given, in the shape that `build` gave it."""
    full = keras.ops.convert_to_tensor(given)
    if full.shape.num_elements() != cast.shape.num_elements():
        return keras.ops.cast(cast, layer.compute_dtype)  # it was broadcast
    return keras.ops.cast(keras.ops.reshape(full, cast.shape), layer.compute_dtype)


def set_instance_attribute(target: Any, name: str, value: Any) -> Callable[[], None]:
    """Shadow a method by an attribute of the instance, past Keras' tracking; return a function that undoes it."""
    missing = object()
    before = target.__dict__.get(name, missing)
    target.__dict__[name] = value

    def undo() -> None:
        if before is missing:
            target.__dict__.pop(name, None)
        else:
            target.__dict__[name] = before

    return undo


def build_train_function(
    model: Any, step: Callable[[Any], Any], take: Callable[[Any], None] | None = None
) -> Callable[[Any], Any]:
    """Return what Keras would make of `step` in place of `model.train_step`, and leave the model as it was.

    Args:
        model: A compiled model.
        step: The train step.
        take: Called with each batch before the step gets it, in the graph around the step, which XLA does not compile.
    """
    convert = model._autoconvert_optionals  # Keras' last wrapper around the compiled step

    def converted(step_function: Any) -> Callable[[Any], Any]:
        plain = convert(step_function)

        def taking(data: Any) -> Any:
            if take is not None:
                take(data)
            return plain(data)

        return taking

    before = model.train_function
    shadows = {
        "train_step": step,
        "make_train_function": type(model).make_train_function.__get__(model),
        "_autoconvert_optionals": converted,
    }
    with ExitStack() as stack:
        stack.callback(setattr, model, "train_function", before)
        for name, shadow in shadows.items():
            stack.callback(set_instance_attribute(model, name, shadow))
        model.make_train_function(force=True)
        return model.train_function


def compilation(model: Any) -> Any:
    """Return an object that another `model.compile` replaces; None before the first."""
    return getattr(model, "_loss_tracker", None)


def running_loss(model: Any) -> Any:
    """Return what `fit` has added up of the epoch's loss, on this worker; None where there is no such number."""
    total = getattr(getattr(model, "_loss_tracker", None), "total", None)
    return None if total is None else local_sum(total)


def usual_batch(model: Any, steps: int) -> int | None:
    """Return the batch size, right after the first call of an epoch that made `steps` train steps; None if unknown.

    Keras' loss tracker has counted the examples by then.
    """
    count = getattr(getattr(model, "_loss_tracker", None), "count", None)
    examples = 0 if count is None else int(local_sum(count))
    return examples // steps if examples >= steps else None


def steps_per_epoch(model: Any) -> int | None:
    """Return how many train steps an epoch of the running `fit` has, None where that is unknown."""
    parameters = getattr(getattr(model, "history", None), "params", None) or {}
    steps = parameters.get("steps")
    return steps if isinstance(steps, int) and steps > 0 else None


def clone_function(function: Any, body: Callable[..., Any]) -> Any:
    """Return a tf.function with the options of `function` (jit_compile, input_signature, ...) and another body.

    `body` is called with the converted Python function of `function` as its first argument.
    """
    python_function = converted_function(function)

    @functools.wraps(function.python_function)
    def cloned(*args: Any, **kwargs: Any) -> Any:
        return body(python_function, *args, **kwargs)

    return function._clone(tf.autograph.experimental.do_not_convert(cloned))


def converted_function(function: Any) -> Callable[..., Any]:
    """Return the Python function of a tf.function, converted by AutoGraph where the tf.function asks for that."""
    python_function: Callable[..., Any] = function.python_function
    if not getattr(function, "_autograph", True):
        return python_function
    context = tf.__internal__.autograph.control_status_ctx()
    converted: Callable[..., Any] = tf.__internal__.autograph.tf_convert(python_function, context)
    return converted


def is_compiled_by_xla(function: Any) -> bool:
    """Tell whether a tf.function was made with `jit_compile=True`."""
    return bool(getattr(function, "_jit_compile", False))


def current_graph() -> Any:
    """Return the graph that is being built, or None when executing eagerly."""
    return None if tf.executing_eagerly() else tf_ops.get_default_graph()


def stack() -> list[Any]:
    """Return the frames of the call at hand, outermost first; lines that AutoGraph converted are the user's own."""
    return list(tf_stack.extract_stack())


def in_control_flow_of(graph: Any, root: Any) -> bool:
    """Tell whether `graph` is a branch or loop body somewhere inside `root`, with no tf.function in between.

    What a user's own tf.function traces is kept and used again by the plain train function, so nothing may be
    recorded there.
    """
    while isinstance(graph, _CONTROL_FLOW):
        graph = graph.outer_graph
        if graph is root:
            return True
    return False


def tie(tensors: list[Any]) -> list[Any]:
    """Return the tensors, none of which XLA may use before all of them exist. Only inside XLA."""
    return list(xla_optimization_barrier(input=tensors))


def reduce_together(
    tensors: Sequence[Any], initial: Sequence[Any], combine: Sequence[Callable[[Any, Any], Any]]
) -> tuple[Any, ...]:
    """Reduce the last dimension of all tensors, of one shape, in one operation. Only inside XLA.

    Args:
        tensors: What to reduce; dtypes may differ.
        initial: For each tensor the scalar at which its reduction starts, of its dtype.
        combine: For each tensor the function of two scalars.
    """
    traced = _reducer(tuple(tensor.dtype for tensor in tensors), tuple(combine))
    last = int(tensors[0].shape.rank) - 1
    return tuple(xla_variadic_reduce_v2(list(tensors), list(initial), [last], traced))


@functools.cache
def _reducer(dtypes: tuple[Any, ...], combine: tuple[Callable[[Any, Any], Any], ...]) -> Any:
    """Return the function of two scalars for each dtype, traced: what XLA reduces with."""
    count = len(dtypes)

    def reducer(*scalars: Any) -> list[Any]:
        pairs = zip(combine, scalars[:count], scalars[count:], strict=True)
        return [function(first, second) for function, first, second in pairs]

    scalars = [tf.TensorSpec([], dtype) for dtype in dtypes]
    with tf.init_scope():
        return tf.function(reducer, autograph=False).get_concrete_function(*scalars, *scalars)


def is_dynamic(optimizer: Any) -> bool:
    """Tell whether `optimizer` is Keras' LossScaleOptimizer."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def inner_optimizer(optimizer: Any) -> Any:
    """Return the optimizer that updates the weights."""
    return optimizer.inner_optimizer if is_dynamic(optimizer) else optimizer


def loss_scale(optimizer: Any) -> Any:
    """Return the loss scale as a float32 tensor, a float, or None where the loss is not scaled."""
    if is_dynamic(optimizer):
        return optimizer.dynamic_scale.value if optimizer.built else float(optimizer.initial_scale)
    factor = getattr(optimizer, "loss_scale_factor", None)
    return None if factor is None else float(factor)


def scale_variable(optimizer: Any) -> Any:
    """Return the variable that holds a dynamic loss scale; None before it is built and without one."""
    return optimizer.dynamic_scale.value if is_dynamic(optimizer) and optimizer.built else None


def loss_scaling(optimizer: Any) -> str:
    """Return how the loss is scaled: "dynamic", "static" (a fixed `loss_scale_factor`) or "none"."""
    if is_dynamic(optimizer):
        return "dynamic"
    return "none" if getattr(optimizer, "loss_scale_factor", None) is None else "static"


def growth_counter(optimizer: Any) -> int | None:
    """Return how many finite steps have passed since the dynamic scale last moved."""
    return int(optimizer.step_counter.numpy()) if is_dynamic(optimizer) and optimizer.built else None


def growth_steps(optimizer: Any) -> int | None:
    """Return after how many finite steps in a row a dynamic scale doubles; None without one."""
    return int(optimizer.dynamic_growth_steps) if is_dynamic(optimizer) else None


def initial_scale(optimizer: Any) -> float | None:
    """Return the scale that a dynamic one begins with; None without one."""
    return float(optimizer.initial_scale) if is_dynamic(optimizer) else None


def update_counter(optimizer: Any) -> Any:
    """Return the variable that counts applied updates, those that only accumulate gradients among them.

    Not the public `iterations`: where gradients are accumulated that is a tensor, computed anew at each look.
    """
    return inner_optimizer(optimizer)._iterations.value


def updates_every_step(optimizer: Any) -> bool:
    """Tell whether every applied step updates the weights: not so while gradients are accumulated over several."""
    return not getattr(inner_optimizer(optimizer), "gradient_accumulation_steps", None)


def optimizers_of(model: Any) -> list[Any]:
    """Return the optimizers that `model` holds: the one it was compiled with first, then its other attributes.

    A model with a train step of its own may have several (a GAN's), and may never use the one that Keras gave it.
    """
    found = [getattr(model, "optimizer", None)]
    for name, value in list(vars(model).items()):
        if name not in _BOOKKEEPING:
            found += (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            )
    return list({id(item): item for item in found if isinstance(item, keras.optimizers.Optimizer)}.values())


def leading_optimizer(optimizers: Sequence[Any]) -> Any:
    """Return the first optimizer that was used: Keras builds it then. Before any was, the first."""
    return next((optimizer for optimizer in optimizers if optimizer.built), optimizers[0])


def optimized_variables(optimizer: Any) -> list[Any]:
    """Return the variables that a built optimizer updates, in the order of its gradients."""
    return list(optimizer._trainable_variables)
