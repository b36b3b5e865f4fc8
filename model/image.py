"""Reads photos: the header first, the pixels only once the header is acceptable. Free of torch."""

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
MOST_PIXELS = 178_956_970  # that can be allowed: Pillow opens nothing larger
# not AVIF: what is coded in it may be 16384 x 16384 whatever the header says, and its decoders cannot be bounded
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}  # of their files
MAX_SCANS = 64  # of a JPEG; progressive ones have about ten
_ORIENTATION_TAG = 0x0112
_TILE_TAGS = (0x0142, 0x0143)  # width and length (TIFF 6.0, section 15)
_SCAN_MARKER = 0xDAFF  # little-endian
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # but for those within the pixels (ITU-T T.81, B.1.1)

# IMREAD_REDUCED_COLOR_* hold the bit of BGR, which OpenCV refuses beside RGB; the scale is the same in these
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class InvalidImage(Exception):
    """A picture cannot be used; its class says why."""


class UnknownFormat(InvalidImage):
    """The bytes are no image of a format that this service reads."""


class TooManyPixels(InvalidImage):
    """The header announces more pixels than are allowed."""


class BrokenImage(InvalidImage):
    """The header is fine and the pixels are not: cut short or corrupt."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself: `width` and `height` are the photo's in pixels, as `orientation` turns it."""

    format: str
    width: int
    height: int
    orientation: int  # EXIF 2.32, 4.6.4: 1 is upright, from 5 on the sides change places


def quieten_decoders() -> None:
    """Readies this process to decode images in a pool, and to answer broken ones rather than log them."""
    cv2.setNumThreads(1)  # the pool decodes in parallel already
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads an image file's header without decoding; raises `InvalidImage`."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnknownFormat(f"these bytes are no image; known formats are {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"the image has more pixels than the {max_pixels} allowed") from error
    except Exception as error:  # Pillow's parsers raise whatever a malformed header makes them stumble over
        raise BrokenImage(f"the image's header cannot be read: {error}") from error
    with image:
        width, height = image.size
        check_pixels(width, height, max_pixels)
        if image.format in ("JPEG", "MPO"):
            _check_scans(data)
        if isinstance(image, TiffImageFile):  # whose tiles are decoded whole
            check_pixels(*_read_tile(image), max_pixels)
        orientation = _read_orientation(image, data)
    if orientation >= 5:
        width, height = height, width
    # a multi-picture file ("MPO", as phones write) is a JPEG with more behind it
    return Header("JPEG" if image.format == "MPO" else str(image.format), width, height, orientation)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises `TooManyPixels` where a picture is larger than allowed."""
    if width * height > max_pixels:
        raise TooManyPixels(f"the image has {width} x {height} pixels, and {max_pixels} are allowed")


def decode(data: bytes, header: Header, least_width: int = 0, least_height: int = 0) -> NDArray[np.uint8]:
    """Decodes a photo to RGB (h, w, 3), upright, halved up to thrice while no side falls below the least one.

    `least_width` and `least_height` are pixels; 0 asks for the photo's own size. Raises `BrokenImage`, and
    `UnknownFormat` where the samples are neither 8 nor 16 bits.
    """
    reduction = 1
    if least_width and least_height:
        reduction = _choose_reduction(header.width, header.height, least_width, least_height)
    turned = header.orientation >= 5
    full = (header.height, header.width) if turned else (header.width, header.height)
    reduced = (-(-full[0] // reduction), -(-full[1] // reduction))

    image = None
    if header.format != "PNG" or _chunks_fit(data):
        image = _decode_with_opencv(data, _REDUCED[reduction] if header.format == "JPEG" else 0)
    if image is None or (image.shape[1], image.shape[0]) not in (full, reduced):
        image = _decode_with_pillow(data)
    if (image.shape[1], image.shape[0]) != reduced:
        image = _reduce(image, reduction)
    elif reduction > 1:
        image = _stretch(image, full[0] / reduction, full[1] / reduction)
    return _turn_upright(image, header.orientation)


def shrink(photo: NDArray[np.uint8], least_width: int, least_height: int) -> NDArray[np.uint8]:
    """Halves RGB pixels (h, w, 3) as `decode` halves a file's: the same is found in both."""
    return _reduce(photo, _choose_reduction(photo.shape[1], photo.shape[0], least_width, least_height))


def encode(pixels: NDArray[np.uint8], kind: str, parameters: Sequence[int] = ()) -> bytes:
    """Writes RGB pixels (h, w, 3) as a file of that `kind`, as "jpeg", by OpenCV's `parameters`."""
    done, file = cv2.imencode(f".{kind}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), parameters)
    assert done
    return file.tobytes()


def _choose_reduction(width: int, height: int, least_width: int, least_height: int) -> int:
    fits = (each for each in _REDUCED if -(-width // each) >= least_width and -(-height // each) >= least_height)
    return max(fits, default=1)


def _reduce(photo: NDArray[np.uint8], reduction: int) -> NDArray[np.uint8]:
    """Takes the mean of each block, as libjpeg's scaled decode does: the format does not change what is found."""
    if reduction == 1:
        return photo
    size = (-(-photo.shape[1] // reduction), -(-photo.shape[0] // reduction))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)


def _stretch(reduced: NDArray[np.uint8], width: float, height: float) -> NDArray[np.uint8]:
    """Has the photo, `width` x `height` of the pixels, fill all of them: libjpeg rounds its sides up."""
    scale_x, scale_y = reduced.shape[1] / width, reduced.shape[0] / height
    if scale_x == scale_y == 1:
        return reduced
    matrix = np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2]])  # of the pixels' middles
    size = (reduced.shape[1], reduced.shape[0])
    return np.asarray(cv2.warpAffine(reduced, matrix, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _check_scans(data: bytes) -> None:
    """Raises `BrokenImage` for a JPEG that goes over its pixels again and again: 70 bytes cost 50 ms in a large one."""
    pairs = [np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1)]
    if sum(np.count_nonzero(each == _SCAN_MARKER) for each in pairs) <= MAX_SCANS:  # what follows takes thrice as long
        return
    at, scans = 2, 0
    while match := _JPEG_MARKER.search(data, at):
        marker, at = match[0][1], match.end()
        if marker == 0xD9:  # the image's end
            return
        if marker == 0xDA:  # a scan's start
            scans += 1
            if scans > MAX_SCANS:
                raise BrokenImage(f"the JPEG has more than the {MAX_SCANS} scans allowed: it would take too long")
        at += int.from_bytes(data[at : at + 2], "big")


def _read_tile(image: TiffImageFile) -> tuple[int, int]:
    """Returns the width and height of a TIFF's tiles; 0 where it has none."""
    width, height = (image.tag_v2.get(tag, 0) for tag in _TILE_TAGS)
    if not (isinstance(width, int) and isinstance(height, int)):
        raise BrokenImage("the TIFF's tiles have no size")
    return width, height


def _read_orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "TIFF":
        return 1  # both decoders turn it themselves, and Pillow's size is already the turned one
    try:
        # Pillow would decode a whole PNG to look for a chunk behind the pixels
        late = image.format == "PNG" and b"eXIf" not in data
        exif = Image.Image.getexif(image) if late else image.getexif()
        orientation = exif.get(_ORIENTATION_TAG)
    except Exception:  # a photo with garbled EXIF is still a photo
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _chunks_fit(data: bytes) -> bool:
    """Whether no chunk of a PNG claims to be longer than the file: OpenCV 5 would allocate up to 4 GB at its word."""
    at = 8
    while (end := at + 12 + int.from_bytes(data[at : at + 4], "big")) <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end
    return False


def _decode_with_opencv(data: bytes, reduced: int) -> NDArray[np.uint8] | None:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | reduced
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)


def _decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    """Reads what OpenCV does not, and says what is wrong with the rest."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to white
                raise UnknownFormat(f"a {image.format} with samples of mode {image.mode} is not supported")
            return np.asarray(image.convert("RGB"))
    except UnknownFormat:
        raise
    except Exception as error:  # as above: any exception may come out of a malformed file
        raise BrokenImage(f"the image's pixels cannot be decoded: {error}") from error


def _turn_upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undoes EXIF's orientation: a transposition for the upper four, then a flip."""
    upright = cv2.transpose(image) if orientation >= 5 else image
    axis = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return np.asarray(upright if axis is None else cv2.flip(upright, axis), np.uint8)
