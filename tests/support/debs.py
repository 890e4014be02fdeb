"""Packages of any release of Debian: fetched by apt into the cache of `wheels`, never installed."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from wheels import cache

_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpacked_debs(release: str, *packages: str) -> Path:
    """The folder with the files of packages of a release; skips if they cannot be had."""
    folder, reason = _unpacked(release, packages)
    if reason:
        pytest.skip(reason)
    return folder


@functools.cache  # a failure too: apt's patience with a dead network is spent once
def _unpacked(release: str, packages: tuple[str, ...]) -> tuple[Path, str]:
    wanted = f"{' and '.join(packages)} of Debian's {release}"
    folder = cache() / f"{release}-{'-'.join(packages)}"
    if folder.is_dir():
        return folder, ""
    if lack := [name for name in ("apt-get", "dpkg-deb") if not shutil.which(name)]:
        return folder, f"no {' and no '.join(lack)} here, to fetch {wanted} with"
    with tempfile.TemporaryDirectory(dir=cache()) as name:
        place = Path(name)
        # Lists, archives and state of its own: nothing of the system's is read or changed.
        for made in ("lists/partial", "archives/partial", "packages", "content"):
            (place / made).mkdir(parents=True)
        (place / "sources.list").write_text(
            f"deb [signed-by={_KEYS}] http://deb.debian.org/debian {release} main\n"
        )
        (place / "status").touch()
        options = {
            "Dir::Etc::SourceList": place / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::Etc::Preferences": "-",
            "Dir::Etc::PreferencesParts": "-",
            "Dir::State": place,
            "Dir::State::Status": place / "status",
            "Dir::Cache": place,
            "Acquire::Languages": "none",
            "Acquire::Retries": 1,
            "Acquire::http::Timeout": 20,
            "APT::Sandbox::User": "root",
        }
        apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
        for command in ([*apt, "--error-on=any", "update"], [*apt, "download", *packages]):
            done = subprocess.run(
                command, cwd=place / "packages", capture_output=True, text=True, check=False
            )
            if done.returncode:
                said = done.stderr.strip().splitlines() or ["nothing was said"]
                return folder, f"apt-get cannot fetch {wanted}: {said[-1]}"
        for package in (place / "packages").glob("*.deb"):
            command = ["dpkg-deb", "-x", str(package), str(place / "content")]
            subprocess.run(command, check=True)
        for link in (place / "content").rglob("*.so*"):
            if not link.exists():
                link.unlink()  # it leads to a file of a package that is not there
        try:
            (place / "content").rename(folder)
        except OSError:  # another process was faster
            assert folder.is_dir()
    return folder, ""
