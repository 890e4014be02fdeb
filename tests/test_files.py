"""Temporary files: what killed writers leave is removed by the next one, and nothing else is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import names

from padim_edge import files
from padim_edge.errors import PadimEdgeError
from padim_edge.files import FollowedFile, atomic_write

KILLED = """
import os, sys
from padim_edge.files import atomic_write
with atomic_write(sys.argv[1]) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), 9)
"""


def kill_a_writer(target: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, target], check=False)
    assert done.returncode == -9


def write(target: Path, data: bytes = b"whole") -> None:
    with atomic_write(target) as stream:
        stream.write(data)


def test_what_killed_writers_leave_does_not_pile_up(tmp_path: Path) -> None:
    target = tmp_path / "padim.onnx"
    for _ in range(3):
        kill_a_writer(target)
        assert names(tmp_path) == [".padim.onnx.padim-edge-0"]
    write(target)
    assert names(tmp_path) == ["padim.onnx"]


def test_writers_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "padim.onnx"
    kill_a_writer(target)
    with atomic_write(target) as one:
        one.write(b"one")
        with atomic_write(target) as two:
            two.write(b"two")
            kill_a_writer(target)
            kill_a_writer(target)
            assert len(names(tmp_path)) == 3
        assert target.read_bytes() == b"two"
    assert target.read_bytes() == b"one"


def test_what_is_no_file_of_ours_stays(tmp_path: Path) -> None:
    """In a folder that others write to, a name that is taken is gone around, not followed."""
    target = tmp_path / "padim.onnx"
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / ".padim.onnx.padim-edge-0").symlink_to(precious)
    (tmp_path / ".padim.onnx.padim-edge-1").mkdir()
    os.mkfifo(tmp_path / ".padim.onnx.padim-edge-2")
    (tmp_path / ".padim.onnx.padim-edge-3").hardlink_to(precious)
    (tmp_path / ".padim.onnx.padim-edge-x").touch()
    write(target)
    assert target.read_bytes() == b"whole"
    assert precious.read_bytes() == b"precious"
    assert (tmp_path / ".padim.onnx.padim-edge-x").exists()
    assert (tmp_path / ".padim.onnx.padim-edge-0").is_symlink()
    assert (tmp_path / ".padim.onnx.padim-edge-2").is_fifo()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_new_file_has_the_permissions_of_any_and_another_keeps_those_it_had(
    tmp_path: Path, umask: int
) -> None:
    code = """
import os, sys
from pathlib import Path
from padim_edge.files import atomic_write
os.umask(int(sys.argv[2]))
# Whoever sets it to read it opens, for a moment, every file of every other thread to all.
os.umask = lambda _: sys.exit("the umask was set")
target = Path(sys.argv[1])
target.with_name("any").touch()
for _ in range(2):
    with atomic_write(target):
        hidden = [path.stat() for path in target.parent.iterdir() if path.name.startswith(".")]
        print(*(oct(found.st_mode & 0o777) for found in hidden), end=" ")
    print(oct(target.stat().st_mode & 0o777), oct(target.with_name("any").stat().st_mode & 0o777))
    target.chmod(0o640)
print(oct(target.stat().st_mode & 0o777))
with atomic_write(target):
    target.unlink()  # somebody takes it away meanwhile
print(oct(target.stat().st_mode & 0o777))
"""
    command = [sys.executable, "-c", code, tmp_path / "file", str(umask)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    usual = oct(0o666 & ~umask)
    wanted = f"{usual} {usual} {usual}\n0o600 0o640 {usual}\n0o640\n0o640\n"
    assert done.stdout == wanted


def test_one_that_is_taken_for_abandoned_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer comes between making the file and locking it: it is made again."""
    lock, rivals = files.lock, [tmp_path / ".file.padim-edge-0"]

    def late(descriptor: int, path: Path) -> bool:
        if rivals:
            files._remove_abandoned(rivals.pop())
        return lock(descriptor, path)

    monkeypatch.setattr(files, "lock", late)
    write(tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_without_locks_nothing_is_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_a_writer(tmp_path / "file")

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write(tmp_path / "file")
    assert names(tmp_path) == [".file.padim-edge-0", "file"]


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    """Real processes, some of them killed, at random: the file is one of theirs, whole."""
    code = """
import os, random, sys
from padim_edge.files import atomic_write
dice = random.Random(int(sys.argv[2]))
for _ in range(40):
    with atomic_write(sys.argv[1]) as stream:
        stream.write(sys.argv[2].encode() * 10_000)
        if dice.random() < 0.02:
            os.kill(os.getpid(), 9)
"""
    target = tmp_path / "file"
    children = [
        subprocess.Popen([sys.executable, "-c", code, target, str(seed)]) for seed in range(1, 7)
    ]
    codes = {child.wait(60) for child in children}
    assert codes == {0, -9}
    write(target)
    assert len(names(tmp_path)) <= len(children)
    with contextlib.ExitStack() as stack:  # as many at once remove what as many left
        for _ in children:
            stack.enter_context(atomic_write(target))
    assert names(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PadimEdgeError, match="cannot write"), atomic_write(tmp_path / "no" / "f"):
        raise AssertionError("nothing was opened")


def test_a_followed_file_is_new_once_it_is_another_and_stays_the_same(tmp_path):
    path = tmp_path / "file"
    followed = FollowedFile(path)
    assert not followed.is_new()
    path.write_bytes(b"a")
    assert not followed.is_new()  # it may be being written
    assert followed.is_new()
    assert followed.is_new()  # until it is taken
    followed.take()
    assert not followed.is_new()
    path.write_bytes(b"ab")
    assert not followed.is_new()
    path.write_bytes(b"abc")
    assert not followed.is_new()  # it was
    assert followed.is_new()
    path.unlink()
    assert not followed.is_new()
    assert not followed.is_new()  # to be gone is no news
    other = tmp_path / "other"
    other.write_bytes(b"abc")
    other.rename(path)
    assert [followed.is_new() for _ in range(2)] == [False, True]
