"""The model as the run's records describe it: layers, who owns which variable, what is recorded and why not."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.formats import FORMATS
from precscope.origin_records import DATA_ID
from precscope.probes.internals.dtype_policies import own_policy
from precscope.probes.internals.layer_tree import MODEL_ID, own_variables, walk_layers
from precscope.probes.tap_plan import TapPlan, plan_taps
from precscope.records import LayerRecord

if TYPE_CHECKING:
    from precscope.options import Options
    from precscope.probes.reading import TensorKey

__all__ = ["ModelRecords"]

#: What was recorded of each layer, by id.
Kinds = Mapping[str, set[str]]


class ModelRecords:
    """Knows the layers of `model`, which may still be unbuilt: `refresh` looks again.

    Attributes:
        plans: What is recorded of each layer, by id.
        between: What each probed step saw of the batch and of code between layers, by id.
    """

    def __init__(self, model: Any, options: Options) -> None:
        self._model = model
        self._options = options
        self.between: list[dict[str, TapPlan]] = []
        self.refresh()

    def refresh(self) -> None:
        """Look at the model again, and plan what is recorded anew."""
        options = self._options
        layers = dict(walk_layers(self._model))
        self.plans: dict[str, TapPlan] = plan_taps(layers, options.selects, options.activations, options.gradients)
        self._names: dict[int, tuple[str, str]] = {}
        for layer_id, layer in [(MODEL_ID, self._model), *layers.items()]:
            self._name_variables(layer_id, layer)

    def _name_variables(self, layer_id: str, layer: Any) -> None:
        taken: set[str] = set()
        for variable in own_variables(layer):
            name = variable.name
            while name in taken:
                name += "'"
            taken.add(name)
            self._names.setdefault(id(variable), (layer_id, name))

    def variable_name(self, variable: Any) -> tuple[str, str] | None:
        """Return (layer id, name) of a Keras variable, or None where its layer is not selected."""
        named = self._names.get(id(variable))
        if named is None:
            return (MODEL_ID, getattr(variable, "path", variable.name))
        plan = self.plans.get(named[0])
        selected = plan is None or self._options.selects(plan.id, type(plan.layer).__name__)
        return named if selected else None

    def plan(self, layer_id: str) -> TapPlan | None:
        """Return what is known of a layer, or of code between layers; None of what is neither."""
        between = (plans[layer_id] for plans in self.between if layer_id in plans)
        return self.plans.get(layer_id) or next(between, None)

    def selects_between(self, layer_id: str, op_type: str) -> bool:
        """Tell whether to record what is no layer: the batch always, code between layers as if it were one."""
        options = self._options
        return options.activations and (layer_id == DATA_ID or options.selects(layer_id, op_type))

    def layers(self, recorded: set[TensorKey] | None = None) -> list[LayerRecord]:
        """Return a record of every layer; `recorded` says what the last sample held, None before the first."""
        kinds = None if recorded is None else _kinds_by_layer(recorded)
        between = {layer_id: plan for plans in self.between for layer_id, plan in plans.items()}
        orders = [plan.order for plan in (*self.plans.values(), *between.values()) if plan.order is not None]
        unordered = iter(range(max(orders, default=-1) + 1, sys.maxsize))
        records = [
            _layer_record(plan, next(unordered) if plan.order is None else plan.order, kinds)
            for plan in self.plans.values()
        ]
        records += [_between_record(plan, kinds or {}) for plan in between.values()]
        if kinds is not None and MODEL_ID in kinds:
            records.append(
                _record(MODEL_ID, self._model, next(unordered), (), "only its own variables", "only its own variables")
            )
        return records


def _kinds_by_layer(recorded: set[TensorKey]) -> Kinds:
    kinds: dict[str, set[str]] = defaultdict(set)
    for key in recorded:
        kinds[key.layer].add(key.kind)
    return kinds


def _layer_record(plan: TapPlan, order: int, recorded: Kinds | None) -> LayerRecord:
    unseen, gradient_unseen = plan.unseen, plan.gradient_unseen
    if recorded is not None:
        kinds = recorded.get(plan.id, set())
        if unseen is None and "activation" not in kinds:
            unseen = "it was not called where it can be recorded" if plan.order is None else "no float output"
        if gradient_unseen is None and "gradient" not in kinds:
            gradient_unseen = unseen or plan.no_gradient
    return _record(plan.id, plan.layer, order, tuple(plan.inputs), unseen, gradient_unseen)


def _between_record(plan: TapPlan, recorded: Kinds) -> LayerRecord:
    kinds = recorded.get(plan.id, set())
    dtype = plan.layer.dtype if plan.layer.dtype in FORMATS else "float32"
    return LayerRecord(
        id=plan.id,
        order=plan.order or 0,
        type=plan.layer.op_type,
        keras_path=None,
        policy=dtype,
        compute_dtype=dtype,
        variable_dtype=dtype,
        inputs=tuple(plan.inputs),
        gradient_unseen=plan.gradient_unseen or (None if "gradient" in kinds else plan.no_gradient),
    )


def _record(
    layer_id: str, layer: Any, order: int, inputs: tuple[str, ...], unseen: str | None, gradient_unseen: str | None
) -> LayerRecord:
    return LayerRecord(
        id=layer_id,
        order=order,
        type=type(layer).__name__,
        keras_path=layer.path,
        policy=own_policy(layer).name,
        compute_dtype=layer.compute_dtype,
        variable_dtype=layer.variable_dtype,
        parameters=sum(int(np.prod(v.shape)) for v in own_variables(layer) if v.shape is not None),
        inputs=inputs,
        unseen=unseen,
        gradient_unseen=gradient_unseen,
        autocast=bool(layer.autocast),
    )
