"""Images: found, decoded, resized and cropped to the uint8 array that the graph takes.

Nothing else in the package decodes or resizes, so that what a model is fitted on and what it
later sees cannot differ.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from padim_edge.errors import ImageError, ModelError, PadimEdgeError, UsageError

#: More pixels than this are refused before they are decoded: some 0.7 GB in memory.
MAX_PIXELS = 178_956_970

#: Files in a folder that are taken for images, in any case.
SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# Chosen here and not by Image.open, which warns on stderr from half of MAX_PIXELS on, what only
# process-wide settings can silence, and hands files to plugins that no photo needs: the one for
# EPS starts Ghostscript, whatever the file is called. (TIFF files beyond half of MAX_PIXELS still
# draw the warning from their reader itself.)
_READERS: Mapping[bytes, type[ImageFile.ImageFile]] = {
    rb"\x89PNG\r\n\x1a\n": PngImageFile,
    rb"\xff\xd8\xff": JpegImageFile,
    rb"BM": BmpImageFile,
    rb"II[*+]\0|MM\0[*+]": TiffImageFile,
    rb"RIFF....WEBP": WebPImageFile,
    rb"GIF8[79]a": GifImageFile,
    rb"P[1-6]\s": PpmImageFile,
}
_FORMATS = "PNG, JPEG, BMP, TIFF, WebP, GIF and PPM"

_RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}

# What brings the pixels of each EXIF orientation upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Modes that Pillow cannot turn into RGB in one step, or only with a warning.
_BY_WAY_OF = {"P": "RGBA", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}

_BITS_PER_SAMPLE = 258


def load_image(path: str | Path) -> Image.Image:
    """Decode a file: upright, RGB, 8 bits, the first frame if there are several.

    Alpha is dropped. 16 bits are scaled by 255 / 65535 whatever the image holds, so that equal
    light gives equal pixels in every frame. Floating-point and 32-bit pixels are refused: no
    two programs agree on what is white in them. Colour profiles are not applied.

    Args:
        path: a PNG, JPEG, BMP, TIFF, WebP, GIF or PPM file, whatever it is called.

    Returns:
        An image in mode RGB that no longer needs the file.

    Raises:
        ImageError: the file cannot be read, is not such an image, is damaged or truncated, has
            more than ``MAX_PIXELS`` pixels, or pixels without a defined white. The message is
            one line and begins with the path.
    """
    try:
        with Path(path).open("rb") as stream:
            return to_rgb(_decode(stream))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ImageError(f"{path}: too large for this machine's memory; scale it down") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise ImageError(
            f"{path}: cannot be read ({reason}); give an image file that exists and is readable"
        ) from error


def _decode(stream: BinaryIO) -> Image.Image:
    head = stream.read(16)
    stream.seek(0)
    if not head:
        raise ImageError("the file is empty; replace or remove it")
    reader = next((r for m, r in _READERS.items() if re.match(m, head, re.DOTALL)), None)
    if reader is None:
        raise ImageError(f"not an image; {_FORMATS} are allowed: convert or remove it")
    try:
        image = reader(stream)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height}")
        image.load()
        return image
    except Image.DecompressionBombError as error:  # some readers raise it themselves
        raise ImageError(
            f"has too many pixels ({error}); at most {MAX_PIXELS:,} are allowed: scale it down "
            "or cut it up"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes lead Pillow's readers to any exception there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"cannot be decoded ({reason}); it is damaged or truncated: replace or remove it"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Bring an image of any mode upright and to 8-bit RGB, as :func:`load_image` does.

    Args:
        image: any Pillow image. It is not changed.

    Returns:
        An image in mode RGB: ``image`` itself where there is nothing to do.

    Raises:
        ImageError: the pixels are floating-point, 32-bit or of a colour space without RGB.
    """
    image.load()  # only then do readers know their metadata, and some their orientation
    if image.mode == "RGB":
        rgb = image
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        rgb = Image.fromarray(_to_8_bits(image)).convert("RGB")
    elif image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ImageError(
            f"has {kind} pixels, which have no defined white; 8 and 16 bits are allowed: convert it"
        )
    else:
        try:
            rgb = image.convert(_BY_WAY_OF.get(image.mode, "RGB")).convert("RGB")
        except ValueError as error:
            raise ImageError(
                f"has pixels in mode {image.mode}; greyscale, RGB and CMYK are allowed: convert it"
            ) from error
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        rgb = rgb.transpose(turn)
        rgb.info.clear()  # or whoever reads the orientation next turns it again
    return rgb


def _to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale greyscale of up to 16 bits, shape [h, w], so that the format's white becomes 255."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    white = 4095 if bits == (12,) else 65535
    return ((np.asarray(image, np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _orientation(image: Image.Image) -> Any:
    if image.format == "TIFF":  # its reader turns the pixels, and before Pillow 10.1 keeps the tag
        return None
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in _decode; and damaged EXIF does not make the pixels worse
        return None


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the input of the graph: a resize, then perhaps a centre crop.

    Resizing is antialiased and agrees with torchvision's Resize and CenterCrop pixel by pixel.

    Attributes:
        size: (H, W) of the result.
        resize: the (H, W) to resize to, or one number: the length that the shorter side gets.
        crop: whether ``size`` is then cut from the centre; if not, ``resize`` equals ``size``.
        interpolation: "lanczos", "bicubic", "bilinear" or "box".

    Raises:
        UsageError: the fields are of the wrong type or cannot give an image of ``size``.
    """

    size: tuple[int, int]
    resize: int | tuple[int, int]
    crop: bool
    interpolation: str = "lanczos"

    def __post_init__(self) -> None:
        if not _is_size(self.size):
            raise UsageError(f"size is {self.size!r}; it must be (height, width) in pixels")
        if not _is_size(self.resize) and not _is_side(self.resize):
            raise UsageError(
                f"resize is {self.resize!r}; it must be (height, width) or the shorter side, "
                "in pixels"
            )
        if not isinstance(self.crop, bool):
            raise UsageError(f"crop is {self.crop!r}; it must be true or false")
        if not isinstance(self.interpolation, str) or self.interpolation not in _RESAMPLING:
            raise UsageError(
                f"interpolation is {self.interpolation!r}; allowed are {', '.join(_RESAMPLING)}"
            )
        if not self.crop and self.resize != self.size:
            raise UsageError(
                f"a resize to {_text(self.resize)} without a crop does not give "
                f"{_text(self.size)}: resize to {_text(self.size)}, or crop"
            )
        # Of a shorter side nothing more can be said before the image is known.
        height, width = self.size
        if isinstance(self.resize, int):
            covers = self.resize >= min(height, width)
        else:
            covers = self.resize[0] >= height and self.resize[1] >= width
        if not covers:
            raise UsageError(
                f"a resize to {_text(self.resize)} does not cover the {_text(self.size)} that the "
                f"graph takes: resize to at least {_text(self.size)}"
            )

    @classmethod
    def whole(cls, size: tuple[int, int], interpolation: str = "lanczos") -> Preprocess:
        """The entire image, resized to ``size`` (H, W) whatever its own shape."""
        return cls(size, size, crop=False, interpolation=interpolation)

    @classmethod
    def reference(cls, size: tuple[int, int], interpolation: str = "lanczos") -> Preprocess:
        """The shorter side resized to 256 / 224 of ``size`` (H, W), then a centre crop.

        Raises:
            UsageError: ``size`` is not square.
        """
        if size[0] != size[1]:
            raise UsageError(
                f"the preset 'reference' is for square images, and the graph takes {_text(size)}: "
                "use the preset 'whole', or give --resize and --crop"
            )
        return cls(size, round(256 * size[0] / 224), crop=True, interpolation=interpolation)

    @classmethod
    def choose(
        cls,
        size: tuple[int, int],
        preset: str = "whole",
        resize: str | None = None,
        crop: str | None = None,
        interpolation: str | None = None,
    ) -> Preprocess:
        """What the command line's options mean.

        Args:
            size: (H, W) of the graph.
            preset: "whole" or "reference"; ``resize`` overrides it.
            resize: "256" for the shorter side, "256x320" for height x width. What exceeds
                ``size`` is cut off around the centre.
            crop: must be ``size``, as "224" or "224x320"; implied by ``resize`` and "reference".
            interpolation: as in :class:`Preprocess`; None is "lanczos".

        Raises:
            UsageError: an option is malformed, or the result would not be exactly ``size``.
        """
        presets = {"whole": cls.whole, "reference": cls.reference}
        if preset not in presets:
            raise UsageError(f"no preset {preset!r}; allowed are {', '.join(presets)}")
        if crop is not None and parse_size(crop) != size:
            raise UsageError(
                f"a crop to {crop} does not fit the graph, which takes {_text(size)}: crop to "
                f"{_text(size)}, or export a graph for {crop}"
            )
        if crop is not None and resize is None and preset == "whole":
            raise UsageError(
                f"--crop {crop} has nothing to cut off where the whole image is resized to "
                f"{_text(size)}: say to what it is resized before, with --resize"
            )
        interpolation = "lanczos" if interpolation is None else interpolation
        if resize is None:
            return presets[preset](size, interpolation)
        target = parse_size(resize)
        if "x" in resize.lower():
            return cls(size, target, crop=target != size, interpolation=interpolation)
        return cls(size, target[0], crop=True, interpolation=interpolation)

    def to_json(self) -> dict[str, Any]:
        """A dict for json.dumps, from which :meth:`from_json` makes an equal object."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: object) -> Preprocess:
        """The object whose :meth:`to_json`, as json.loads returns it, is ``value``.

        Raises:
            ModelError: ``value`` is anything else.
        """
        names = set(cls.__dataclass_fields__)
        if not isinstance(value, dict) or set(value) != names:
            raise ModelError(
                f"the preprocessing is {value!r}; it must have exactly the fields "
                f"{', '.join(sorted(names))}: fit the model again"
            )
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        try:
            return cls(**fields)  # which checks the types as well
        except UsageError as error:
            raise ModelError(
                f"the preprocessing makes no sense ({error}): fit the model again"
            ) from error

    def __call__(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop.

        Args:
            image: a Pillow image, brought upright and to RGB if it is not; or uint8 [h, w, 3],
                RGB, of any strides.

        Returns:
            uint8 [H, W, 3], RGB, C-contiguous and the caller's own. An image that already has
            the size to resize to is not resampled.

        Raises:
            UsageError: an array of another dtype or shape.
            ImageError: the resized image does not cover the crop, or cannot become RGB.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise UsageError(
                    f"an image is an array of {image.dtype} {list(image.shape)}; it must be uint8 "
                    "[height, width, 3], RGB"
                )
            image = Image.fromarray(image)
        return self._view(to_rgb(image), _RESAMPLING[self.interpolation])

    def mask(self, image: Image.Image) -> NDArray[np.bool_]:
        """Bring a mask to the pixels of the graph's input, by nearest neighbour.

        Args:
            image: the mask, of the same frame as its image; any colour but black marks.

        Returns:
            bool [H, W], C-contiguous and the caller's own.

        Raises:
            ImageError: as in :meth:`__call__`.
        """
        return np.asarray(self._view(to_rgb(image), Image.Resampling.NEAREST).any(axis=2))

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a frame that the graph sees.

        Args:
            width: of the frame in pixels, upright.
            height: the same.

        Returns:
            (left, top, right, bottom) in pixels of the frame.

        Raises:
            ImageError: the resized frame does not cover the crop.
        """
        rows, columns, top, left = self._geometry(width, height)
        x, y = width / columns, height / rows
        return left * x, top * y, (left + self.size[1]) * x, (top + self.size[0]) * y

    def _view(self, image: Image.Image, resampling: Image.Resampling) -> NDArray[np.uint8]:
        rows, columns, top, left = self._geometry(*image.size)
        if image.size != (columns, rows):
            image = image.resize((columns, rows), resampling)
        height, width = self.size
        return np.array(np.asarray(image)[top : top + height, left : left + width], order="C")

    def _geometry(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(rows, columns) to resize to and (top, left) of the crop, rounded like torchvision."""
        if not isinstance(self.resize, int):
            rows, columns = self.resize
        else:
            long = int(self.resize * max(width, height) / min(width, height))
            rows, columns = (self.resize, long) if height <= width else (long, self.resize)
        if rows < self.size[0] or columns < self.size[1]:
            raise ImageError(
                f"{height}x{width} (height x width) becomes {rows}x{columns} when the shorter side "
                f"is resized to {self.resize}, less than {_text(self.size)}: give such images a "
                "larger --resize, or height x width"
            )
        if rows * columns > MAX_PIXELS:
            raise ImageError(
                f"{height}x{width} (height x width) would be resized to {rows}x{columns}; at most "
                f"{MAX_PIXELS:,} pixels are allowed: cut it up, or give --resize height x width"
            )
        top, left = round((rows - self.size[0]) / 2.0), round((columns - self.size[1]) / 2.0)
        return rows, columns, top, left


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value <= MAX_PIXELS  # not isinstance: True is an int too


def _is_size(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(map(_is_side, value))
        and value[0] * value[1] <= MAX_PIXELS
    )


def _text(size: int | tuple[int, int]) -> str:
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) from "224", a square, or "224x448", height x width.

    Raises:
        UsageError: the text is neither.
    """
    match = re.fullmatch(r"\s*([0-9]{1,6})(?:x([0-9]{1,6}))?\s*", text.lower())
    if match:
        size = int(match[1]), int(match[2] or match[1])
        if _is_size(size):
            return size
    raise UsageError(
        f"{text!r} is not a size; give one number (224) or height x width (224x448), in pixels"
    )


@contextlib.contextmanager
def reading_folders() -> Iterator[None]:
    """Turn the system's refusals to look into a folder into one line; also a decorator."""
    try:
        yield
    except OSError as error:
        raise PadimEdgeError(
            f"cannot read {error.filename}: {error.strerror}; make it readable"
        ) from error


@reading_folders()
def find_images(source: str | Path) -> list[Path]:
    """The image files that a file, a folder or a pattern stands for.

    Args:
        source: a file, of any name; a folder, searched with all folders below it; or a pattern
            with ``*``, ``?``, ``[...]`` and ``**`` (any depth). In folders and patterns only
            names with one of ``SUFFIXES`` count, and hidden files and folders do not.

    Returns:
        The paths, sorted, at least one.

    Raises:
        PadimEdgeError: there is no such file or folder, a folder cannot be read, or no image is
            found.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = images_under(path)
    elif re.search(r"[*?[]", str(source)):
        matches = map(Path, glob.glob(str(source), recursive=True))  # noqa: PTH207 - skips hidden
        found = sorted(match for match in matches if _is_image(match) and match.is_file())
    else:
        raise PadimEdgeError(f"no such file or folder: {source}; give one, or a pattern like *.png")
    if not found:
        raise PadimEdgeError(
            f"no image found in {source}; names that end in {' '.join(sorted(SUFFIXES))} count, "
            "hidden ones do not"
        )
    return found


@reading_folders()
def images_under(folder: Path) -> list[Path]:
    """The images in a folder and all folders below it, as :func:`find_images`, or an empty list.

    Raises:
        PadimEdgeError: a folder cannot be read.
    """
    found: list[Path] = []
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:  # links may lead back up
            folders.clear()
            continue
        visited.add(real)
        # In place, for os.walk to follow. Sorted: which of two links to a folder comes first.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += (Path(root, name) for name in files if _is_image(Path(name)))
    return sorted(path for path in found if path.is_file())


def _raise(error: OSError) -> NoReturn:
    raise error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_batches(
    paths: Iterable[Path],
    preprocess: Preprocess,
    batch: int,
    on_error: Callable[[Path, ImageError], None],
) -> Iterator[tuple[list[Path], NDArray[np.uint8]]]:
    """Decode images in a few threads, up to a batch ahead of the consumer.

    Args:
        paths: image files, taken as they are needed.
        preprocess: what to make of each.
        batch: images per batch, at least 1.
        on_error: called for each image that cannot be used, in the order of ``paths`` and in the
            consumer's thread. The image is left out; what ``on_error`` raises ends the iteration.

    Yields:
        The paths, in order, and their images: uint8 [n, H, W, 3], the caller's own. n is
        ``batch`` but for the last; nothing is yielded if no image is good.
    """
    if batch < 1:
        raise UsageError(f"a batch of {batch} images makes no sense; it must be at least 1")

    def read(path: Path) -> NDArray[np.uint8]:
        image = load_image(path)
        try:
            return preprocess(image)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error

    workers = min(4, os.cpu_count() or 1)
    remaining = iter(paths)
    pending: deque[tuple[Path, Future[NDArray[np.uint8]]]] = deque()
    names: list[Path] = []
    images: list[NDArray[np.uint8]] = []
    pool = ThreadPoolExecutor(workers, thread_name_prefix="padim-edge-images")
    try:
        # What waits here is small, already preprocessed; at most `workers` full images exist.
        pending.extend(
            (path, pool.submit(read, path)) for path in islice(remaining, batch + workers)
        )
        while pending:
            path, future = pending.popleft()
            pending.extend((path, pool.submit(read, path)) for path in islice(remaining, 1))
            try:
                images.append(future.result())
                names.append(path)
            except ImageError as error:
                on_error(path, error)
            if len(images) == batch:
                yield names, np.stack(images)
                names, images = [], []
        if images:
            yield names, np.stack(images)
    finally:  # also when the consumer stops or Ctrl-C comes: waits for the decodes under way only
        pool.shutdown(cancel_futures=True)
