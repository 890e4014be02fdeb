"""Decoding: a file becomes a frame or an upright RGB picture, or one line says why not."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

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

from padim_edge.errors import ImageError
from padim_edge.images.frames import Frame
from padim_edge.images.stored_path import StoreError, as_path

Shrink = Callable[[int, int], int]
"""Given the (h, w) of an upright JPEG, the factor to decode it smaller by: 1, 2, 4 or 8."""

#: More pixels than this are refused before they are decoded: some 0.7 GB in memory.
MAX_PIXELS = 178_956_970


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


# Those that make height of width.
_SWAPS = [_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]


# Modes that Pillow cannot turn into RGB in one step, or only with a warning.
_BY_WAY_OF = {"P": "RGBA", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}


_BITS_PER_SAMPLE = 258
_TILE_SIDES = (322, 323)

#: More scans of a JPEG are refused: each goes through all blocks again, for a few bytes of the
#: file. Programs write some ten, and libjpeg's own djpeg takes such a limit (-maxscans).
MAX_SCANS = 500

# Its head as libjpeg takes it: of one to four components, and so long. In compressed data 0xff is
# followed by 0.
_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")


_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


class NotAnImageError(ImageError):
    """Bytes that begin as no file of these formats does."""


class NoSuchImageError(ImageError):
    """There is no file of this name."""


class TooManyPixelsError(ImageError):
    """An image that would take too much memory."""


def load_image(path: str | Path | bytes, bit_depth: int | None = None) -> Image.Image:
    """Decode a file: upright, RGB, 8 bits, the first frame if there are several.

    Alpha is dropped. 16 bits are scaled by one factor whatever the image holds, so that equal
    light gives equal pixels in every frame. Floating-point and 32-bit pixels are refused: no
    two programs agree on what is white in them. Colour profiles are not applied.

    Args:
        path: a PNG, JPEG, BMP, TIFF, WebP, GIF or PPM file, whatever it is called; or its bytes.
        bit_depth: bits of grey values of 16; None for those that the file says it has.

    Returns:
        An image in mode RGB that no longer needs the file.

    Raises:
        ImageError: the file cannot be read, is not such an image, is damaged or truncated, has
            more than ``MAX_PIXELS`` pixels, or pixels without a defined white. The message is
            one line and begins with the path, if there is one.
        StoreError: a store, or the way there, is at fault, and not the file.
    """
    with _opened(path) as stream:
        return to_rgb(_decode(stream), bit_depth)


def load_frame(
    path: str | Path | bytes, shrink: Shrink | None = None, bit_depth: int | None = None
) -> Frame:
    """Decode a file as `load_image` does, but leave grey ones grey, and 16 bits 16.

    Args:
        path: as there.
        shrink: by how much a JPEG may be decoded smaller. Each 8 x 8 cosine block gives fewer
            pixels then, in less time.
        bit_depth: as there.

    Returns:
        A frame in rgb, grey8, or grey of the bits that its values have.

    Raises:
        ImageError: as there.
    """
    with _opened(path) as stream:
        return to_frame(_decode(stream, shrink), bit_depth)


def check_head(encoded: bytes, most: int) -> None:
    """Refuse an image by its head, before it is decoded. What is damaged is left to who decodes it.

    Args:
        encoded: the bytes of an image file.
        most: pixels, at most.

    Raises:
        NotAnImageError: these are none of an image file.
        TooManyPixelsError: it has more.
    """
    stream = io.BytesIO(encoded)
    reader = _reader(stream)
    try:
        found = _largest(reader(stream), most)
        many = found is not None
    except Image.DecompressionBombError as error:
        found, many = str(error), True
    except Exception:  # as in _decode
        return
    if many:
        raise TooManyPixelsError(
            f"has too many pixels ({found}); at most {most:,} are allowed: scale it down or cut it "
            "up"
        )


@contextlib.contextmanager
def _opened(path: str | Path | bytes) -> Iterator[BinaryIO]:
    said = "" if isinstance(path, bytes) else f"{path}: "
    try:
        with io.BytesIO(path) if isinstance(path, bytes) else as_path(path).open("rb") as stream:
            yield stream
    except ImageError as error:
        raise ImageError(f"{said}{error}") from error
    except MemoryError as error:
        raise ImageError(f"{said}too large for this machine's memory; scale it down") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (isinstance(error, OSError) and error.strerror) or error
        kind = NoSuchImageError if isinstance(error, FileNotFoundError) else ImageError
        raise kind(
            f"{said}cannot be read ({reason}); give an image file that exists and is readable"
        ) from error


Head = tuple[int, int, int]
"""Width and height of an image file, upright, in pixels, and how many pictures it holds."""


def read_head(path: str | Path) -> Head | None:
    """What the head of an image file says, without decoding it.

    Returns:
        Width and height, upright, in pixels, and how many pictures there are in the file; None
        where it is none that `load_image` reads.

    Raises:
        StoreError: as there.
    """
    try:
        with as_path(path).open("rb") as stream:
            image = _reader(stream)(stream)
            pictures = getattr(image, "n_frames", 1)
            # The reader of PNG decodes all pixels to look for an orientation after them.
            if isinstance(image, PngImageFile) and not _may_be_turned(stream):
                return image.width, image.height, pictures
            height, width = _upright_size(image)
            return width, height, pictures
    except StoreError:
        raise
    except Exception:  # as in _decode, which is there to say why
        return None


def is_lossy(path: str | Path) -> bool:
    """Whether an image file was compressed with loss: JPEG, also within TIFF, or lossy WebP."""
    try:
        with as_path(path).open("rb") as stream:
            image = _reader(stream)(stream)
            if isinstance(image, WebPImageFile):
                return b"VP8 " in _chunks_of_webp(stream)
            compression = image.info.get("compression")
            return isinstance(image, JpegImageFile) or compression in ("jpeg", "tiff_jpeg", "webp")
    except StoreError:
        raise
    except Exception:  # as in read_head
        return False


def _chunks_of_webp(stream: BinaryIO) -> Iterator[bytes]:
    """Their kinds: the pixels may come after metadata, colours and alpha."""
    stream.seek(12)
    while len(head := stream.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        yield kind
        stream.seek(length + length % 2, os.SEEK_CUR)


def _may_be_turned(stream: BinaryIO) -> bool:
    """Whether a chunk of a PNG, before or after its pixels, may hold EXIF, or XMP in its place."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        begin = stream.read(min(length, 32)) if kind in _TEXTS else b""
        if kind == b"eXIf" or begin.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")):
            return True
        stream.seek(length - len(begin) + 4, os.SEEK_CUR)
    return False


def aspect_ratios(paths: Iterable[Path], others: Iterable[float] = ()) -> tuple[float, ...]:
    """The smallest and the largest width / height of files, and of ``others``; none if unknown."""
    heads = filter(None, map(read_head, paths))
    ratios = [*others, *(width / height for width, height, _ in heads)]
    return (min(ratios), max(ratios)) if ratios else ()


def _reader(stream: BinaryIO) -> type[ImageFile.ImageFile]:
    head = stream.read(16)
    stream.seek(0)
    if not head:
        raise ImageError("the file is empty; replace or remove it")
    reader = next((r for m, r in _READERS.items() if re.match(m, head, re.DOTALL)), None)
    if reader is None:
        raise NotAnImageError(f"not an image; {_FORMATS} are allowed: convert or remove it")
    return reader


def _decode(stream: BinaryIO, shrink: Shrink | None = None) -> Image.Image:
    reader = _reader(stream)
    try:
        image = reader(stream)
        if (found := _largest(image, MAX_PIXELS)) is not None:
            raise Image.DecompressionBombError(found)
        if isinstance(image, JpegImageFile):
            _check_scans(stream)
        if shrink is not None and isinstance(image, JpegImageFile):
            factor = shrink(*_upright_size(image))
            # Of a side shorter than the factor one pixel is left.
            image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
        image.load()
        return image
    except Image.DecompressionBombError as error:  # some readers raise it themselves
        raise ImageError(
            f"has too many pixels ({error}); at most {MAX_PIXELS:,} are allowed: scale it down "
            "or cut it up"
        ) from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # damaged bytes lead Pillow's readers to any exception there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"cannot be decoded ({reason}); it is damaged or truncated: replace or remove it"
        ) from error


def _largest(image: ImageFile.ImageFile, most: int) -> str | None:
    """What of an image has more pixels than ``most`` and is decoded at once; None if nothing.

    Raises:
        ValueError: the file contradicts itself.
    """
    if image.width * image.height > most:
        return f"{image.width} x {image.height}"
    if isinstance(image, TiffImageFile):
        # Decoded as a whole, however little of it lies in the image; strips end with the image.
        width, height = (image.tag_v2.get(tag, 0) for tag in _TILE_SIDES)
        if _twice(image, _TILE_SIDES) or not isinstance(width * height, int):
            raise ValueError("the sides of its tiles are no two numbers")
        if width * height > most:
            return f"tiles of {width} x {height}"
    return None


def _twice(image: TiffImageFile, tags: tuple[int, ...]) -> bool:
    """Whether a tag stands more than once: Pillow believes the last, libtiff the first."""
    stream = image.fp
    assert stream is not None
    begin = stream.tell()
    order = "<" if image.tag_v2.prefix == b"II" else ">"
    stream.seek(2)
    big = stream.read(2) in (b"+\0", b"\0+")
    stream.seek(8 if big else 4)
    (at,) = struct.unpack(f"{order}{'Q' if big else 'I'}", stream.read(8 if big else 4))
    stream.seek(at)
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", stream.read(8 if big else 2))
    size = 20 if big else 12
    entries = stream.read(min(count, 1 << 16) * size)
    stream.seek(begin)
    found = [
        struct.unpack_from(f"{order}H", entries, i)[0] for i in range(0, len(entries) - 1, size)
    ]
    return any(found.count(tag) > 1 for tag in tags)


def _check_scans(stream: BinaryIO) -> None:
    """Refuse a JPEG of which decoding has no end.

    Raises:
        ImageError: it has more than `MAX_SCANS`.
    """
    begin = stream.tell()
    stream.seek(0)
    body = stream.read()
    stream.seek(begin)
    if body.count(b"\xff\xda") > MAX_SCANS and (many := len(_SCAN.findall(body))) > MAX_SCANS:
        raise ImageError(
            f"is a JPEG of {many:,} scans; at most {MAX_SCANS} are allowed: save it anew"
        )


def to_rgb(image: Image.Image, bit_depth: int | None = None) -> Image.Image:
    """Bring an image of any mode upright and to 8-bit RGB, as :func:`load_image` does.

    Args:
        image: any Pillow image. It is not changed.
        bit_depth: as there.

    Returns:
        An image in mode RGB: ``image`` itself where there is nothing to do.

    Raises:
        ImageError: the pixels are floating-point, 32-bit or of a colour space without RGB.
    """
    image.load()  # only then do readers know their metadata, and some their orientation
    if image.mode == "RGB":
        rgb = image
    elif _has_16_bits(image):
        rgb = Image.fromarray(_to_8_bits(image, bit_depth)).convert("RGB")
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
    return _upright(rgb, _orientation(image))


def to_frame(image: Image.Image, bit_depth: int | None = None) -> Frame:
    """Bring an image of any mode upright, and to a frame in rgb, grey8, or grey of more bits.

    Args:
        image: any Pillow image. It is not changed.
        bit_depth: as of `load_image`.

    Raises:
        ImageError: as `to_rgb`.
    """
    image.load()
    if _has_16_bits(image):
        pixels = np.asarray(_upright(image, _orientation(image))).astype(np.uint16, copy=False)
        return Frame(pixels, f"grey{bit_depth or (12 if _has_12_bits(image) else 16)}")
    if image.mode == "L":
        return Frame(np.asarray(_upright(image, _orientation(image))), "grey8")
    return Frame(np.asarray(to_rgb(image)))


def _has_16_bits(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _has_12_bits(image: Image.Image) -> bool:
    return bool(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,))


def _to_8_bits(image: Image.Image, bit_depth: int | None) -> NDArray[np.uint8]:
    """Scale greyscale of up to 16 bits, shape [h, w], so that white becomes 255."""
    white = 2 ** (bit_depth or (12 if _has_12_bits(image) else 16)) - 1
    scaled = (np.asarray(image, np.uint32) * 255 + white // 2) // white
    return np.asarray(np.minimum(scaled, 255), np.uint8)


def _orientation(image: Image.Image) -> Any:
    if image.format == "TIFF":  # its reader turns the pixels, and before Pillow 10.1 keeps the tag
        return None
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in _decode; and damaged EXIF does not make the pixels worse
        return None


def _upright(image: Image.Image, orientation: Any) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info.clear()  # or whoever reads the orientation next turns it again
    return turned


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(h, w) that the image will have upright."""
    turned = _UPRIGHT.get(_orientation(image)) in _SWAPS
    return (image.width, image.height) if turned else (image.height, image.width)
