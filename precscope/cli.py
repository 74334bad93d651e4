"""The command line. Each subcommand is a module of precscope.commands, loaded only when it is asked for."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING

import click

from precscope import __version__
from precscope.errors import PrecScopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["COMMANDS", "main", "run"]

#: Names of the subcommands in the order of `precscope --help`: module and click command are named alike.
COMMANDS = (
    "run",
    "report",
    "live",
    "check",
    "verify",
    "policy",
    "whatif",
    "compare",
    "export",
    "bench",
    "lint",
    "replay",
    "demo",
)

_INTERRUPTED = 130  # as a shell reports a process that SIGINT ended
_BROKEN_PIPE = 141  # and SIGPIPE


class _Commands(click.Group):
    """A group that imports a subcommand's module when its name is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = f"precscope.commands.{cmd_name}"
        try:
            command: click.Command = getattr(import_module(module), cmd_name)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            return None
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            from precscope.suggest import did_you_mean

            ctx.fail(f"There is no command {args[0]!r}.{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="precscope", message="%(prog)s %(version)s")
def _commands() -> None:
    """Find the layers of a Keras model that lose precision in mixed-precision training, and what to do about them.

    Wrap the training in `with precscope.profile(model, "runs/mine"):`, then read `precscope report runs/mine`.
    Or leave the script as it is: `precscope run train.py`.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with `argv` (by default the process' own) and return its exit code.

    0: done; 2: a wrong call, or what was asked for cannot be done (one line on stderr says why); 130: Ctrl-C;
    141: the reader of our output went away. A program that `precscope run` runs ends as it would by itself: what it
    raises is raised, SystemExit too.
    """
    as_before = _accept_any_character()
    try:
        code = _commands.main(args=None if argv is None else list(argv), prog_name="precscope", standalone_mode=False)
        sys.stdout.flush()
    except PrecScopeError as error:
        _complain(error)
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return _BROKEN_PIPE
    except SystemExit as error:
        # click and rich turn a broken pipe into a plain exit.
        piped = isinstance(error.__context__, BrokenPipeError)
        return _BROKEN_PIPE if piped else int(error.code or 0)
    if callable(code):  # a program to run, past what click and we make of exceptions
        as_before()
        code()
    return code if isinstance(code, int) else 0


def run() -> None:
    """Run the command line as a program: what the `precscope` script calls."""
    sys.exit(main())


def _complain(error: PrecScopeError) -> None:
    from precscope.reports.text import printable

    click.echo(f"precscope: {printable(' '.join(str(error).split()))}", err=True)


def _accept_any_character() -> Callable[[], None]:
    """Show a character that the terminal's encoding lacks as "?", rather than fail; return what undoes that."""
    streams = [(s, s.errors) for s in (sys.stdout, sys.stderr) if isinstance(s, TextIOWrapper)]
    for stream, _ in streams:
        stream.reconfigure(errors="replace")

    def undo() -> None:
        for stream, errors in streams:
            stream.reconfigure(errors=errors)

    return undo


def _silence_stdout() -> None:
    """Point stdout nowhere, so that the interpreter's last flush does not complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
