"""What is given away as a version: checked, built twice, described. Nothing is uploaded.

    make release VERSION=0.2.0

Leaves in dist/VERSION a wheel, an sdist, a software bill of materials (CycloneDX) of the wheel
with its extra `cpu`, and SHA256SUMS; and prints the commands that would publish them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

SEMANTIC = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)((a|b|rc)(0|[1-9]\d*))?")


class ReleaseError(Exception):
    """Why this tree is no release, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the release that the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", help="such as 0.2.0, as padim_edge/__init__.py has it")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--no-bom", action="store_true", help="leave the bill of materials out")
    options = parser.parse_args(arguments)
    root: Path = options.root.resolve()
    try:
        check(root, options.version)
        folder = root / "dist" / options.version
        if folder.exists():
            raise ReleaseError(f"{folder} is there already: remove it to build it anew")
        with tempfile.TemporaryDirectory() as name:
            made = build_twice(root, Path(name))
            if not options.no_bom:
                made.append(bill_of_materials(made, Path(name)))
            say("checking what PyPI would check")
            run(sys.executable, "-m", "twine", "check", "--strict", *made[:2])
            sums = Path(name) / "SHA256SUMS"
            sums.write_text("".join(f"{digest(path)}  {path.name}\n" for path in made))
            folder.parent.mkdir(exist_ok=True)
            # Beside its place first, so that a folder of that name is always a whole release.
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for path in [*made, sums]:
                shutil.copy(path, part)
            part.rename(folder)
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(f"in {folder}:")
    print((folder / "SHA256SUMS").read_text(), end="")
    say("nothing was uploaded. To publish:")
    print(f"git tag -a v{options.version} -m 'padim-edge {options.version}' && git push --tags")
    print(f"twine upload {folder}/*.whl {folder}/*.tar.gz")
    return 0


def check(root: Path, version: str) -> None:
    """Refuse a tree that is not what it would be published as.

    Raises:
        ReleaseError: a change is not committed, or version, changelog and tags disagree.
    """
    if not SEMANTIC.fullmatch(version):
        raise ReleaseError(f"{version} is no version: three numbers are, as 0.2.0 or 0.2.0rc1")
    if changed := run("git", "-C", root, "status", "--porcelain"):
        raise ReleaseError(f"not all is committed, {changed.splitlines()[0].strip()} for one")
    if run("git", "-C", root, "tag", "--list", f"v{version}"):
        raise ReleaseError(f"there is a tag v{version} already: a version is published once")
    source = (root / "padim_edge" / "__init__.py").read_text()
    said = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if not said or said[1] != version:
        raise ReleaseError(
            f"padim_edge/__init__.py says version {said[1] if said else 'nothing'}, and {version} "
            "is to be released: set it there, and commit"
        )
    changes = sections((root / "CHANGELOG.md").read_text())
    if not changes.get(version):
        raise ReleaseError(
            f"CHANGELOG.md says nothing of {version}: rename [Unreleased] to "
            f"[{version}] - YYYY-MM-DD, and commit"
        )
    if changes.get("Unreleased"):
        raise ReleaseError(
            f"CHANGELOG.md still has changes as [Unreleased]: move them to {version}"
        )


def sections(changelog: str) -> dict[str, str]:
    """Version -> what a changelog says of it; a released one needs a date."""
    parts = re.split(
        r"^## \[(Unreleased|[^\]]+(?=\] - \d{4}-\d\d-\d\d$))\].*$", changelog, flags=re.MULTILINE
    )
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def build_twice(root: Path, folder: Path) -> list[Path]:
    """Build from what is committed, twice, in two folders; returns the wheel and the sdist.

    Raises:
        ReleaseError: the two are not equal to the byte.
    """
    epoch = run("git", "-C", root, "log", "-1", "--format=%ct")
    both = []
    for name in ("first", "second"):
        say(f"building, the {name} time")
        source = folder / name / "padim-edge"
        source.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "-C", str(root), "archive", "HEAD"], check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(source, filter="fully_trusted")  # it is our own, links and all
        out = folder / name / "out"
        run(
            *(sys.executable, "-m", "build", "--installer", "uv", "--outdir", out, source),
            env={**os.environ, "SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": "0"},
        )
        (wheel,) = out.glob("*.whl")
        (sdist,) = out.glob("*.tar.gz")
        settle(sdist, int(epoch))
        both.append([wheel, sdist])
    for first, second in zip(*both, strict=True):
        if digest(first) != digest(second):
            raise ReleaseError(
                f"two builds of {first.name} differ: see what in it is of the moment"
            )
    return both[0]


def settle(sdist: Path, epoch: int) -> None:
    """Write an sdist again without what is of the moment: times, owners, order.

    Setuptools heeds SOURCE_DATE_EPOCH in wheels alone.
    """
    with tarfile.open(sdist) as tar:
        members = [(member, tar.extractfile(member) if member.isfile() else None) for member in tar]
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as settled:
            for member, file in sorted(members, key=lambda one: one[0].name):
                member.mtime = epoch
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                member.pax_headers = {}
                settled.addfile(member, file)
    sdist.write_bytes(gzip.compress(content.getvalue(), mtime=epoch))


def bill_of_materials(made: Sequence[Path], folder: Path) -> Path:
    """Install the wheel with its extra `cpu`, alone, and list what came: CycloneDX, as JSON."""
    say("listing what a device installs")
    wheel = made[0]
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]")
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "pip", "setuptools")
    bill = folder / (wheel.name.split("-py3")[0] + ".cdx.json")
    run(
        *(sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"),
        *("--output-format", "JSON", "--output-file", bill, python),
    )
    return bill


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(*command: object, env: dict[str, str] | None = None) -> str:
    """What a program prints.

    Raises:
        ReleaseError: it failed; with its last line.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        raise ReleaseError(f"`{' '.join(words)}` failed: {lines[-1]}")
    return done.stdout.strip()


def say(line: str) -> None:
    """Tell where things stand."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
