"""Outputs that cannot be written, and full disks: the error is said, old files stay."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import OLD, in_process, link, obeying_permissions, padim_edge, unchanged
from PIL import Image

from padim_edge.files import atomic_write

# --- outputs that cannot be written ---------------------------------------------------------------


@pytest.fixture
def outputs(
    tmp_path: Path, embedding_file: Path, model_file: Path, photos: Path
) -> dict[str, tuple[object, ...]]:
    """A command for each option that names an output; the output's path comes last."""
    new = tmp_path / "new"
    new.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "photo.png").write_bytes(OLD)
    return {
        "export": (
            *("export", "--weights", "random", "--image-size", 64, "--dims", 20),
            "-o",
        ),
        "fit": ("fit", embedding_file, photos, "-o"),
        # Had it begun with the photo, that would be the error.
        "int8": ("fit", embedding_file, broken, "--precision", "int8", "-o"),
        "moments": ("fit", embedding_file, photos, "-o", new / "padim.onnx", "--save-moments"),
        "jsonl": ("run", model_file, photos / "test", "--jsonl"),
        "eval": ("eval", model_file, photos, "--json"),
        "bench": ("bench", model_file, "--calls", 10, "--json"),
        "inspect": ("inspect", model_file, "--json"),
    }


OUTPUTS = ("export", "fit", "int8", "moments", "jsonl", "eval", "bench", "inspect")


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_written(tmp_path, outputs, name):
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    cases = {
        tmp_path / "missing" / "out": "No such file or directory",
        tmp_path / "file" / "out": "Not a directory",
        tmp_path / "folder": "it is a folder",
        tmp_path / "pipe": "it is a device or a pipe",
        tmp_path / ("x" * 300): "File name too long",
    }
    with unchanged(tmp_path):
        for path, reason in cases.items():
            done = in_process(*outputs[name], path)
            done.failed(1, f"cannot write {path}", reason)


def test_no_command_writes_over_what_it_reads(tmp_path, embedding_file, model_file, photos):
    mine = tmp_path / "mine"
    mine.write_bytes(OLD)
    detector = Path(shutil.copy(model_file, tmp_path / "padim.onnx"))
    fit = ("fit", embedding_file, photos)
    commands: list[tuple[object, ...]] = [
        ("export", "--weights", mine, "-o", mine),
        ("export", "--weights", "random", "--channels", mine, "-o", mine),
        (*fit, "--update", mine, "-o", mine),
        (*fit, "--roi", mine, "-o", mine),
        (*fit, "--roi", mine, "--save-moments", mine),
        ("bench", detector, "--json", detector),
        ("bench", model_file, "--against", mine, "--plot", mine),
        ("run", model_file, "--files-from", mine, "--jsonl", mine),
        ("tune", photos, "--backbone", "resnet18", "--weights", mine, "-o", mine),
    ]
    photo, other = (
        shutil.copy(photos / "train" / "good" / name, tmp_path / name)
        for name in ("000.png", "001.png")
    )
    two = (photo, other)
    line = tmp_path / "line"
    shutil.copytree(photos, line / "part")
    shutil.copy(model_file, line / "part.onnx")
    bad = next((line / "part" / "test").glob("[!g]*/*.png"))
    mask = next((line / "part" / "ground_truth").rglob("*.png"))
    commands += [
        ("fit", embedding_file, *two, "-o", photo),
        ("fit", embedding_file, *two, "--save-moments", other),
        ("quantize", embedding_file, *two, "-o", photo),
        ("calibrate", detector, "--good", photo, "-o", photo),
        ("calibrate", detector, "--bad", photo, "--json", photo),
        ("run", detector, photo, "--jsonl", photo),
        ("eval", detector, line / "part", "--json", bad),
        ("eval", detector, line / "part", "--json", mask),
        ("eval", line, line, "--json", mask),
        ("eval", line, line, "--json", line / "part.onnx"),
        ("inspect", detector, "--json", detector),
        ("tune", line / "part", "--embedding", embedding_file, "--preset", "reference", "-o", bad),
    ]
    with unchanged(tmp_path):
        for arguments in commands:
            in_process(*arguments).failed(2, "must be different files")


@pytest.mark.parametrize("name", ["fit", "jsonl"])
def test_a_read_only_folder(tmp_path, outputs, name):
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "out").write_bytes(OLD)
    locked.chmod(0o555)
    with unchanged(tmp_path):
        for target in ("out", "other"):
            done = padim_edge(*outputs[name], locked / target, preexec_fn=obeying_permissions())
            done.failed(1, f"cannot write {locked / target}", "Permission denied")


def test_a_device_is_not_replaced(tmp_path, model_file, good):
    # Never the machine's own: as root, a test that failed would replace it.
    with contextlib.ExitStack() as stack:
        device = tmp_path / "null"
        try:
            os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
        except OSError:
            pytest.skip("only root can make a device")
        stack.callback(device.unlink)
        done = in_process("run", model_file, good[0], "--jsonl", device)
        done.failed(1, f"cannot write {device}", "device")
        assert device.is_char_device()


def test_save_maps_where_no_folder_can_be(tmp_path, model_file, photos):
    (tmp_path / "file").write_bytes(OLD)
    for folder in (tmp_path / "file", tmp_path / "file" / "maps"):
        with unchanged(tmp_path):
            done = in_process("run", model_file, photos / "test", "--save-maps", folder)
        done.failed(1, str(folder), "Not a directory" if folder.parent != tmp_path else "")


def test_the_demo_leaves_a_folder_of_others_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").write_bytes(OLD)
    (tmp_path / "file").write_bytes(OLD)
    with unchanged(tmp_path):
        in_process("demo", "--folder", tmp_path).failed(2, "photos", "is not empty")
        in_process("demo", "--folder", tmp_path / "file").failed(1, str(tmp_path / "file"))


def test_atomic_writing_leaves_a_link_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").chmod(0o640)
    with atomic_write(tmp_path / "link") as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


# --- a full disk ----------------------------------------------------------------------------------


def limit(size: int) -> Callable[[], None]:
    """A preexec_fn: the system refuses to let any file grow beyond ``size`` bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("name", ["fit", "moments", "inspect"])
def test_a_file_that_the_system_refuses_to_grow(tmp_path, outputs, name):
    target = tmp_path / "out"
    target.write_bytes(OLD)
    with unchanged(tmp_path):
        size = {"fit": 1_000_000, "moments": 10_000_000, "inspect": 200}[name]
        arguments = (*outputs[name], target)
        if name == "moments":  # more than the detector, which is to be written first
            prelude = "import numpy; savez = numpy.savez\n"
            prelude += "numpy.savez = lambda f, **a: savez(f, filler=numpy.ones(2_000_000), **a)"
            done = padim_edge(*arguments, prelude=prelude, preexec_fn=limit(size))
        else:
            done = padim_edge(*arguments, preexec_fn=limit(size))
    done.failed(1, f"cannot write {target}", os.strerror(errno.EFBIG))


def test_an_export_that_the_system_refuses_to_write(tmp_path, outputs):
    target = tmp_path / "embedding.onnx"
    target.write_bytes(OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with unchanged(tmp_path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            done = in_process(*outputs["export"], target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    done.failed(1, f"cannot write {target}", os.strerror(errno.EFBIG))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    mounted = tmp_path / "tiny"
    mounted.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mounted)]
    done = mount and subprocess.run([mount, *options], capture_output=True, check=False)
    if not done or done.returncode:
        pytest.skip("only root can mount a file system")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def test_fit_on_a_full_disk(tiny_disk, embedding_file, photos):
    target = tiny_disk / "padim.onnx"
    target.write_bytes(OLD)
    with unchanged(tiny_disk):
        done = padim_edge("fit", embedding_file, photos, "-o", target)
    done.failed(1, f"cannot write {target}", "No space left on device")


def test_maps_on_a_full_disk(tiny_disk, model_file, photos):
    done = padim_edge("run", model_file, photos, "--save-maps", tiny_disk / "maps", "--batch", 1)
    done.failed(1, "No space left on device")
    left = [path for path in tiny_disk.rglob("*") if path.is_file()]
    assert left  # some had room
    for path in left:
        assert path.suffix == ".png"
        Image.open(path).load()


def test_no_room_for_the_features(tmp_path, tiny_disk, embedding_file, good):
    source = link(good, tmp_path / "many", 200)  # some 4 kB of features each
    (tmp_path / "out").mkdir()
    with unchanged(tmp_path / "out"):
        done = padim_edge(
            *("fit", embedding_file, source, "-o", tmp_path / "out" / "padim.onnx"),
            prelude="import padim_edge.fit.features as features; features.STORE_IN_MEMORY = 0",
            env={**os.environ, "TMPDIR": str(tiny_disk)},
        )
    done.failed(1, str(tiny_disk), "No space left on device", "TMPDIR")


def test_standard_output_that_is_full(model_file, photos):
    for arguments in (("run", photos / "test"), ("run", photos / "test", "--jsonl", "-")):
        with Path("/dev/full").open("w") as full:
            done = padim_edge(arguments[0], model_file, *arguments[1:], stdout=full)
        done.failed(1, "No space left on device")
