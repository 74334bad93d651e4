"""A precision policy as code to paste: for a model that is being built, and for one that is."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from precscope.advice.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.policy import Policy

__all__ = ["constructor_lines", "policy_code"]

_WIDTH = 118

#: Runs on a built model without PrecScope; the ids go by attribute where a layer is held by one, else by layer name.
_FOR_A_BUILT_MODEL = '''

def set_precision(model):
    """Give the layers of the built model their dtype policies. Call it before model.compile."""
    for path, policy in POLICIES.items():
        layer = model
        for name in path.split("/"):
            if isinstance(layer, (list, tuple)):
                layer = layer[int(name)]
            elif isinstance(layer, dict):
                layer = layer[name]
            elif name in vars(layer):
                layer = getattr(layer, name)
            else:
                layer = next(inner for inner in layer.layers if inner.name == name)
        for inner in layer._flatten_layers():
            inner.dtype_policy = policy

'''


def policy_code(policy: Policy) -> str:
    """Return Python code that sets `policy` without PrecScope, on a model that `build` code makes under it."""
    return "\n".join(_lines(policy)) + "\n"


def constructor_lines(policy: Policy) -> tuple[str, ...]:
    """Return how the pinned layers are to be made, a line each: `Dense(..., dtype="float32")  # head`."""
    return tuple(f'{_identifier(pin.type)}(..., dtype="{pin.policy}")  # {_one_line(pin.layer)}' for pin in policy.pins)


def _lines(policy: Policy) -> Iterator[str]:
    made_for = policy.made_for
    yield f"# Precision of model {_one_line(made_for.model)}, by PrecScope from the run {_one_line(made_for.run)}."
    yield f"# {_state(policy)}"
    yield "import keras"
    yield ""
    yield f'keras.config.set_dtype_policy("{policy.default}")'
    if policy.pins:
        yield ""
        yield f"# {counted(len(policy.pins), 'layer')} to build otherwise:"
        for line, pin in zip(constructor_lines(policy), policy.pins, strict=True):
            yield f"#     {line}"
            for reason in pin.reasons:
                yield from _comment(f"{reason.sentence} ({reason.confidence})", "#         ")
        yield "#"
        yield "# Or, where that is easier, build them all alike and call set_precision(model) on the built model:"
        yield "POLICIES = {"
        yield from (f'    {_quoted(pin.layer)}: "{pin.policy}",' for pin in policy.pins)
        yield "}"
        yield _FOR_A_BUILT_MODEL
    yield from _optimizer(policy)


def _optimizer(policy: Policy) -> Iterator[str]:
    needs = policy.optimizer
    if not needs.loss_scale_optimizer:
        yield "# The optimizer needs no loss scale of its own making: leave it as it is."
        return
    scale = "" if needs.initial_scale is None else f", initial_scale={needs.initial_scale!r}"
    yield "# float16 needs a scaled loss. Keras adds that by itself only where the model's own policy is mixed_float16:"
    yield f"#     optimizer = keras.optimizers.LossScaleOptimizer(optimizer{scale})"


def _state(policy: Policy) -> str:
    if policy.proven is None:
        return "Not proven yet: precscope verify replays batches under it."
    return (
        _one_line(policy.proof.sentence)
        if policy.proof is not None
        else ("Proven." if policy.proven else "Not proven.")
    )


def _comment(text: str, indent: str) -> Iterator[str]:
    yield from textwrap.wrap(_one_line(text), _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _one_line(text: str) -> str:
    """Return text that cannot end a comment: names may hold any character."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _identifier(name: str) -> str:
    return name if name.isidentifier() else "Layer"


def _quoted(name: str) -> str:
    return repr(name)
