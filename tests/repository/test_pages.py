"""The repository around the code: what the pages name exists, the site builds, CI calls make."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from padim_edge.images.synthetic import make_dataset

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def files_named(text: str) -> list[str]:
    """Paths with a folder in code spans; those of a model's user (photos/ and the like) are not."""
    spans = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|cu|json|service))`", text)
    return [span for span in spans if not span.startswith(("/", "photos", "demo", "NAME/"))]


def test_named_files_are_found_in_text():
    text = "`a/b.py` and `/etc/x.service`, `c.py`, d/e.py, `docs/bench.md`"
    assert files_named(text) == ["a/b.py", "docs/bench.md"]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_that_a_page_names_exist(page):
    for name in files_named(page.read_text("utf-8")):
        places = [page.parent / name, ROOT / name, ROOT / "padim_edge" / name]
        if page.name == "CONTRIBUTING.md":
            places.append(ROOT / "tests" / name)
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_make_targets_that_a_page_names_exist(page):
    named = re.findall(r"(?:`|^ {4}|\n)make ([a-z0-9-]+)", page.read_text("utf-8"), re.MULTILINE)
    assert set(named) <= TARGETS


def test_the_first_screen_of_the_readme():
    screen = "\n".join((ROOT / "README.md").read_text("utf-8").splitlines()[:45])
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", screen)
    assert pictures
    for picture in pictures:
        assert 0 < (ROOT / picture).stat().st_size < 200_000
    for wanted in ("\nmake demo ", "\nmake test ", "\npadim-edge export", "\npadim-edge fit"):
        assert wanted in screen


def test_every_target_is_explained():
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^make ([a-z0-9-]+) +\S", helped.stdout, re.MULTILINE)) == TARGETS


def test_workflows_call_make_and_nothing_else():
    workflows = list((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    for file in workflows:
        text = file.read_text()
        steps = re.findall(r"^\s*(?:- )?run: *(.*)$", text, re.MULTILINE)
        assert steps
        assert {step.removeprefix("make ") for step in steps} <= TARGETS
        actions = re.findall(r"uses: (\S+)", text)
        assert all(action.startswith("actions/") for action in actions)


def test_the_rooms_of_the_architecture_are_those_of_the_walls():
    tree = ast.parse((ROOT / "tests" / "repository" / "test_walls.py").read_text())
    (walls,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "WALLS"
    )
    assert isinstance(walls, ast.Dict)
    order = [key.value if isinstance(key, ast.Constant) else "face" for key in walls.keys]
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = text.split("| room |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `?(\w+)`? \|", table, re.MULTILINE) == order


def test_every_page_is_in_the_navigation():
    listed = re.findall(r'= "([\w/]+\.md)"', (ROOT / "zensical.toml").read_text())
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES if "docs" in path.parts]
    assert sorted(listed) == sorted(pages)


def test_every_room_has_a_page_of_the_api():
    rooms = {path.parent.name for path in ROOT.glob("padim_edge/*/__init__.py")} - {"cli"}
    pages = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs" / "api").glob("*.md")}
    assert pages == {room: f"# {room}\n\n::: padim_edge.{room}\n" for room in rooms}


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    """Links, anchors and names of the API that lead nowhere are errors of the build."""
    pytest.importorskip("zensical")
    for name in ("docs", "padim_edge"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "zensical.toml", tmp_path)

    def build() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'id="padim_edge.fit.fit.fit_detector"' in (tmp_path / "site/api/fit.html").read_text()
    for page in (tmp_path / "docs" / "api").iterdir():  # the API takes most of the time
        page.write_text("")
    with (tmp_path / "docs" / "status.md").open("a") as page:
        page.write("\n[nowhere](figures.md#nowhere)\n")
    done = build()
    assert done.returncode != 0
    assert "#nowhere" in re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)


def test_the_picture_of_the_readme_can_be_drawn(tmp_path):
    """examples/picture.py, on a small model: a row for each photo, three parts in each."""
    pytest.importorskip("onnxruntime")
    make_dataset(tmp_path / "photos", train=0, good=1, per_defect=1, size=96)
    photos = [tmp_path / "photos" / "test" / kind / "000.png" for kind in ("good", "stain")]
    model = ROOT / "tests" / "model" / "format_1" / "float16.onnx"
    drawn = tmp_path / "drawn.png"
    script = ROOT / "examples" / "picture.py"
    command = [sys.executable, script, model, *photos, "-o", drawn, "--side", "64"]
    subprocess.run(list(map(str, command)), check=True, timeout=60)
    with Image.open(drawn) as picture:
        assert picture.size == (3 * 64, 2 * (64 + 20))  # a bar of 20 below each
    before, linked = photos[1].read_bytes(), tmp_path / "linked.png"
    linked.symlink_to(photos[1])
    command[command.index("-o") + 1] = linked
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"would write over {photos[1]}: name another file" in done.stderr
    assert photos[1].read_bytes() == before
