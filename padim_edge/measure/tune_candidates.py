"""Candidates of `tune`: which there are, and how the embedding of one comes about."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from padim_edge.errors import MissingDependencyError, UsageError
from padim_edge.files import atomic_write
from padim_edge.fit.chosen import drawn
from padim_edge.fit.quantised import quantise_embedding
from padim_edge.fit.settings import Settings
from padim_edge.images.batches import OnError
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import Model, read, write
from padim_edge.model.metadata import CONSTANTS, PRECISIONS, PRESETS
from padim_edge.progress import Progress, silent


@dataclass(frozen=True)
class Source:
    """Where an embedding comes from: a file, or an export with all channels.

    Attributes:
        label: what tables call it.
        file: an embedding.onnx; None for an export.
        sha256: of that file.
        backbone: of an export, and what follows.
        layers: None for the network's defaults.
        size: (H, W).
        weights: as `padim_edge.export.export.export_backbone` takes them.
        weights_sha256: of a file of them.
    """

    label: str
    file: Path | None = None
    sha256: str = ""
    backbone: str = ""
    layers: tuple[str, ...] | None = None
    size: tuple[int, int] = (0, 0)
    weights: str = ""
    weights_sha256: str = ""


@dataclass(frozen=True)
class Candidate:
    """One configuration.

    Attributes:
        source: of its embedding.
        precision: of the backbone: "float32", "float16", "int8"; "" for what the file has.
        preset: of `padim_edge.model.metadata.PRESETS`.
        dims: channels or directions; None for the preset's, or for those that the file has.
        constants: how they are stored.
    """

    source: Source
    precision: str
    preset: str
    dims: int | None
    constants: str

    def __str__(self) -> str:
        dims = f" {self.dims}" if self.dims else ""
        precision = f" {self.precision}" if self.precision else ""
        return f"{self.source.label}{precision}, {self.preset}{dims}, {self.constants}"

    @property
    def key(self) -> str:
        """The same for the same configuration and contents of files, whatever they are called."""
        source = dataclasses.replace(self.source, label="", file=None)
        if self.source.weights_sha256:
            source = dataclasses.replace(source, weights="")
        text = repr((source, self.precision, self.preset, self.dims, self.constants))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def file_name(self) -> str:
        """Of its detector."""
        return f"{slug(str(self))}-{self.key[:8]}.onnx"


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")[:120]


def given(files: Sequence[Path]) -> list[Source]:
    """Sources of embedding files.

    Raises:
        ModelError: one is none.
        UsageError: one is given twice.
    """
    models = [read(path, "embedding") for path in files]
    stems = [path.stem for path in files]
    found: dict[str, Source] = {}
    for path, model in zip(files, models, strict=True):
        if model.sha256 in found:
            raise UsageError(
                f"--embedding {path}: the same as {found[model.sha256].file}; give each once"
            )
        label = path.stem if stems.count(path.stem) == 1 else str(path.with_suffix(""))
        found[model.sha256] = Source(label, path, model.sha256, size=model.backbone_info.image_size)
    return list(found.values())


def exports(
    backbones: Sequence[str],
    layers: Sequence[tuple[str, ...] | None],
    sizes: Sequence[tuple[int, int]],
    weights: str,
) -> list[Source]:
    """Sources that are exported: every backbone with every choice of layers at every size.

    Raises:
        UsageError: one file of weights for several backbones, or it cannot be read.
    """
    digest = ""
    if weights not in ("default", "random"):
        if len(set(backbones)) > 1:
            raise UsageError(
                f"--weights {weights}: a file is of one backbone, and {', '.join(backbones)} were "
                "given; export each, and give the files with --embedding"
            )
        try:
            digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        except OSError as error:
            raise UsageError(
                f"--weights {weights}: {error.strerror or error}; give default, a file, or random"
            ) from error
    found = []
    for backbone in backbones:
        for chosen in layers:
            for size in sizes:
                side = str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
                named = "" if chosen is None else f" {'+'.join(chosen)}"
                random = " RANDOM" * (weights == "random")
                label = f"{backbone}{random}{named} {side}"
                found.append(Source(label, None, "", backbone, chosen, size, weights, digest))
    return list(dict.fromkeys(found))


def combine(
    sources: Sequence[Source],
    precisions: Sequence[str],
    presets: Sequence[str],
    dims: Sequence[int],
    constants: Sequence[str],
    tell: Callable[[str], None] = lambda _: None,
) -> list[Candidate]:
    """Every combination that there is, sources one after another.

    Not among them are those of a file that has its channels chosen already, with a whitened preset
    or with other dims: it cannot have them, and ``tell`` is told what of it there is.

    Raises:
        UsageError: an unknown name, or nothing to combine.
    """
    for option, names, allowed in (
        ("--precision", [name for name in precisions if name] or PRECISIONS, PRECISIONS),
        ("--preset", presets, PRESETS),
        ("--constants", constants, CONSTANTS),
    ):
        if not names:
            raise UsageError(f"{option} names nothing: choose among {', '.join(allowed)}")
        for name in names:
            if name not in allowed:
                raise UsageError(f"{option} {name}: choose among {', '.join(allowed)}")
    if any(one < 1 for one in dims):
        raise UsageError(f"--dims {','.join(map(str, dims))}: at least 1 is needed")
    if not sources:
        raise UsageError(
            "nothing to choose among: give --embedding FILE (of padim-edge export --dims all), or "
            "--backbone NAME, each as often as you like"
        )
    partial = [source for source in sources if not _channels(source)[1]]
    if partial and (dims or tuple(presets) != ("reference",)):
        files = ", ".join(str(source.file) for source in partial)
        what = f"the channels of {files} are chosen already"
        if "reference" in presets:
            tell(f"{what}: --preset reference is measured of that alone, without --dims")
        else:
            only = f"{what}, and --preset reference alone goes with that"
            if len(partial) == len(sources):
                raise UsageError(f"{only}: give it, or make one with padim-edge export --dims all")
            tell(f"warning: {only}: nothing is measured of that")
    return list(
        dict.fromkeys(
            Candidate(source, precision, preset, one, stored)
            for source in sources
            for precision in precisions or ("",)
            for preset, one in _heads(source, presets, dims)
            for stored in constants
        )
    )


def _heads(
    source: Source, presets: Sequence[str], dims: Sequence[int]
) -> Iterator[tuple[str, int | None]]:
    """Presets with dims that a source can have."""
    total, whole = _channels(source)
    for preset in presets:
        if not whole:
            if preset == "reference":
                yield preset, None
            continue
        # Of an export nobody knows how many there are: `opened` asks for the usual ones.
        default = usual_dims(total) if preset == "reference" and total else None
        for one in dims or (default,):
            yield preset, one


def _channels(source: Source) -> tuple[int, bool]:
    """Of all layers of a source, 0 of an export; and whether it has all of them."""
    if not source.file:
        return 0, True
    info = read(source.file, "embedding", lazily=True).backbone_info
    total = sum(info.layer_channels)
    return total, len(info.channels) == total


def usual_dims(total: int) -> int:
    """The paper's number of channels to draw: 100 of ResNet-18's 448, 550 of 1792."""
    return min(total, 550 if total > 1000 else 100)


def opened(
    candidate: Candidate,
    work: Path,
    photos: Sequence[Path],
    preprocess: Preprocess,
    target: str,
    conditions: str,
    on_error: OnError,
    progress: Progress = silent,
) -> tuple[Model, Settings]:
    """The embedding of a candidate and how to fit on it.

    What has to be exported or made int8 is kept for the next. Channels of an int8 backbone are
    drawn before, as `fit` does.

    Args:
        candidate: whose.
        work: a folder that takes what is made.
        photos: good ones, to calibrate an int8 backbone on.
        preprocess: of these.
        target: what runs an int8 backbone, of `padim_edge.runtime.quantise.TARGETS`.
        conditions: in which what is kept was made, for its name: made in others, it is not used.
        on_error: told of photos that cannot be used for it.
        progress: called as work goes on.

    Raises:
        PadimEdgeError: it cannot be had.
    """
    source, precision = candidate.source, candidate.precision
    if source.file:
        model = read(source.file, "embedding")
        own = model.backbone_info.precision
        if precision == "float16" and own != precision:
            raise UsageError(
                f"{source.file} is in {own}; make one with padim-edge export --precision float16"
            )
    else:
        half = "float16" if precision == "float16" else "float32"
        model = _exported(source, half, work, conditions)
    if precision != "int8" or model.backbone_info.precision == "int8":
        if precision and model.backbone_info.precision != precision:
            raise UsageError(f"{source.label} is in {model.backbone_info.precision}")
        return model, settings_of(candidate, model, preprocess)
    model, settings = drawn(model, settings_of(candidate, model, preprocess))
    info = model.backbone_info
    digest = hashlib.sha256(f"{model.sha256} {info.selection} {conditions}".encode()).hexdigest()
    file = work / f"{slug(source.label)}-{len(info.channels)}-int8-{target}-{digest[:8]}.onnx"
    if not file.exists():
        with atomic_write(file) as stream:
            made = quantise_embedding(model, photos, preprocess, target, on_error, progress)
            write(stream, made.model)
    return read(file, "embedding"), settings


def _exported(source: Source, precision: str, work: Path, conditions: str) -> Model:
    text = f"{dataclasses.replace(source, label='')!r} {conditions}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    file = work / f"{slug(source.label)}-{precision}-{digest[:8]}.onnx"
    if not file.exists():
        try:
            from padim_edge.export.export import export_backbone
        except ModuleNotFoundError as error:
            raise MissingDependencyError("--backbone", str(error.name), "export,cpu") from error
        export_backbone(
            file,
            source.backbone,
            source.layers,
            "all",
            image_size=source.size,
            weights=source.weights,
            precision=precision,
        )
    return read(file, "embedding")


def settings_of(candidate: Candidate, model: Model, preprocess: Preprocess) -> Settings:
    """How to fit a candidate on its embedding."""
    dims = candidate.dims
    info = model.backbone_info
    total = sum(info.layer_channels)
    if candidate.preset == "reference" and dims is None and len(info.channels) == total:
        dims = usual_dims(total)
    return Settings(preprocess, constants=candidate.constants, preset=candidate.preset, dims=dims)
