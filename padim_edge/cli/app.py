"""The program: its commands, and how whatever goes wrong in them is said."""

from __future__ import annotations

import functools
import io
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, cast

import typer

from padim_edge import __version__
from padim_edge.cli.bench import bench
from padim_edge.cli.demo import demo
from padim_edge.cli.doctor import doctor
from padim_edge.cli.eval import evaluate
from padim_edge.cli.export import export
from padim_edge.cli.fit import fit
from padim_edge.cli.inspect import inspect
from padim_edge.cli.output import say
from padim_edge.cli.run import run
from padim_edge.errors import PadimEdgeError, UsageError, first_line

INTERRUPTED = 130
# The class of all complaints of typer about arguments; it has no public name.
_WrongArguments = cast("type[Exception]", typer.BadParameter.__base__)

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


def main() -> None:
    """Run the command line: 0 ok, 1 the work failed, 2 wrong use, 130 interrupted."""
    # A service manager's SIGTERM and a lost connection's SIGHUP unwind like Ctrl-C, so that no
    # temporary file stays behind.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    # Pillow's doubts about large files and odd EXIF; what cannot be read is reported anyway.
    warnings.filterwarnings("ignore", module="PIL")
    # File names may hold bytes that are no text in the encoding of stdout.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # --debug is looked up in sys.argv, so it may stand anywhere.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        sys.exit(app(arguments or ["--help"], prog_name="padim-edge", standalone_mode=False))
    except _WrongArguments as error:  # which typer would report in four lines
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "padim-edge"
        say(f"error: {error.format_message().rstrip('.')}; see  {command} --help")  # type: ignore[attr-defined]
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)


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


def _reported(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with its errors as one line on stderr and an exit code."""

    @functools.wraps(command)
    def reported(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
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

    return reported


# In the order of --help, each with an example.
for _name, _command, _example in (
    ("export", export, "padim-edge export --backbone resnet18 --dims 100 --weights default -o embedding.onnx"),
    ("fit", fit, "padim-edge fit embedding.onnx photos/ --false-alarm-rate 0.05 -o padim.onnx"),
    ("run", run, "padim-edge run padim.onnx photos/new/ --save-maps maps/ --jsonl scores.jsonl"),
    ("eval", evaluate, "padim-edge eval padim.onnx mvtec/bottle --json bottle.json"),
    ("bench", bench, "padim-edge bench padim.onnx --batch 1,32 --json bench.json"),
    ("inspect", inspect, "padim-edge inspect padim.onnx"),
    ("demo", demo, "padim-edge demo --folder demo"),
    ("doctor", doctor, "padim-edge doctor --json doctor.json"),
):
    app.command(_name, epilog=f"Example:  {_example}")(_reported(_command))
