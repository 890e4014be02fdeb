"""The documents: shell that parses, commands and options that exist, Python that compiles."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
import typer

from padim_edge.cli.app import app
from padim_edge.errors import UsageError
from padim_edge.measure.bench import check_engines
from padim_edge.runtime.engines import ENGINES

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "benchmarks" / "results" / "further.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
COMMANDS = typer.main.get_command(app)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text and the line of prose before it."""

    page: str
    line: int
    language: str
    text: str
    before: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> Iterator[Block]:
    lines = text.splitlines()
    opened = None
    for number, line in enumerate(lines):
        fence = re.match(r"(\s*)```(\w*)\s*$", line)
        if fence and opened is None:
            opened = (number, fence)
        elif fence and opened:
            start, first = opened
            indent = len(first[1])
            body = "\n".join(one[indent:] for one in lines[start + 1 : number]) + "\n"
            before = next((one.strip() for one in reversed(lines[:start]) if one.strip()), "")
            yield Block(page, start + 1, first[2], body, before)
            opened = None
    assert opened is None, f"{page}: a block is not closed"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


BLOCKS = [block for page in PAGES for block in blocks(name_of(page), page.read_text("utf-8"))]
SHELL = [block for block in BLOCKS if block.language == "sh"]


def commands(shell: str) -> list[list[str]]:
    """Arguments of every padim-edge in a piece of shell, in pipes and after && too."""
    found = []
    for line in shell.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                if words[:1] == ["padim-edge"]:
                    found.append(words[1:])
                words = []
            else:
                words.append(word)
    return found


def parse(arguments: list[str]) -> None:
    """Let the real command line parse, and run nothing."""
    name, *rest = arguments
    command = COMMANDS.commands[name]
    parameters = command.make_context(name, rest).params
    engine = parameters.get("engine", "auto")
    if name == "bench":
        check_engines(engine.split(","))
    else:
        assert engine in ("auto", *ENGINES), engine


# --- the search itself ------------------------------------------------------------------------


def test_blocks_are_found_in_lists_too():
    found = list(
        blocks("x", "a\n\n```sh\nls\n```\n- b\n\n  *mark*\n\n  ```python\n  x = 1\n  ```\n")
    )
    assert [(one.language, one.text, one.before) for one in found] == [
        ("sh", "ls\n", "a"),
        ("python", "x = 1\n", "*mark*"),
    ]


def test_commands_are_found_wherever_they_stand():
    shell = "x && padim-edge doctor | head  # padim-edge no\npadim-edge run a \\\n  'b c' > d\n"
    assert commands(shell) == [["doctor"], ["run", "a", "b c"]]


@pytest.mark.parametrize(
    "wrong",
    [
        "eval padim.onnx", "run a b --nope", "nope", "bench --calls x", "run a b --engine x",
        "bench --engine x",
    ],
)  # fmt: skip
def test_a_wrong_command_is_noticed(wrong):
    with pytest.raises((AssertionError, KeyError, UsageError, typer.BadParameter.__base__)):
        parse(wrong.split())


def test_the_pages_have_something_to_check():
    assert {name_of(page) for page in PAGES} >= {
        "README.md", "docs/architecture.md", "docs/choices.md", "docs/figures.md", "docs/jetson.md",
        "docs/status.md", "examples/cpp/README.md", "examples/javascript/README.md",
    }  # fmt: skip
    assert sum(len(commands(block.text)) for block in SHELL) > 15
    assert any(block.language == "python" for block in BLOCKS)


# --- the pages --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_parses(block):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    done = subprocess.run(
        [bash, "-n"], input=block.text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_those_of_the_command_line(block):
    for arguments in commands(block.text):
        parse(arguments)


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "python"], ids=str)
def test_python_compiles(block):
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_extras_exist(page):
    known = set(metadata.metadata("padim-edge").get_all("Provides-Extra") or ())
    named = re.findall(r"(?:padim-edge|padim_edge\S*|'\.|\))\[([\w,]+)\]", page.read_text())
    assert {extra for names in named for extra in names.split(",")} <= known


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        other = page.parent / file if file else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
            assert anchor in slugs, target


def test_every_block_for_the_jetson_says_what_was_run():
    marks = [block for block in SHELL if block.page == "docs/jetson.md"]
    assert marks
    for block in marks:
        assert re.fullmatch(r"\*.*(hardware|not at hand)\.\*", block.before), str(block)


# --- the files beside them --------------------------------------------------------------------


def test_the_reading_of_power(tmp_path):
    script = next(block.text for block in SHELL if "curr${number}_input" in block.text)
    folder = tmp_path / "hwmon4"
    folder.mkdir()
    for name, value in {
        "in1_label": "VDD_IN",
        "in1_input": 4960,
        "curr1_input": 1250,
        "in7_label": "sum of shunt voltages",  # has no current
    }.items():
        (folder / name).write_text(f"{value}\n")
    script = script.replace("/sys/class/hwmon", str(tmp_path))
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "VDD_IN: 6200 mW\n"


def test_the_service(tmp_path):
    verify = shutil.which("systemd-analyze")
    unit = (ROOT / "examples" / "padim-edge.service").read_text()
    started = re.search(r"^ExecStart=(\S+)/padim-edge (.*)$", unit, re.MULTILINE)
    assert started
    parse(shlex.split(started[2]))
    if verify is None:
        pytest.skip("no systemd-analyze here")
    file = tmp_path / "padim-edge.service"
    # The program is not installed here, and systemd looks for it.
    file.write_text(unit.replace(started[1] + "/padim-edge", "/bin/true"))
    done = subprocess.run(
        [verify, "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert "padim-edge.service" not in done.stderr, done.stderr
