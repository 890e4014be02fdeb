"""The command line: every command, in the order of the help, and the program's way in."""

from __future__ import annotations

import io
import keyword
import signal
import sys
import warnings
from importlib import import_module
from typing import cast

import typer

from padim_edge.cli.command import INTERRUPTED, app
from padim_edge.cli.output import say
from padim_edge.errors import UsageError

COMMANDS = (
    *("export", "quantize", "capture", "fit", "import", "calibrate", "run", "watch", "eval"),
    *("bench", "tune", "inspect", "serve", "export-repository", "demo", "doctor"),
)
"""In the order of the help. Each is a file of this room, and registers itself when imported."""

for _name in COMMANDS:
    # `import` is a keyword, and no name of a module.
    import_module(f"padim_edge.cli.{_name.replace('-', '_')}{'_' * keyword.iskeyword(_name)}")

# The class of all complaints of typer about arguments; it has no public name.
_WrongArguments = cast("type[Exception]", typer.BadParameter.__base__)


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
