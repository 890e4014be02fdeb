"""A release: refused where something disagrees, the same bytes twice where nothing does."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("release", ROOT / "release" / "release.py")
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)
VERSION = "7.8.9"


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A committed tree of this package that is ready to be released as VERSION."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in ("padim_edge", "release"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    start = folder / "padim_edge" / "__init__.py"
    start.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{VERSION}"', start.read_text()))
    (folder / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## [Unreleased]\n\n## [{VERSION}] - 2026-01-02\n\n- Something.\n"
    )
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "ready")
    return folder


def refused(capsys, tree: Path, version: str = VERSION) -> str:
    before = sorted(tree.iterdir())
    assert release.main([version, "--root", str(tree), "--no-bom"]) == 1
    assert sorted(tree.iterdir()) == before
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("version", ["1", "v1.2.3", "1.2", "01.2.3", "1.2.3-rc1", "../1.2.3"])
def test_a_version_is_three_numbers(capsys, tree, version):
    assert f"{version} is no version" in refused(capsys, tree, version)


def test_what_is_not_committed_is_not_released(capsys, tree):
    (tree / "padim_edge" / "new.py").write_text("")
    assert "?? padim_edge/new.py" in refused(capsys, tree)


def test_the_package_must_say_that_version(capsys, tree):
    assert f"says version {VERSION}, and 1.2.3" in refused(capsys, tree, "1.2.3")


def test_a_version_is_released_once(capsys, tree):
    git(tree, "tag", f"v{VERSION}")
    assert f"a tag v{VERSION} already" in refused(capsys, tree)


@pytest.mark.parametrize(
    ("changelog", "said"),
    [
        (f"## [{VERSION}] - 2026-01-02\n", "says nothing of"),
        (f"## [{VERSION}]\n- Undated.\n", "says nothing of"),
        (f"## [Unreleased]\n- Late.\n## [{VERSION}] - 2026-01-02\n- A.\n", "still has changes"),
    ],
)
def test_the_changelog_must_tell_of_it(capsys, tree, changelog, said):
    (tree / "CHANGELOG.md").write_text(changelog)
    git(tree, "commit", "-qam", "changes")
    assert said in refused(capsys, tree)


def test_a_failing_program_is_told_in_a_line():
    with pytest.raises(release.ReleaseError, match="failed: of this"):
        release.run(sys.executable, "-c", "import sys; sys.exit('because\\nof this')")


def test_an_sdist_is_settled(tmp_path):
    both = []
    for number in (1, 2):
        source = tmp_path / f"{number}"
        source.mkdir()
        for name in ("b", "a") if number == 1 else ("a", "b"):
            (source / name).write_text(name)
            os.utime(source / name, (number * 1000.5, number * 1000.5))
        (source / "a").chmod(0o600 if number == 1 else 0o664)
        path = tmp_path / f"{number}.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for file in (source / name for name in (("b", "a") if number == 1 else ("a", "b"))):
                tar.add(file, f"x/{file.name}")
        assert release.digest(path) not in both
        release.settle(path, 1234)
        both.append(release.digest(path))
        with tarfile.open(path) as tar:
            assert [(m.name, m.mtime, m.uid, m.mode) for m in tar] == [
                ("x/a", 1234, 0, 0o644),
                ("x/b", 1234, 0, 0o644),
            ]
    assert both[0] == both[1]


@pytest.mark.fuzz
def test_two_builds_that_differ_are_no_release(capsys, tree, monkeypatch):
    pytest.importorskip("build")
    # What is of the moment: without settling, the times of the sdist's files.
    monkeypatch.setattr(release, "settle", lambda *_: None)
    assert "differ" in refused(capsys, tree)


@pytest.mark.slow
def test_the_same_bytes_twice(capsys, tree):
    pytest.importorskip("build")
    pytest.importorskip("uv")
    pytest.importorskip("twine")
    assert release.main([VERSION, "--root", str(tree), "--no-bom"]) == 0
    folder = tree / "dist" / VERSION
    wheel, sdist = f"padim_edge-{VERSION}-py3-none-any.whl", f"padim_edge-{VERSION}.tar.gz"
    assert {path.name for path in folder.iterdir()} == {wheel, sdist, "SHA256SUMS"}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    committed = subprocess.run(
        ["git", "-C", str(tree), "log", "-1", "--format=%ct"], capture_output=True, check=True
    )
    moment = time.gmtime(int(committed.stdout))
    with zipfile.ZipFile(folder / wheel) as archive:
        assert {info.date_time[:5] for info in archive.infolist()} == {moment[:5]}
    assert "nothing was uploaded" in capsys.readouterr().out
    assert "is there already" in refused(capsys, tree)


def test_the_recipe_asks_for_what_the_package_asks_for():
    recipe = (ROOT / "release" / "recipe.yaml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (run,) = re.findall(r"^  run:\n((?:    - .+\n)+)", recipe, re.MULTILINE)
    asked = {line.removeprefix("    - ").replace(" ", "") for line in run.splitlines()}
    python = f"python{project['requires-python']}"
    runtime = project["optional-dependencies"]["cpu"]
    assert asked == {python, *project["dependencies"], *runtime}
