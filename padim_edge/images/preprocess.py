"""Images: found, decoded, resized and cropped to the uint8 array that the graph takes.

Nothing else in the package prepares images, so that what a model is fitted on and what it later
sees cannot differ.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import ImageError, ModelError, UsageError
from padim_edge.images.decode import MAX_PIXELS, load_frame, to_frame, to_rgb
from padim_edge.images.formats import BIT_DEPTHS
from padim_edge.images.frames import Frame, Picture
from padim_edge.images.resize import FILTERS, resize
from padim_edge.images.threads import ALONE, Threads


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the input of the graph: a resize, then perhaps a centre crop.

    Resizing is antialiased. Without ``reduce`` it agrees with torchvision's Resize and CenterCrop
    pixel by pixel. With it, what a filter would read only to average it is averaged first: whole
    blocks of pixels, and of JPEG files what their decoder can leave out; a camera's frame then
    takes a fraction of the time, and no AUROC measured has changed by more than 0.003.

    Attributes:
        size: (H, W) of the result.
        resize: the (H, W) to resize to, or one number: the length that the shorter side gets.
        crop: whether ``size`` is then cut from the centre; if not, ``resize`` equals ``size``.
        interpolation: "lanczos", "bicubic", "bilinear" or "box".
        reduce: whether blocks are averaged before (see `padim_edge.images.resize.resize`), and
            JPEG files decoded smaller (see `shrink`).
        bit_depth: bits of the grey values in files of 16 bits, from
            `padim_edge.images.formats.BIT_DEPTHS`: many cameras write 12. None: 16, or the 12
            that a TIFF file says it has.

    Raises:
        UsageError: the fields are of the wrong type or cannot give an image of ``size``.
    """

    size: tuple[int, int]
    resize: int | tuple[int, int]
    crop: bool
    interpolation: str = "lanczos"
    reduce: bool = False
    bit_depth: int | None = None

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
        if not isinstance(self.reduce, bool):
            raise UsageError(f"reduce is {self.reduce!r}; it must be true or false")
        depth = self.bit_depth
        if depth is not None and (type(depth) is not int or depth not in BIT_DEPTHS):
            allowed = ", ".join(map(str, BIT_DEPTHS))
            raise UsageError(f"the bit depth is {depth!r}; allowed are {allowed}")
        if not isinstance(self.interpolation, str) or self.interpolation not in FILTERS:
            raise UsageError(
                f"interpolation is {self.interpolation!r}; allowed are {', '.join(FILTERS)}"
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
    def whole(
        cls, size: tuple[int, int], interpolation: str = "bilinear", reduce: bool = True
    ) -> Preprocess:
        """The entire image, resized to ``size`` (H, W) whatever its own shape."""
        return cls(size, size, crop=False, interpolation=interpolation, reduce=reduce)

    @classmethod
    def reference(
        cls, size: tuple[int, int], interpolation: str = "lanczos", reduce: bool = False
    ) -> Preprocess:
        """The shorter side resized to 256 / 224 of ``size`` (H, W), then a centre crop.

        As PaDiM's authors did, unless told otherwise: with Lanczos and nothing before.

        Raises:
            UsageError: ``size`` is not square.
        """
        if size[0] != size[1]:
            raise UsageError(
                f"the preset 'reference' is for square images, and the graph takes {_text(size)}: "
                "use the preset 'whole', or give --resize and --crop"
            )
        return cls(size, round(256 * size[0] / 224), True, interpolation, reduce)

    @classmethod
    def choose(
        cls,
        size: tuple[int, int],
        preset: str = "whole",
        resize: str | None = None,
        crop: str | None = None,
        interpolation: str | None = None,
        reduce: bool | None = None,
        bit_depth: int | None = None,
    ) -> Preprocess:
        """What the command line's options mean.

        Args:
            size: (H, W) of the graph.
            preset: "whole" or "reference"; ``resize`` overrides it.
            resize: "256" for the shorter side, "256x320" for height x width. What exceeds
                ``size`` is cut off around the centre.
            crop: must be ``size``, as "224" or "224x320"; implied by ``resize`` and "reference".
            interpolation: as in :class:`Preprocess`; None is the preset's.
            reduce: the same.
            bit_depth: as in :class:`Preprocess`.

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
        if resize is None:
            chosen = presets[preset](size)
        else:
            target = parse_size(resize)
            sides = target if "x" in resize.lower() else target[0]
            chosen = dataclasses.replace(cls.whole(size), resize=sides, crop=sides != size)
        return dataclasses.replace(
            chosen,
            interpolation=chosen.interpolation if interpolation is None else interpolation,
            reduce=chosen.reduce if reduce is None else reduce,
            bit_depth=bit_depth,
        )

    def to_json(self) -> dict[str, Any]:
        """A dict for json.dumps, from which :meth:`from_json` makes an equal object."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, value: object) -> Preprocess:
        """The object whose :meth:`to_json`, as json.loads returns it, is ``value``.

        Fields that have a default may be missing, as in a file from before they were there: so a
        default, once released, must stay what it is.

        Raises:
            ModelError: ``value`` is anything else.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        # Unlike the rest of the metadata, nothing unknown is kept here: it would be a way of
        # preparing images that this version does not have, and scores would be wrong.
        if not isinstance(value, dict) or not needed <= set(value) <= known:
            raise ModelError(
                f"the preprocessing is {value!r}; its fields must be {', '.join(sorted(known))}: "
                "install the padim-edge that the model was made with, or fit it again"
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

    def __call__(self, picture: Picture, threads: Threads = ALONE) -> NDArray[np.uint8]:
        """Resize and crop; see `prepare`, of which this is the first part."""
        return self.prepare(picture, threads)[0]

    def prepare(
        self, picture: Picture, threads: Threads = ALONE
    ) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Resize and crop.

        Args:
            picture: a file's path, or its bytes; a `Frame`; pixels, uint8 [h, w, 3] RGB of any
                strides; or a Pillow image, taken as it has been decoded, and brought upright.
            threads: those among which a large frame is shared.

        Returns:
            uint8 [H, W, 3], RGB, C-contiguous and the caller's own, and (h, w) of the picture,
            upright. A frame that already has the size to resize to is not resampled.

        Raises:
            UsageError: it is none of these, or in the memory of a GPU.
            ImageError: it cannot be decoded, cannot become RGB, or does not cover the crop once
                it is resized. Of a file, the message begins with the path.
        """
        if isinstance(picture, str | Path | bytes):
            whole: list[tuple[int, int]] = []

            def shrink(height: int, width: int) -> int:
                whole.append((height, width))
                return self.shrink(height, width)

            frame = load_frame(picture, shrink)
            try:
                return self._prepared(self._read(frame), threads), (*whole, frame.size)[0]
            except ImageError as error:
                if isinstance(picture, bytes):
                    raise
                raise ImageError(f"{picture}: {error}") from error
        if isinstance(picture, Image.Image):
            frame = self._read(to_frame(picture))
        else:
            frame = picture if isinstance(picture, Frame) else Frame(picture)
        return self._prepared(frame, threads), frame.size

    def _read(self, frame: Frame) -> Frame:
        """A file's frame, of the bit depth that was said."""
        pixels = frame.in_host_memory()
        if self.bit_depth is None or pixels.dtype != np.uint16:
            return frame
        said = Frame(pixels, f"grey{self.bit_depth}")
        brightest = int(pixels.max())
        if brightest > said.format.white:
            raise ImageError(
                f"has values of up to {brightest}, and {self.bit_depth} bits hold up to "
                f"{said.format.white}: fit with the --bit-depth that the camera has"
            )
        return said

    def shrink(self, height: int, width: int) -> int:
        """By how much a JPEG file of this size, upright, is decoded smaller: 1, 2, 4 or 8.

        By as much as leaves the size to resize to, and whole pixels.
        """
        rows, columns, _, _ = self.geometry(width, height)
        most = min(height // rows, width // columns) if self.reduce else 1
        return next(f for f in (8, 4, 2, 1) if f <= max(most, 1) and not (height % f or width % f))

    def _prepared(self, frame: Frame, threads: Threads) -> NDArray[np.uint8]:
        height, width = frame.size
        rows, columns, top, left = self.geometry(width, height)
        seen = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        how = (rows, columns), self.interpolation, self.reduce, frame.format.white, threads
        planes = frame.format.planes(frame.in_host_memory())
        return frame.format.to_rgb([resize(plane, *how)[seen] for plane in planes])

    def mask(self, image: Image.Image) -> NDArray[np.bool_]:
        """Bring a mask to the pixels of the graph's input, by nearest neighbour.

        Args:
            image: the mask, of the same frame as its image; any colour but black marks.

        Returns:
            bool [H, W], C-contiguous and the caller's own.

        Raises:
            ImageError: as in :meth:`__call__`.
        """
        rows, columns, top, left = self.geometry(*image.size)
        resized = to_rgb(image).resize((columns, rows), Image.Resampling.NEAREST)
        height, width = self.size
        seen = np.asarray(resized)[top : top + height, left : left + width]
        return np.asarray(seen.any(axis=2))

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a frame that the graph sees.

        Args:
            width: of the frame in pixels, upright.
            height: the same.

        Returns:
            (left, top, right, bottom) in pixels of the frame.

        Raises:
            ImageError: the resized frame does not cover the crop.
        """
        rows, columns, top, left = self.geometry(width, height)
        x, y = width / columns, height / rows
        return left * x, top * y, (left + self.size[1]) * x, (top + self.size[0]) * y

    def geometry(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(rows, columns) to resize to and (top, left) of the crop, rounded like torchvision.

        Raises:
            ImageError: a frame of this size does not cover the crop, or becomes too large.
        """
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
        UsageError: the text is neither, or there are too many pixels.
    """
    match = re.fullmatch(r"\s*([0-9]{1,9})(?:x([0-9]{1,9}))?\s*", text.lower())
    if match:
        size = int(match[1]), int(match[2] or match[1])
        if _is_size(size):
            return size
        if all(size):
            raise UsageError(
                f"{text} is too large: {_text(size)} are {size[0] * size[1]:,} pixels, and at most "
                f"{MAX_PIXELS:,} are allowed: give a size like 224 or 224x448"
            )
    raise UsageError(
        f"{text!r} is not a size; give one number (224) or height x width (224x448), in pixels"
    )
