"""`precscope lint`: what mixed precision will do to a model, before it is trained."""

from __future__ import annotations

from typing import Literal

import click

__all__ = ["lint"]

_FOUND = 1


@click.command("lint")
@click.argument("entry", metavar="MODULE:FUNCTION")
@click.option("--policy", help="Set this dtype policy for all of Keras before FUNCTION is called.")
@click.option("--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def lint(context: click.Context, entry: str, policy: str | None, output: Literal["text", "json"]) -> None:
    """Find what will go wrong in mixed precision, without training, in seconds, on a CPU.

    FUNCTION takes no arguments and returns a compiled Keras model, or that and a tf.data.Dataset of its batches, as for
    bench. Instead of a module a file may be named: train.py:build. Exit code 1 where there are warnings or errors. See
    docs/lint.md.
    """
    from precscope.errors import PrecScopeError
    from precscope.probes.tensorflow_startup import load_tensorflow

    load_tensorflow()
    import keras
    import tensorflow as tf

    from precscope.lint_result import lint_json
    from precscope.probes.lint import lint_entry

    tf.config.set_visible_devices([], "GPU")  # nothing is computed: a GPU that trains is left alone
    if policy is not None:
        try:
            keras.config.set_dtype_policy(policy)
        except ValueError as error:
            raise PrecScopeError(f"Keras knows no dtype policy {policy!r}: {error}") from None
    result = lint_entry(entry)
    if output == "json":
        click.echo(lint_json(result))
    else:
        from precscope.reports.terminal_lint import print_lint

        print_lint(result)
    if result.worst in ("error", "warning"):
        context.exit(_FOUND)
