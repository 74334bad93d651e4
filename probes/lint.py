"""Looks at a built model without training it: what mixed precision will do to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precscope.advice.finding import SEVERITIES
from precscope.error_text import where_it_failed
from precscope.lint_result import LintFinding, LintResult
from precscope.probes.forward_graph import input_specs, trace_forward
from precscope.probes.internals.layer_tree import walk_layers
from precscope.probes.lint_checks.attributes import check_epsilons, check_sizes
from precscope.probes.lint_checks.optimizer import check_loss_scaling
from precscope.probes.lint_checks.risky_ops import check_operations, upcasting_layers
from precscope.probes.lint_checks.train_step import check_train_step
from precscope.probes.model_entry import build_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["lint_entry", "lint_model"]


def lint_entry(entry: str) -> LintResult:
    """Return what `lint_model` finds in the model that the user's function `entry` builds.

    Raises:
        EntryPointError: There is no such function.
        PrecScopeError: It raised, or returned something else.
    """
    model, dataset = build_model(entry)
    return lint_model(model, dataset)


def lint_model(model: Any, dataset: Any = None) -> LintResult:
    """Return what is risky in `model`.

    Args:
        model: A Keras model; compiled, for the checks of its optimizer.
        dataset: A tf.data.Dataset of what `fit` would get. Only the shapes and dtypes of its elements are used: for a
            model that is not functional, and for its `train_step`.
    """
    layers: Mapping[str, Any] = dict(walk_layers(model))
    not_checked: list[str] = []
    specs = None if dataset is None else dataset.element_spec
    inputs = input_specs(model, specs)
    findings: list[LintFinding] = []
    upcasting: set[str] = set()
    if inputs is None:
        not_checked.append(
            "operations: the model's inputs are not known; let the function return (model, dataset) or call the model"
        )
    else:

        def operations() -> Iterable[LintFinding]:
            nonlocal layers
            graph = trace_forward(model, layers, inputs)
            layers = dict(walk_layers(model))  # with what the first call built
            upcasting.update(upcasting_layers(graph.ops))
            return check_operations(graph)

        findings += _tried("operations", operations, not_checked)
    optimizer = model.optimizer if model.compiled else None
    if optimizer is None:
        not_checked.append("the optimizer: the model is not compiled")
    findings += check_loss_scaling(layers, optimizer)
    findings += check_epsilons(layers, upcasting)
    findings += check_sizes(layers)
    if optimizer is not None and specs is not None and model.built:
        findings += _tried("the train step", lambda: check_train_step(model, specs), not_checked)
    order = {layer_id: number for number, layer_id in enumerate(layers, start=1)}
    ranked = sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), order.get(f.layer or "", 0)))
    narrow = sum(1 for layer in layers.values() if layer.compute_dtype == "float16")
    return LintResult(model.name, len(layers), narrow, tuple(ranked), tuple(not_checked))


def _tried(what: str, check: Callable[[], Iterable[LintFinding]], not_checked: list[str]) -> list[LintFinding]:
    """Run a check that traces the user's code; where that fails, say so and go on."""
    try:
        return list(check())
    except Exception as error:
        not_checked.append(f"{what}: tracing failed: {where_it_failed(error)}"[:300])
        return []
