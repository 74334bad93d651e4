"""The page docs/compatibility.md, from the results of the matrix."""

from __future__ import annotations

import re
from typing import Any

from tests.compatibility.catalog import rows
from tests.compatibility.judge import BOUNDS, NOISE_FACTOR, NOISE_TRAININGS
from tests.compatibility.optimizers_and_activations import ACTIVATIONS, OPTIMIZERS, activation_names

DEVICES = ("cpu", "gpu")
Records = dict[tuple[str, ...], dict[str, Any]]
COMMAND = "python -m tests.compatibility.matrix --jobs 2 --write docs/compatibility.md"

HEAD = """# Compatibility

Every way to train that is listed here was trained three times from the same start: without PrecScope, under a session
that never samples, and with every step but the first sampled (as many as there are, 2 to 12); without XLA but in rows
that name it. This page is generated:

```
{command}
```

trains what has no result yet, keeps results in `docs/data/compatibility.jsonl` as they come (an interrupted run goes
on, several may share the file), and writes this page. `--all` adds every member of every family of
`keras.applications`, `--only REGEX` chooses, `--again` and `--failed` run anew, `--deadline SECONDS` begins no row
later. keras-hub comes with `pip install --group keras-hub`. On a machine with a GPU the same command fills the GPU
column, with `--cpu-jobs N` beside it both; `--merge FILE` adds the results of another machine.

**A row passes where all of this holds:**

- It trains: losses are finite and weights move.
- **Not sampled, nothing changes:** under a session that never samples, losses, weights, counters and seeds are equal to
  the last bit. Where trainings without PrecScope differ from each other (a GPU may add up in any order; {again} more of
  them tell), they may differ by {noise} times as much, and so may sampled results. On a GPU some units in the last
  place of float32 (a share of 2^-22) are allowed in any case: one sum in another order may be missed by all of them.
- **Sampled, results agree:** losses and weights differ by no more than the bound, counters and seeds not at all.
- **What is not recorded says why:** each layer is recorded forward and backward, or gives a reason. Beside reasons that
  every model has (a layer that only rearranges or selects, a model whose output is its last layer's, a float32 softmax
  or sigmoid, behind which Keras' losses look for the logits) only those pass that the configuration names beforehand.
- Where Keras itself refuses to train, the row holds its words, and they are the same under PrecScope.
- Every trainable weight's gradient is recorded, PrecScope tells of no trouble, and leaves nothing behind on model or
  optimizer.

**The bound** is {float32:.2g} in float32, {float16:.2g} in mixed_float16 and {bfloat16:.2g} in mixed_bfloat16: for
weights, the distance between the two trainings as a share of the way that the weights went; for losses, a share of
their size. It is not zero, for a tap stands between operations that may be fused otherwise, and a value that fusion
keeps in float32 is rounded where it is recorded ([overhead](overhead.md)). That costs some units in the last place
a layer (2^-24, 2^-11 or 2^-8), which depth, and normalization over small batches, multiply; the bounds allow for some
2^14, 2^7 and 2^6 of them. The tables say what was seen: mostly 0, which is equal to the last bit.
"""

AFTER = """
## What this taught, and what remains

- On TensorFlow Keras has no flash attention: asked for it (`flash_attention=True`) it refuses to train, with the same
  words under PrecScope; `keras.config.enable_flash_attention()` alone changes nothing.
- Keras itself (3.15 on TensorFlow) refuses a `train_step` that returns nothing or an empty dict: there is no such row.
- Of several optimizers, loss, loss scale and applied steps are those of one: the model's own, or the first that is used
  where that one never is. Weights and gradients are recorded for all.
- An optimizer that is called in a branch of the step (`tf.cond`) gives no weight gradients, and skipped steps are not
  counted: a step without an update may only have added up gradients.
- Inside a loop (an RNN's cell) only the forward pass is recorded.
- The gradient at a float32 softmax or sigmoid is not recorded, inside attention as at a classifier's end: Keras' losses
  look for the logits behind such an operation, so nothing may stand after it.
- Attention without dropout and scores is one operation in Keras: softmax and dropout inside are not called, so they are
  not seen; the attention layer's own output is.
- `sparsemax` is run in float32 alone, for Keras cannot compute it in 16 bits.
- A row that is "not run" has not been tried since its configuration was written.
- A `tf.function` of one's own around the train step is recorded; one that a layer calls is not.
- Weights are compared after a few steps. What PrecScope does to a long training is in [overhead](overhead.md).
"""


#: What is known about rows that fail; a test holds that no other does.
KNOWN_FAILURES = {
    ("gpu", "Recurrent networks and time", "GRU", "mixed_bfloat16"): (
        "The GRU, on cuDNN, gives NaN in bfloat16 without PrecScope as well: its backward pass does not write its "
        "gradients, and what lay in memory is taken for them."
    ),
    ("gpu", "Recurrent networks and time", "LSTM", "mixed_bfloat16"): (
        "The LSTM does the same, depending on what lay in the GPU's memory: without PrecScope it gave NaN in 4 of 4 "
        "trainings after free memory had been filled with NaN, in 0 of 4 after it had been filled with zeros, and for "
        "8 units in 8 of 8 with memory as it was. A probed step leaves other memory behind than a plain one. "
        "PrecScope tells of it (`unwritten_memory` in [the rules](rules.md)); `benchmarks/cudnn_rnn.py` shows it."
    ),
}


def page(records: Records) -> str:
    """Return the page; rows without a result say "not run"."""
    bounds = {name.removeprefix("mixed_"): value for name, value in BOUNDS.items()}
    parts = [
        HEAD.format(command=COMMAND, noise=NOISE_FACTOR, again=NOISE_TRAININGS, **bounds),
        summary(records),
        what_failed(records),
    ]
    shown = [(c, p) for c, p in rows(extended=True) if not c.extended or _results(records, c, p)]
    for group in dict.fromkeys(configuration.group for configuration, _ in shown):
        parts.append(f"\n## {group}\n")
        table = optimizer_table if group == OPTIMIZERS else activation_table if group == ACTIVATIONS else group_table
        parts.append("\n".join(table(records, [(c, p) for c, p in shown if c.group == group])))
    return "\n".join([*parts, AFTER])


def failures(records: Records) -> list[str]:
    """Return a line for each row that failed."""
    return [f"{' / '.join(row)}: {'; '.join(r['faults'])}" for row, r in records.items() if r["passed"] is False]


def what_failed(records: Records) -> str:
    """Return the rows that failed, with what is known about them; empty where none did."""
    failed = [row for row, record in records.items() if record["passed"] is False]
    lines = [f"- {line}" for line in failures(records)]
    known = [text for row, text in KNOWN_FAILURES.items() if row in failed]
    return "\n".join(["", "## What failed", "", *lines, "", *known]) if failed else ""


def summary(records: Records) -> str:
    """Say what was run, on what, and how it came out."""
    lines = []
    for device in DEVICES:
        own = [record for (kind, *_), record in records.items() if kind == device]
        if not own:
            lines.append(f"- **{device.upper()}:** not run yet.")
            continue
        counts = [sum(record["passed"] is outcome for record in own) for outcome in (True, False, None)]
        names = len({(record["group"], record["name"]) for record in own})
        machines = sorted({f"{record['device_name']}, {record['versions']}" for record in own})
        exact = sum(record.get("sampled_weights") == 0 for record in own)
        lines.append(
            f"- **{device.upper()}:** {names} configurations, {len(own)} rows: {counts[0]} passed, {counts[1]} failed, "
            f"{counts[2]} skipped; {exact} with weights equal to the last bit. {'; '.join(machines)}."
        )
    return "\n".join(lines)


def _results(records: Records, configuration: Any, policy: str) -> dict[str, dict[str, Any]]:
    found = {d: records.get((d, configuration.group, configuration.name, policy)) for d in DEVICES}
    return {device: record for device, record in found.items() if record is not None}


def group_table(records: Records, shown: list[tuple[Any, str]]) -> list[str]:
    """Return a table with a row for each configuration and policy."""
    lines = [
        "| configuration | policy | layers seen: forward, backward | not seen, and why | difference: weights, losses "
        "| CPU | GPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for configuration, policy in shown:
        results = _results(records, configuration, policy)
        best = next(iter(results.values()), {})
        seen = f"{best['forward']}, {best['backward']} of {best['layers']}" if "layers" in best else ""
        reasons = f"Keras refuses: {best['refused']}" if "refused" in best else _reasons(best)
        cells = [configuration.name, policy, seen, reasons, _difference(best)]
        lines.append(f"| {' | '.join(cells)} | {_verdict(results.get('cpu'))} | {_verdict(results.get('gpu'))} |")
    return lines


def _reasons(record: dict[str, Any]) -> str:
    """Return the reasons, without those that every model has; the same reason in both directions once."""
    texts: dict[str, list[str]] = {}
    for label, count in record.get("reasons", {}).items():
        direction, reason = label.split(": ", 1)
        if not re.search("its last layer|rearranges|among its input's", reason):
            texts.setdefault(reason, []).append(f"{count} {direction}")
    return "; ".join(f"{', '.join(counts)}: {reason}" for reason, counts in texts.items())


def _difference(record: dict[str, Any]) -> str:
    if "sampled_weights" not in record:
        return ""
    return ", ".join(
        "0" if value == 0 else f"{value:.1e}" for value in (record["sampled_weights"], record["sampled_losses"])
    )


def _verdict(record: dict[str, Any] | None) -> str:
    if record is None:
        return "not run"
    if record["passed"] is None:
        return str(record["skipped_for"])
    return "passed" if record["passed"] else f"**failed:** {'; '.join(record['faults'])[:200]}".replace("|", "/")


def optimizer_table(records: Records, shown: list[tuple[Any, str]]) -> list[str]:
    """Return what is seen of each optimizer under each policy."""
    lines = [
        "A small classifier with an embedding, a `tanh` layer and a float32 head: 5 trainable weights.",
        "",
        "| optimizer | policy | gradients seen | loss, loss scale | lost updates | difference: weights, losses "
        "| CPU | GPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for configuration, policy in shown:
        results = _results(records, configuration, policy)
        best = next(iter(results.values()), {})
        cells = [configuration.name, policy]
        if "layers" in best:
            cells.append(f"{best['weight_gradients_seen']} of {best['variables']}")
            cells.append(f"{'yes' if best['loss_seen'] else 'no'}, {best['loss_scale'] or 'none'}")
            cells.append(f"counted for {best['updates_counted']} of {best['variables']}")
        else:
            cells += [""] * 3
        cells.append(_difference(best))
        lines.append(f"| {' | '.join(cells)} | {_verdict(results.get('cpu'))} | {_verdict(results.get('gpu'))} |")
    return lines


def activation_table(records: Records, shown: list[tuple[Any, str]]) -> list[str]:
    """Return what is seen of each activation as a layer, under each policy: dtype forward, dtype backward."""
    results = {policy: _results(records, configuration, policy) for configuration, policy in shown}
    lines = [
        "Each activation is a layer of its own (`Activation`, or the class of that name) in one model, and in `Dense`.",
        "Under a policy stand the dtypes in which the layer's output and the gradient there are recorded.",
        "",
        f"| activation | {' | '.join(results)} |",
        f"|---|{'---|' * len(results)}",
    ]
    for name in [*activation_names(), "LeakyReLU", "PReLU", "ELU", "Softmax", "ReLU"]:
        cells = [_tensor_kinds(next(iter(by_device.values()), {}), f"{name}_layer") for by_device in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", *group_table(records, shown)]


def _tensor_kinds(record: dict[str, Any], layer: str) -> str:
    seen = record.get("activations", {}).get(layer)
    if seen is None:
        return "not run"
    return f"{seen['activation'] or 'its input, as recorded before'} / {seen['gradient'] or 'not seen'}"
