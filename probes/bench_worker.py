"""The process that trains under one dtype policy for `precscope bench`, and does nothing until it is told to.

Requests come as JSON lines on stdin and are answered as JSON lines on stdout: {"do": "build"}, {"do": "warm_up",
"steps": 3}, {"do": "round", "steps": 20}, {"do": "summary"}. An answer holds "error" where it failed; "everywhere" then
says that it would fail under every policy. What the user's code prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from precscope.entry_point import EntryPointError, load_entry_point
from precscope.error_text import where_it_failed
from precscope.errors import PrecScopeError
from precscope.probes.tensorflow_startup import load_tensorflow

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Training", "build_training", "main"]

_SEED = 0
_EXPECTED = "Expected a compiled Keras model and a tf.data.Dataset of its batches"


class Training:
    """A compiled model and endless batches for it, run step by step in Keras' own train function.

    Args:
        model: A compiled Keras model.
        dataset: A tf.data.Dataset of batches. Batches of another size than the first's are left out where the size
            may vary: each new size would be compiled anew.

    Raises:
        PrecScopeError: The dataset is empty.
    """

    def __init__(self, model: Any, dataset: Any) -> None:
        import tensorflow as tf

        self.model = model
        self.device = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
        self.batch, dataset = _even_batches(dataset)
        self._batches = iter(dataset.repeat())
        model.make_train_function()
        self._logs: dict[str, Any] = {}
        self._steps = 0
        self._resident_bytes = 0

    def warm_up(self, steps: int) -> dict[str, Any]:
        """Run the first steps, which trace and compile; the memory's peak counts from here on."""
        import tensorflow as tf

        first_ns = self._timed(1)
        self._timed(max(0, steps - 1))
        if self.device.startswith("GPU"):
            tf.config.experimental.reset_memory_stats(self.device)
        return {"first_step_s": first_ns / 1e9}

    def round(self, steps: int) -> dict[str, Any]:
        """Run `steps` steps and return the mean time of one."""
        import psutil

        time_ns = self._timed(steps)
        self._resident_bytes = max(self._resident_bytes, psutil.Process().memory_info().rss)
        return {"step_ns": round(time_ns / steps / self._per_call)}

    def summary(self) -> dict[str, Any]:
        """Return memory, loss and how many steps were applied."""
        import tensorflow as tf

        from precscope.probes.internals.optimizers import update_counter

        on_gpu = self.device.startswith("GPU")
        loss = self._logs.get("loss") if isinstance(self._logs, dict) else None
        return {
            "peak_memory_bytes": (
                int(tf.config.experimental.get_memory_info(self.device)["peak"]) if on_gpu else self._resident_bytes
            ),
            "memory_source": "allocator" if on_gpu else "resident",
            "loss": None if loss is None else float(loss),
            "steps": self._steps,
            "steps_applied": int(update_counter(self.model.optimizer).numpy()),
        }

    @property
    def _per_call(self) -> int:
        return int(getattr(self.model, "steps_per_execution", 1) or 1)

    def _timed(self, steps: int) -> int:
        """Run `steps` calls of the train function and return their time in nanoseconds, until the device is idle."""
        import tensorflow as tf

        train = self.model.train_function
        tf.test.experimental.sync_devices()
        began_ns = time.perf_counter_ns()
        for _ in range(steps):
            self._logs = train(self._batches)
        tf.test.experimental.sync_devices()
        took_ns = time.perf_counter_ns() - began_ns
        self._steps += steps * self._per_call
        return took_ns


def build_training(entry: str, policy: str) -> tuple[Training, dict[str, Any]]:
    """Set `policy`, call the user's build function and return its training, with what is known of it.

    Raises:
        EntryPointError: There is no such function.
        PrecScopeError: The policy is unknown, or the function raised or returned something else.
    """
    import keras

    build = load_entry_point(entry)
    try:
        keras.config.set_dtype_policy(policy)
    except ValueError as error:
        raise PrecScopeError(f"Keras knows no dtype policy {policy!r}: {error}") from None
    keras.utils.set_random_seed(_SEED)
    began_s = time.perf_counter()
    try:
        built = build()
    except (Exception, SystemExit) as error:  # a user's code
        raise PrecScopeError(f"{entry} raised {where_it_failed(error)}") from error
    build_s = time.perf_counter() - began_s
    training = Training(*_checked(entry, built))
    return training, {
        "build_s": build_s,
        "model": training.model.name,
        "parameters": int(training.model.count_params()) if training.model.built else None,
        "batch": training.batch,
        "device": training.device,
        "notices": _notices(training.model, policy),
    }


def main() -> None:
    """Answer requests until stdin ends; the entry point and the policy are the arguments."""
    answers = _keep_stdout_for_answers()
    entry, policy = sys.argv[1:]
    training: Training | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if training is None:
                load_tensorflow()
                training, answer = build_training(entry, policy)
                answer |= _environment()
            else:
                answer = _act(training, request)
        except EntryPointError as error:
            answer = {"error": str(error), "everywhere": True}
        except PrecScopeError as error:
            answer = {"error": str(error)}
        except Exception as error:  # whatever the model's step does
            answer = {"error": where_it_failed(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _act(training: Training, request: dict[str, Any]) -> dict[str, Any]:
    actions: dict[str, Callable[[], dict[str, Any]]] = {
        "warm_up": lambda: training.warm_up(request["steps"]),
        "round": lambda: training.round(request["steps"]),
        "summary": training.summary,
    }
    return actions[request["do"]]()


def _keep_stdout_for_answers() -> TextIO:
    """Return a stream to the parent, and let everything that is printed from now on go to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _environment() -> dict[str, Any]:
    from precscope.probes.environment import describe_hardware, describe_software

    return {"software": describe_software(), "hardware": describe_hardware()}


def _checked(entry: str, built: Any) -> tuple[Any, Any]:
    import keras
    import tensorflow as tf

    if not isinstance(built, (tuple, list)) or len(built) != 2:
        size = f" of {len(built)}" if isinstance(built, (tuple, list)) else ""
        raise PrecScopeError(f"{entry} returned {_kind(built)}{size}. {_EXPECTED}: `return model, dataset`.")
    model, dataset = built
    if not isinstance(model, keras.Model):
        raise PrecScopeError(f"{entry} returned {_kind(model)} as its model. {_EXPECTED}.")
    if not model.compiled:
        raise PrecScopeError(f"{entry} returned a model that is not compiled. {_EXPECTED}: call model.compile(...).")
    if not isinstance(dataset, tf.data.Dataset):
        raise PrecScopeError(
            f"{entry} returned {_kind(dataset)} as its dataset. {_EXPECTED}, such as "
            "tf.data.Dataset.from_tensor_slices((x, y)).batch(32)."
        )
    return model, dataset


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _even_batches(dataset: Any) -> tuple[int | None, Any]:
    """Return the examples in a batch and the dataset without batches of another size."""
    import tensorflow as tf

    first = next(iter(dataset), None)
    if first is None:
        raise PrecScopeError("The dataset is empty. Expected at least one batch.")
    tensor = tf.nest.flatten(first)[0]
    if not tensor.shape.rank:
        return None, dataset
    size = int(tensor.shape[0])
    if tf.nest.flatten(dataset.element_spec)[0].shape[:1] == [size]:
        return size, dataset
    return size, dataset.filter(lambda *batch: tf.shape(tf.nest.flatten(batch)[0])[0] == size)


def _notices(model: Any, policy: str) -> list[str]:
    from precscope.probes.internals.layer_tree import walk_layers

    used = {layer.dtype_policy.name for _, layer in walk_layers(model)}
    if policy in used or not used:
        return []
    return [
        f"No layer has the policy {policy}: the build function sets its own ({', '.join(sorted(used))}), "
        "so this compares nothing."
    ]


if __name__ == "__main__":
    main()
