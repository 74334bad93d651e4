"""What the layers' own code risks in float16, seen while a probed step is traced: findings cite it.

The ops are at hand there, so that nothing is traced for it. `precscope lint` looks at more, without a training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from precscope.error_text import failure_in_a_line
from precscope.probes import taps
from precscope.probes.code_places import place_in_call
from precscope.probes.colliding_ids import CollidingIds
from precscope.probes.forward_graph import LayerOp
from precscope.probes.lint_checks.attributes import check_epsilons
from precscope.probes.lint_checks.risky_ops import check_layer_ops, upcasting_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from precscope.lint_result import LintFinding
    from precscope.probes.keeper import Keeper

__all__ = ["TracedLint"]


class TracedLint:
    """Collects what layers risk, and writes it into the run.

    Args:
        keeper: Writes the run.
        tell: Tells the user, with a level: of ids that collide; and once where this fails, it is off then, and the
            probes go on.
    """

    def __init__(self, keeper: Keeper, tell: Callable[[Literal["info", "warning", "error"], str], None]) -> None:
        self._keeper = keeper
        self._tell = tell
        self._known: set[LintFinding] = set()
        self._fresh: list[LintFinding] = []
        self._ids = CollidingIds()
        self._off = False

    def look(self, layer_id: str, layer: Any, ops: Sequence[Any]) -> None:
        """Look at the ops that a layer's call made while it was traced, and at the layer."""
        if self._off:
            return
        try:
            made = [LayerOp(layer_id, op, place_in_call(op, taps.__file__, "tapped_call")) for op in ops]
            upcasting = upcasting_layers(made)
            self._ids.look(layer_id, ops)
            for finding in (*check_layer_ops(made), *check_epsilons({layer_id: layer}, upcasting)):
                if finding not in self._known:
                    self._known.add(finding)
                    self._fresh.append(finding)
        except Exception as error:  # a remark is never worth a sample
            self._off = True
            self._tell("info", f"what layers risk in float16 is not looked at: {failure_in_a_line(error)}")

    def keep(self) -> None:
        """Write what was found since the last call; tell of ids that collide, each layer once."""
        for message in self._ids.found():
            self._tell("warning", message)
        fresh, self._fresh = self._fresh, []
        if fresh:
            self._keeper.write(lambda writer: writer.add_lint(fresh))
