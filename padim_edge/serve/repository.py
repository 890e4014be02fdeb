"""Model repositories of other servers: the same padim.onnx, and what they want to know of it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padim_edge import __version__
from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.files import cannot_write, sync_folder
from padim_edge.model.file import Model, read

MARKER = "padim-edge-repository.json"
"""Says of a folder that it is ours, and what was written into it."""

RUNTIME = "padim_edge.serve.mlserver_runtime.PadimEdgeModel"


@dataclass(frozen=True)
class Batching:
    """How a server puts requests together.

    Attributes:
        max_batch: images, at most.
        max_delay: seconds that a request waits for others, at most.
        queue: requests that wait, at most; 0 for any number. Triton's alone.
    """

    max_batch: int = 8
    max_delay: float = 0.0
    queue: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 1024 or not 0 <= self.max_delay <= 10 or self.queue < 0:
            raise UsageError(
                f"batches of {self.max_batch}, a delay of {1000 * self.max_delay:g} ms and a queue "
                f"of {self.queue} make no sense: 1 to 1024, 0 to 10000 and at least 0 do"
            )


@dataclass(frozen=True)
class _Tensor:
    """Of the graph in the file.

    Attributes:
        name: as `padim_edge.model.names` has it.
        kind: "UINT8" or "FP32".
        shape: without the batch, -1 for any.
    """

    name: str
    kind: str
    shape: tuple[int, ...]


def _tensors(model: Model) -> tuple[_Tensor, tuple[_Tensor, ...]]:
    """Input and outputs of the file's graph."""
    size = model.backbone_info.image_size
    given = (
        _Tensor("frame", "UINT8", (-1, -1, 3))
        if model.frame_input
        else _Tensor("image", "UINT8", (*size, 3))
    )
    return given, (_Tensor("score", "FP32", ()), _Tensor("score_map", "FP32", size))


def _triton(name: str, model: Model, batching: Batching) -> dict[str, bytes | None]:
    """https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md."""
    assert model.detector_info is not None
    given, outputs = _tensors(model)
    lines = [
        f"name: {_text(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {batching.max_batch}",
        "input [",
        *_triton_tensor(given),
        "]",
        "output [",
        *_triton_tensor(outputs[0], ","),
        *_triton_tensor(outputs[1]),
        "]",
        "# A GPU where the server has one, else the CPU.",
        "instance_group [ { kind: KIND_AUTO count: 1 } ]",
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {round(1e6 * batching.max_delay)}",
        f"  default_queue_policy {{ max_queue_size: {batching.queue} }}",
        "}",
        "# For clients: the server does not judge. A score above it is an anomaly.",
        f'parameters {{ key: "padim_edge.threshold" value {{ string_value: '
        f'"{model.detector_info.threshold!r}" }} }}',
    ]
    text = "\n".join(lines) + "\n"
    return {f"{name}/config.pbtxt": text.encode(), f"{name}/1/model.onnx": None}


def _triton_tensor(tensor: _Tensor, end: str = "") -> list[str]:
    # Triton's tensors have a dimension beside the batch: [N] is said to be [N, 1].
    dims = ", ".join(map(str, tensor.shape or (1,)))
    reshape = "" if tensor.shape else " reshape { shape: [ ] }"
    kind = f"TYPE_{tensor.kind}"
    return [f'  {{ name: "{tensor.name}" data_type: {kind} dims: [ {dims} ]{reshape} }}{end}']


def _text(text: str) -> str:
    """As protobuf's text format quotes it."""
    return json.dumps(text, ensure_ascii=False)


def _ovms(name: str, _model: Model, _batching: Batching) -> dict[str, bytes | None]:
    """https://docs.openvino.ai/2025/model-server/ovms_docs_models_repository.html.

    The number of images is free in the file, so the server takes any, without a batch of its own.
    """
    return {f"{name}/1/{name}.onnx": None}


def _ovms_whole(models: Mapping[str, Any]) -> dict[str, bytes]:
    """The list of models: config.json."""
    listed = [
        {
            "config": {
                "name": name,
                "base_path": name,  # relative to this file
                # Else bfloat16 on processors that have it, whose scores are not those that the
                # threshold was made with.
                "plugin_config": {
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_PRECISION_HINT": "f32",
                },
            }
        }
        for name in models
    ]
    return {"config.json": _json({"model_config_list": listed})}


def _mlserver(name: str, model: Model, batching: Batching) -> dict[str, bytes | None]:
    """https://mlserver.readthedocs.io/en/latest/reference/model-settings.html."""
    size = model.backbone_info.image_size
    given = _Tensor("image", "UINT8", (*size, 3))  # as our runtime takes it, whatever the file
    outputs = _tensors(model)[1]
    value: dict[str, Any] = {
        "name": name,
        "platform": "onnx_padim_edge",
        "implementation": RUNTIME,
        "parameters": {"uri": f"./{name}.onnx", "version": "1"},
        "inputs": [_mlserver_tensor(given)],
        "outputs": [_mlserver_tensor(one) for one in outputs],
    }
    if batching.max_batch > 1 and batching.max_delay:
        # MLServer waits for the delay even when nothing else is there: only if it is asked for.
        value |= {"max_batch_size": batching.max_batch, "max_batch_time": batching.max_delay}
    return {f"{name}/model-settings.json": _json(value), f"{name}/{name}.onnx": None}


def _mlserver_tensor(tensor: _Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.kind, "shape": [-1, *tensor.shape]}


def _mlserver_whole(_: Mapping[str, Any]) -> dict[str, bytes]:
    """The server's settings: the engine has threads of its own, and needs no process beside."""
    return {"settings.json": _json({"parallel_workers": 0})}


@dataclass(frozen=True)
class _Target:
    """Another server.

    Attributes:
        of_model: from name, model and batching to files; None is the model's.
        of_all: from all models to files.
    """

    of_model: Callable[[str, Model, Batching], dict[str, bytes | None]]
    of_all: Callable[[Mapping[str, Any]], dict[str, bytes]] = lambda _: {}


TARGETS = {
    "triton": _Target(_triton),
    "ovms": _Target(_ovms, _ovms_whole),
    "mlserver": _Target(_mlserver, _mlserver_whole),
}
"""Servers by name."""


@dataclass(frozen=True)
class Exported:
    """What a repository holds now.

    Attributes:
        folder: its place.
        models: names, in their order.
        files: of all, relative.
    """

    folder: Path
    models: tuple[str, ...]
    files: tuple[str, ...]


def export_repository(
    path: Path, folder: Path, target: str, batching: Batching | None = None
) -> Exported:
    """Put a detector into a model repository, which is made, or ours already.

    A model of the same name is replaced, others stay. The folder changes at once, when all is
    written: nobody sees half of it. Whoever exports into it meanwhile waits.

    Args:
        path: a file made by ``padim-edge fit``; the model is called as the file, without suffix.
        folder: of the repository.
        target: a name of `TARGETS`.
        batching: what the server is told of batches.

    Raises:
        UsageError: there is no such target, the name is none for a server, the working directory
            is or lies in the folder, or that holds something that was not written here, or was
            changed since.
        PadimEdgeError: the file is no detector, or the folder cannot be written.
    """
    if target not in TARGETS:
        raise UsageError(f"--for {target}: {', '.join(TARGETS)} are allowed")
    _check_not_here(folder)
    name = path.stem
    _check_name(name, path)
    batching = batching or Batching()
    model = read(path, "padim")
    if model.detector_info is None:
        raise PadimEdgeError(f"{path} is no detector")
    try:
        with _alone(folder):
            known = _known(folder, target)
            mine = {"sha256": model.sha256, "threshold": model.detector_info.threshold}
            models = dict(sorted({**known, name: mine}.items()))
            with _instead_of(folder) as new:
                for other in known:
                    if other != name:
                        _same(folder / other, new / other)
                for place, content in TARGETS[target].of_model(name, model, batching).items():
                    _put(new / place, path if content is None else content, model.sha256)
                for place, whole in TARGETS[target].of_all(models).items():
                    _put(new / place, whole)
                files = {place: _sha256(new / place) for place in sorted(_found(new))}
                marker = {"for": target, "padim_edge": __version__, "models": models}
                _put(new / MARKER, _json({**marker, "files": files}))
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise UsageError(
                f"{folder} is a place where something is mounted, which nothing can replace: name "
                "a folder within it"
            ) from error
        raise cannot_write(error.filename or folder, error) from error
    return Exported(folder, tuple(models), tuple(files))


def _check_not_here(folder: Path) -> None:
    """Refuse the working directory and what holds it: whoever stands there would stand nowhere."""
    with contextlib.suppress(FileNotFoundError):  # there is none any more
        if Path.cwd().is_relative_to(os.path.realpath(folder)):
            raise UsageError(
                f"{folder} is replaced as a whole, and the working directory is "
                "it or lies in it: name a new folder, or go to another one first"
            )


def _check_name(name: str, path: Path) -> None:
    """Refuse a model's name that some server does not take, or that is a file of a repository."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise UsageError(
            f"a model called {name!r} is not taken by every server: rename {path}, to letters, "
            "digits, '.', '_' and '-'"
        )
    if name.lower() in (MARKER, "config.json", "settings.json"):
        raise UsageError(f"{name} is a file of repositories: rename {path}, it names the model")


def _known(folder: Path, target: str) -> dict[str, Any]:
    """The models of a repository that is ours; none of a folder that is empty or not there.

    Raises:
        UsageError: it is neither.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {}
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one that is new or empty")
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        models: dict[str, Any] = marker["models"]
        files: dict[str, Any] = marker["files"]
        made_for = marker["for"]
        for name in models:  # which say where files are copied to
            _check_name(name, folder / MARKER)
        ours = isinstance(models, dict) and isinstance(files, dict) and made_for in TARGETS
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        ours = False
    if not ours:
        raise UsageError(
            f"{folder} is not empty, and no repository that padim-edge made: name a new folder"
        )
    if made_for != target:
        raise UsageError(f"{folder} was made for {made_for}: name a new folder for {target}")
    found = _found(folder)
    found.pop(MARKER, None)
    changed = sorted(found.keys() ^ files.keys()) or [
        place
        for place, mode in sorted(found.items())
        if not stat.S_ISREG(mode) or _sha256(folder / place) != files[place]
    ]
    if changed:
        raise UsageError(
            f"{folder / changed[0]} was changed by another hand, which would be lost: name a new "
            "folder"
        )
    return models


def _found(folder: Path) -> dict[str, int]:
    """Modes of all that is below a folder, by place, but of folders that hold something."""
    return {
        one.relative_to(folder).as_posix(): one.lstat().st_mode
        for one in folder.rglob("*")
        if one.is_symlink() or not one.is_dir() or not any(one.iterdir())
    }


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else exports into a folder; what a killed one left beside it is put in order."""
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.padim-edge-lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                break
        os.close(descriptor)  # the one before removed it while we waited
    try:
        _recover(target)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _beside(target: Path) -> Path:
    """Where a folder is made that will take the place of another."""
    return target.with_name(f".{target.name}.padim-edge-new")


def _recover(target: Path) -> None:
    """Bring back a folder whose exchange was begun, and no more; remove what was never finished."""
    beside = _beside(target)
    if (beside / "old").exists() and not target.exists():
        (beside / "old").rename(target)
    if beside.exists():
        shutil.rmtree(beside)


@contextlib.contextmanager
def _instead_of(folder: Path) -> Iterator[Path]:
    """A new folder beside another, whose place it takes when the block succeeds."""
    target = Path(os.path.realpath(folder))
    beside = _beside(target)
    new, old = beside / "new", beside / "old"
    try:
        new.mkdir(parents=True)
        yield new
        for one in (new, *new.rglob("*")):
            if one.is_dir():
                sync_folder(one)
        if target.exists():
            shutil.copymode(target, new)
        if not target.exists():
            new.rename(target)
        elif not _exchanged(new, target):
            target.rename(old)  # from here on `_recover` knows what to do
            new.rename(target)
        sync_folder(target.parent)
    finally:
        _recover(target)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two folders have changed places, at once: Linux can, not on every file system."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <fcntl.h>, <stdio.h>
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _put(place: Path, content: bytes | Path, sha256: str = "") -> None:
    """Write a file, or copy one that has not changed since it was read."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as stream:
        if isinstance(content, Path):
            with content.open("rb") as source:
                shutil.copyfileobj(source, stream)
        else:
            stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    if isinstance(content, Path) and _sha256(place) != sha256:
        raise PadimEdgeError(f"{content} was changed while it was copied: try again")


def _same(source: Path, place: Path) -> None:
    """The same files in another place: one on the disk, where that can be."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    shutil.copytree(source, place, copy_function=link)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
