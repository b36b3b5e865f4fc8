"""Decodes image files, and only after their headers have been checked."""

import dataclasses
import io
import re
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

MAX_PIXELS = 50_000_000  # the largest phone photos; 150 MB once decoded
PILLOW_MAX_PIXELS = 178_956_970  # Pillow opens nothing larger
# no AVIF: the coded image may be 16384 x 16384 whatever the header says, and its decoders cannot be bounded
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}  # of the files of these formats
MAX_SCANS = 64  # of a JPEG; progressive JPEGs have about ten
_ORIENTATION_TAG = 0x0112
_TILE_TAGS = (0x0142, 0x0143)  # TileWidth and TileLength (TIFF 6.0, section 15)
_SCAN_MARKER = 0xDAFF  # little-endian
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # except those inside entropy-coded data (ITU-T T.81, B.1.1)

# reduction factor → OpenCV flag. IMREAD_REDUCED_COLOR_* contain the BGR bit, which OpenCV refuses together with
# IMREAD_COLOR_RGB; the greyscale flags scale in the same way
_REDUCTION_FLAGS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class InvalidImage(Exception):
    """The image cannot be used; the subclass says why."""


class UnknownFormat(InvalidImage):
    """The bytes are not an image in a supported format."""


class TooManyPixels(InvalidImage):
    """The header declares more pixels than are allowed."""


class BrokenImage(InvalidImage):
    """The header or the pixel data is truncated or corrupt."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Facts from an image file's header; `width` and `height` are in pixels, after `orientation` is applied."""

    format: str
    width: int
    height: int
    orientation: int  # EXIF 2.32, 4.6.4: 1 is upright, 5 to 8 swap width and height


def quieten_decoders() -> None:
    """Makes OpenCV single-threaded, and silences the warnings that OpenCV and Pillow log about broken images."""
    cv2.setNumThreads(1)  # images are decoded in parallel already, by a thread pool
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads and checks an image file's header without decoding the pixels; raises `InvalidImage`."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnknownFormat(f"these bytes are no image; known formats are {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"the image has more pixels than the {max_pixels} allowed") from error
    except Exception as error:  # Pillow's parsers raise all kinds of exceptions on malformed headers
        raise BrokenImage(f"the image's header cannot be read: {error}") from error
    with image:
        width, height = image.size
        check_pixels(width, height, max_pixels)
        if image.format in ("JPEG", "MPO"):
            _check_scans(data)
        if isinstance(image, TiffImageFile):  # whole tiles are decoded, however small the image
            check_pixels(*_read_tile(image), max_pixels)
        orientation = _read_orientation(image, data)
    if orientation >= 5:
        width, height = height, width
    # a multi-picture file ("MPO", as phones write) is a JPEG followed by more images
    return Header("JPEG" if image.format == "MPO" else str(image.format), width, height, orientation)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises `TooManyPixels` if width x height exceeds `max_pixels`."""
    if width * height > max_pixels:
        raise TooManyPixels(f"the image has {width} x {height} pixels, and {max_pixels} are allowed")


def decode(data: bytes, header: Header, min_width: int = 0, min_height: int = 0) -> NDArray[np.uint8]:
    """Decodes an image file to upright RGB pixels (h, w, 3), reduced by 2, 4 or 8 if it stays large enough.

    The reduction is the largest that leaves `min_width` x `min_height` pixels; if either is 0, the image keeps its
    size. Raises `BrokenImage`, and `UnknownFormat` for samples that are neither 8 nor 16 bits.
    """
    reduction = 1
    if min_width and min_height:
        reduction = _choose_reduction(header.width, header.height, min_width, min_height)
    swaps_sides = header.orientation >= 5
    full = (header.height, header.width) if swaps_sides else (header.width, header.height)  # as stored in the file
    reduced = (-(-full[0] // reduction), -(-full[1] // reduction))

    image = None
    if header.format != "PNG" or _chunks_fit_in_file(data):
        image = _decode_with_opencv(data, _REDUCTION_FLAGS[reduction] if header.format == "JPEG" else 0)
    if image is None or (image.shape[1], image.shape[0]) not in (full, reduced):
        image = _decode_with_pillow(data)
    if (image.shape[1], image.shape[0]) != reduced:
        image = _reduce(image, reduction)
    elif reduction > 1:
        image = _stretch_to_edges(image, full[0] / reduction, full[1] / reduction)
    return _apply_orientation(image, header.orientation)


def shrink(photo: NDArray[np.uint8], min_width: int, min_height: int) -> NDArray[np.uint8]:
    """Reduces RGB pixels (h, w, 3) as `decode` does, so that pixels and files give the same detections."""
    return _reduce(photo, _choose_reduction(photo.shape[1], photo.shape[0], min_width, min_height))


def encode(pixels: NDArray[np.uint8], kind: str, parameters: Sequence[int] = ()) -> bytes:
    """Encodes RGB pixels (h, w, 3) as an image file of format `kind`, such as "jpeg", with OpenCV's `parameters`."""
    done, file = cv2.imencode(f".{kind}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), parameters)
    assert done
    return file.tobytes()


def _choose_reduction(width: int, height: int, min_width: int, min_height: int) -> int:
    fits = (n for n in _REDUCTION_FLAGS if -(-width // n) >= min_width and -(-height // n) >= min_height)
    return max(fits, default=1)


def _reduce(photo: NDArray[np.uint8], reduction: int) -> NDArray[np.uint8]:
    """Averages blocks of pixels, as libjpeg's scaled decoding does, so that all formats give the same detections."""
    if reduction == 1:
        return photo
    size = (-(-photo.shape[1] // reduction), -(-photo.shape[0] // reduction))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)


def _stretch_to_edges(reduced: NDArray[np.uint8], width: float, height: float) -> NDArray[np.uint8]:
    """Stretches the content, `width` x `height` pixels, over the whole array, whose sides libjpeg has rounded up."""
    scale_x, scale_y = reduced.shape[1] / width, reduced.shape[0] / height
    if scale_x == scale_y == 1:
        return reduced
    matrix = np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2]])  # maps pixel centres
    size = (reduced.shape[1], reduced.shape[0])
    return np.asarray(cv2.warpAffine(reduced, matrix, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _check_scans(data: bytes) -> None:
    """Raises `BrokenImage` for a JPEG with too many scans: in a large image a scan of 70 bytes costs 50 ms."""
    pairs = [np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1)]
    # an upper bound, three times as fast as the exact count below
    if sum(np.count_nonzero(each == _SCAN_MARKER) for each in pairs) <= MAX_SCANS:
        return
    at, scans = 2, 0
    while match := _JPEG_MARKER.search(data, at):
        marker, at = match[0][1], match.end()
        if marker == 0xD9:  # end of image
            return
        if marker == 0xDA:  # start of scan
            scans += 1
            if scans > MAX_SCANS:
                raise BrokenImage(f"the JPEG has more than the {MAX_SCANS} scans allowed: it would take too long")
        at += int.from_bytes(data[at : at + 2], "big")


def _read_tile(image: TiffImageFile) -> tuple[int, int]:
    """Returns the width and height of a TIFF's tiles, both 0 if it is not tiled."""
    width, height = (image.tag_v2.get(tag, 0) for tag in _TILE_TAGS)
    if not (isinstance(width, int) and isinstance(height, int)):
        raise BrokenImage("the TIFF's tiles have no size")
    return width, height


def _read_orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "TIFF":
        return 1  # both decoders apply it themselves, and Pillow's size is the one after it
    try:
        # PngImageFile.getexif decodes the whole image to look for an eXIf chunk after the pixels
        is_png_without_exif = image.format == "PNG" and b"eXIf" not in data
        exif = Image.Image.getexif(image) if is_png_without_exif else image.getexif()
        orientation = exif.get(_ORIENTATION_TAG)
    except Exception:  # a photo with garbled EXIF is still a photo
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _chunks_fit_in_file(data: bytes) -> bool:
    """Whether all chunks of a PNG end within the file: OpenCV 5 allocates up to 4 GB for a false chunk length."""
    at = 8
    while (end := at + 12 + int.from_bytes(data[at : at + 4], "big")) <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end
    return False


def _decode_with_opencv(data: bytes, reduction_flag: int) -> NDArray[np.uint8] | None:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | reduction_flag
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)


def _decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    """Decodes what OpenCV cannot; raises `UnknownFormat` or `BrokenImage` with the reason if Pillow cannot either."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip their values to white
                raise UnknownFormat(f"a {image.format} with samples of mode {image.mode} is not supported")
            return np.asarray(image.convert("RGB"))
    except UnknownFormat:
        raise
    except Exception as error:  # as in `read_header`, a malformed file may raise anything
        raise BrokenImage(f"the image's pixels cannot be decoded: {error}") from error


def _apply_orientation(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns an image upright by its EXIF orientation: a transposition for 5 to 8, then a flip."""
    upright = cv2.transpose(image) if orientation >= 5 else image
    axis = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return np.asarray(upright if axis is None else cv2.flip(upright, axis), np.uint8)
