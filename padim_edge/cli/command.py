"""The program, and how a command becomes a part of it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from padim_edge import __version__
from padim_edge.cli.output import say
from padim_edge.errors import PadimEdgeError, first_line

INTERRUPTED = 130

ANOMALIES = 3
"""What `run --fail-on-anomaly` returns when there are any."""

app = typer.Typer(
    name="padim-edge",
    help="PaDiM anomaly detection: from a folder of good photos to a detector at the edge.",
    epilog="Start here:  padim-edge demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"padim-edge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    pass


F = TypeVar("F", bound=Callable[..., None])


def command(name: str, example: str, pairs: str = "") -> Callable[[F], F]:
    """Register a command whose errors become one line on stderr and an exit code.

    Args:
        name: of the command.
        example: for the help.
        pairs: an option of two values that may be repeated, which typer has not: the function is
            given a list of both joined by a zero byte, which no argument can hold.
    """

    class Pairing(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, _paired(ctx, args, pairs) if pairs else args)

    def register(function: F) -> F:
        @functools.wraps(function)
        def reported(*arguments: Any, **options: Any) -> None:
            try:
                function(*arguments, **options)
            except KeyboardInterrupt:
                say("interrupted: no half-written file was left")
                raise typer.Exit(INTERRUPTED) from None
            except BrokenPipeError:
                raise  # the reader went away, as in `padim-edge run ... | head`
            except (PadimEdgeError, OSError, MemoryError) as error:
                if "--debug" in sys.argv:
                    raise
                say(f"error: {str(error) or type(error).__name__}")
                raise typer.Exit(getattr(error, "exit_code", 1)) from None
            except (typer.Exit, typer.Abort):
                raise
            except Exception as error:
                if "--debug" in sys.argv:
                    raise
                say(
                    f"error: this should not happen ({type(error).__name__}: {first_line(error)}): "
                    "please report it with what --debug prints"
                )
                raise typer.Exit(1) from None

        app.command(name, cls=Pairing, epilog=f"Example:  {example}")(reported)
        return function

    return register


def _paired(ctx: Any, arguments: list[str], option: str) -> list[str]:
    """Arguments in which an option's two values are one."""
    paired: list[str] = []
    left = iter(arguments)
    for argument in left:
        paired.append(argument)
        if argument == option:
            values = [value for _, value in zip(range(2), left, strict=False)]
            if len(values) == 2:
                paired.append("\0".join(values))
            elif not {"-h", "--help"} & set(values):
                raise typer.BadParameter(
                    f"Option '{option}' needs two values, MODEL SOURCE", ctx=ctx
                )
    return paired
