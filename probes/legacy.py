"""Mixed-precision calls of tf.keras (Keras 2) that Keras 3 dropped: what it raises for them, what to write instead.

Keras' own messages say that something is missing, seldom what took its place. `add_legacy_note` attaches that to the
error (PEP 678), so it is printed below the traceback. Errors are known by their words: no framework is imported.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precscope.errors import SessionError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LEGACY_CALLS", "LegacyCall", "add_legacy_note", "check_loss_scale_arguments", "legacy_hint", "legacy_hints"]


@dataclass(frozen=True)
class LegacyCall:
    """One dropped call.

    Attributes:
        old: The call as it was written for tf.keras.
        pattern: Regular expression found in `"<exception type>: <message>"` of what Keras 3 raises for it.
        new: What to write instead, as the end of a sentence that begins with "Instead, ".
    """

    old: str
    pattern: str
    new: str

    @property
    def hint(self) -> str:
        """The sentence that users read."""
        return f"PrecScope: `{self.old}` is not in Keras 3. Instead, {self.new}"


_WRAP = "`keras.optimizers.LossScaleOptimizer(optimizer)`, whose scale is always dynamic"
_FIXED = (
    "for a fixed scale give the plain optimizer `loss_scale_factor=128` and call "
    "`model.compile(..., auto_scale_loss=False)`: otherwise Keras wraps it under mixed_float16 and resets the factor."
)
_POLICY = (
    'write `keras.DTypePolicy("mixed_float16")`: the loss scale belongs to the optimizer, not to the policy. Wrap '
)
_POLICY += f"the optimizer with {_WRAP}, or let `compile` do so."
_GRAPH_REWRITE = (
    'call `keras.config.set_dtype_policy("mixed_float16")` before the model is built; `compile` then wraps '
)
_GRAPH_REWRITE += "the optimizer in a LossScaleOptimizer."


def _no_attribute(owner: str, name: str) -> str:
    """Match a missing attribute, and a missing name in `from owner import name` or `import owner.name`."""
    return (
        rf"AttributeError: .*{owner}' (object )?has no attribute '{name}'"
        rf"|ImportError: cannot import name '{name}' from '[\w.]*{owner}'"
        rf"|ModuleNotFoundError: No module named '[\w.]*{owner}\.{name}\b"
    )


#: Every dropped call, first match first. Checked against Keras 3.15 and TensorFlow 2.21, call by call, in the tests.
LEGACY_CALLS: tuple[LegacyCall, ...] = (
    LegacyCall(
        "LossScaleOptimizer(optimizer, loss_scale=...)",
        r"ValueError: LossScaleOptimizer does not support arguments: .*`loss_scale`",
        f"write {_WRAP} (`initial_scale`, `dynamic_growth_steps`); {_FIXED}",
    ),
    LegacyCall(
        "LossScaleOptimizer(optimizer, dynamic=False, ...)",
        r"ValueError: LossScaleOptimizer no longer supports `dynamic=False`",
        _FIXED,
    ),
    LegacyCall(
        "LossScaleOptimizer(optimizer=..., loss_scale=...)",
        r"TypeError: LossScaleOptimizer\.__init__\(\) missing 1 required positional argument: 'inner_optimizer'",
        f"write {_WRAP}; the argument is called `inner_optimizer` now.",
    ),
    LegacyCall(
        "optimizer.get_scaled_loss(loss)",
        r"AttributeError: .* has no attribute 'get_scaled_loss'",
        "write `optimizer.scale_loss(loss)`, inside the gradient tape.",
    ),
    LegacyCall(
        "optimizer.get_unscaled_gradients(gradients)",
        r"AttributeError: .* has no attribute 'get_unscaled_gradients'",
        "hand the scaled gradients to `optimizer.apply_gradients(zip(gradients, variables))`: it unscales them, and "
        "skips the step where one is not finite. Unscaling them yourself as well would divide twice.",
    ),
    LegacyCall(
        "LossScaleOptimizer.minimize(loss, variables)",
        r"AttributeError: 'LossScaleOptimizer' object has no attribute 'minimize'",
        "take `tape.gradient(optimizer.scale_loss(loss), variables)` and hand it to `optimizer.apply_gradients`.",
    ),
    LegacyCall(
        "optimizer.loss_scale",
        r"AttributeError: 'LossScaleOptimizer' object has no attribute '_?loss_scale'",
        "read `optimizer.dynamic_scale`, a variable that exists once the optimizer is built.",
    ),
    LegacyCall(
        "optimizer.dynamic_counter",
        r"AttributeError: 'LossScaleOptimizer' object has no attribute 'dynamic_counter'",
        "read `optimizer.step_counter`, a variable that exists once the optimizer is built.",
    ),
    LegacyCall(
        "optimizer.dynamic",
        r"AttributeError: 'LossScaleOptimizer' object has no attribute 'dynamic'",
        "drop the question: the scale of a LossScaleOptimizer is always dynamic.",
    ),
    LegacyCall(
        "Policy(name, loss_scale=...)",
        r"TypeError: DTypePolicy\.__init__\(\) "
        r"(got an unexpected keyword argument 'loss_scale'|takes from 1 to 2 positional arguments)",
        _POLICY,
    ),
    LegacyCall(
        "global_policy().loss_scale",
        r"AttributeError: '\w*DTypePolicy' object has no attribute 'loss_scale'",
        "read `model.optimizer.dynamic_scale`: the loss scale belongs to the optimizer, not to the policy.",
    ),
    LegacyCall(
        "tf.keras.mixed_precision.experimental",
        _no_attribute("mixed_precision", "experimental"),
        "write `keras.config.set_dtype_policy(name)` for `set_policy`, `keras.DTypePolicy(name)` for `Policy`, "
        "`layer.dtype_policy` for `get_layer_policy(layer)`, and " + _WRAP + ".",
    ),
    LegacyCall(
        "mixed_precision.set_policy(policy)",
        _no_attribute("mixed_precision", "set_policy"),
        "write `keras.config.set_dtype_policy(policy)`.",
    ),
    LegacyCall(
        "enable_mixed_precision_graph_rewrite(optimizer)",
        _no_attribute(r"train\.experimental", "enable_mixed_precision_graph_rewrite")
        + r'|ValueError: "opt" must be an instance of a tf\.train\.Optimizer or a tf\.keras\.optimizers\.Optimizer, '
        r"but got: <keras\."
        r"|ValueError: Could not interpret optimizer identifier: <.*MixedPrecisionLossScaleOptimizer object",
        _GRAPH_REWRITE,
    ),
    LegacyCall(
        "tf.train.experimental.DynamicLossScale, FixedLossScale",
        _no_attribute(r"train\.experimental", "(Dynamic|Fixed)LossScale"),
        f"write {_WRAP}; {_FIXED}",
    ),
    LegacyCall(
        "tf.mixed_precision.experimental",
        _no_attribute("tensorflow", "mixed_precision"),
        f"write {_WRAP}; {_FIXED}",
    ),
    LegacyCall(
        "Layer(..., experimental_autocast=False)",
        r"ValueError: Unrecognized keyword arguments passed to \w+: \{.*'experimental_autocast'",
        "write `autocast=False`.",
    ),
)


def legacy_hint(error: BaseException) -> str | None:
    """Return what to write instead of the old call that raised `error`, or None where it is not one of them."""
    text = f"{type(error).__name__}: {error}"
    return next((call.hint for call in LEGACY_CALLS if re.search(call.pattern, text)), None)


def add_legacy_note(error: BaseException) -> None:
    """Attach the hint for `error` to it, once; do nothing where there is none."""
    hint = legacy_hint(error)
    if hint is not None and hint not in getattr(error, "__notes__", ()):
        error.add_note(hint)


@contextmanager
def legacy_hints() -> Iterator[None]:
    """Explain old tf.keras mixed-precision calls that fail in this block (or, as a decorator, in this function).

    The error goes on as it is, with a note that names the new call.
    """
    try:
        yield
    except Exception as error:
        add_legacy_note(error)
        raise


def check_loss_scale_arguments(optimizer: Any) -> None:
    """Refuse a LossScaleOptimizer that was built with the old positional arguments, which Keras 3 takes silently.

    `LossScaleOptimizer(optimizer, False, 128)` meant a fixed scale of 128. Keras 3 reads `initial_scale=False`, so the
    scale is 0 and the first step makes every weight NaN.

    Raises:
        SessionError: `optimizer.initial_scale` is a boolean or a string.
    """
    initial_scale = getattr(optimizer, "initial_scale", None)
    if isinstance(initial_scale, bool | str):
        raise SessionError(
            f"The LossScaleOptimizer has initial_scale={initial_scale!r}, expected a number such as the default. This "
            "is the old positional call `LossScaleOptimizer(optimizer, dynamic, initial_scale)` or "
            "`LossScaleOptimizer(optimizer, loss_scale)`, which Keras 3 reads differently. Instead, write "
            f"`keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=...)`; {_FIXED}"
        )
