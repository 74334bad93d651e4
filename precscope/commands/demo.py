"""`precscope demo`: train a small model under the profiler, then print its report."""

from __future__ import annotations

import math
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precscope.probes.demos import BENCH_STEPS, DEMOS, POLICIES, DemoData, load_demo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

__all__ = ["FAULTS", "demo"]

#: As in precscope.probes.demos.mnist_faults, which needs TensorFlow: help is to come at once.
FAULTS = ("head", "norm", "range")
_FAULTS_MODULE = "precscope.probes.demos.mnist_faults"
_KEPT_MIB = 64.0  # of batches, to be replayed by precscope verify
_SAMPLES = 50  # the default budget would allow too few in so short a run
_SEED = 0


@click.command("demo")
@click.argument("name", type=click.Choice(list(DEMOS)), default="mnist")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where to write the run.  [default: runs/NAME-demo]")
@click.option("--policy", type=click.Choice(POLICIES), default=POLICIES[0], show_default=True, help="The dtype policy.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the data.  [default: as many as fit a minute]")
@click.option("--overwrite", is_flag=True, help="Replace the run that the directory holds.")
@click.option("--fault", type=click.Choice(FAULTS), help="Only mnist: train it with this fault, and keep batches.")
@click.option("--apply", "policy_file", metavar="FILE", type=click.Path(path_type=Path), help="Apply this policy.yaml.")
@click.option("--bench", "in_all_policies", is_flag=True, help="Measure its step time under all policies instead.")
def demo(
    name: str,
    run_dir: Path | None,
    policy: str,
    epochs: int | None,
    overwrite: bool,
    fault: str | None,
    policy_file: Path | None,
    in_all_policies: bool,
) -> None:
    """Train a small model under the profiler, then print its report.

    mnist: a multilayer perceptron on MNIST, or on real digits that come with PrecScope where there is no network. It
    takes about a minute on two CPU cores.

    resnet18: ResNet-18 on real digits brought to 224x224x3. On a CPU, where it is slow, six steps at 64x64x3.

    lstm: an LSTM on sequences of 100 random values, of which it learns the mean of the last ten.

    With --fault (head, norm or range) the perceptron has a fault of precision, to be found by the report, proven by
    precscope verify and repaired with --apply: docs/verify.md walks through it.
    """
    if fault is not None and (name != "mnist" or in_all_policies):
        raise click.UsageError("--fault belongs to the demo mnist, without --bench.")
    if in_all_policies:
        from precscope.commands.bench import bench_and_print

        bench_and_print(f"{DEMOS[name]}:build_for_bench", steps=BENCH_STEPS[name])
        return

    from precscope.probes.tensorflow_startup import load_tensorflow

    click.echo("Loading TensorFlow ...")
    load_tensorflow()
    kind = "demo" if fault is None else f"{fault}-demo"
    run_dir = run_dir or Path("runs") / f"{name}-{kind}{'' if policy_file is None else '-repaired'}"
    _train(_Demo(name, fault), run_dir, policy, epochs, overwrite, policy_file)
    _report(run_dir)
    if fault is not None and policy_file is None:
        click.echo(f"Prove it: precscope verify {run_dir} --model {_FAULTS_MODULE}:build_{fault}")
        click.echo(f"Then repair it: precscope demo {name} --fault {fault} --apply {run_dir / 'policy.yaml'}")


class _Demo:
    """A demo, or a faulty one of its kind."""

    def __init__(self, name: str, fault: str | None) -> None:
        self.module: ModuleType = load_demo(name) if fault is None else import_module(_FAULTS_MODULE)
        self._options = {} if fault is None else {"fault": fault}
        # A silent fault shows in a reference step, which "auto" takes in no training as short as this.
        watch: dict[str, Any] = {"keep_batches_mib": _KEPT_MIB, "reference": True}
        self.recording: dict[str, Any] = {} if fault is None else watch

    def load_data(self) -> DemoData:
        data: DemoData = self.module.load_data(**self._options)
        return data

    def build(self, policy: str) -> Any:
        return self.module.build(policy, **self._options)


def _train(
    demo: _Demo, run_dir: Path, policy: str, epochs: int | None, overwrite: bool, policy_file: Path | None
) -> None:
    """Train and evaluate a demo as a user would, under the profiler."""
    import keras

    import precscope

    module, data = demo.module, demo.load_data()
    click.echo(f"Data: {data.description}")
    keras.utils.set_random_seed(_SEED)
    model = demo.build(policy)
    if policy_file is not None:
        click.echo(f"Policy: {precscope.apply_policy(model, policy_file)}")
    epochs = epochs or data.epochs
    steps = epochs * math.ceil(int(len(data.x) * (1 - module.VALIDATION_SPLIT)) / module.BATCH_SIZE)
    click.echo(f"Model: {model.name}, {model.count_params():,} parameters, {policy}; {steps:,} steps.")
    every = max(1, steps // _SAMPLES)
    with precscope.profile(model, run_dir, every=every, overwrite=overwrite, **demo.recording):
        with _progress_bar(steps) as advance:
            model.fit(
                data.x,
                data.y,
                batch_size=module.BATCH_SIZE,
                epochs=epochs,
                validation_split=module.VALIDATION_SPLIT,
                callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=advance)],
                verbose=0,
            )
        result = model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)
    click.echo(f"Held-out {_in_words(result)}.")


@contextmanager
def _progress_bar(steps: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """Show one bar for the whole training: Keras draws one an epoch. Yield what is to be called after each batch."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("Training"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("Training", total=steps)
        yield lambda batch, logs: progress.advance(task)


def _in_words(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {float(value):.3f}" for name, value in result.items())


def _report(run_dir: Path) -> None:
    from precscope.reader import open_run
    from precscope.reports.terminal import print_report

    click.echo()
    print_report(open_run(run_dir))
    click.echo(f"\nRead it again with: precscope report {run_dir}")
