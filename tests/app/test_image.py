import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from model import letterbox
from model.image import BrokenImage, TooManyPixels, UnknownFormat, decode, read_header
from tests.app.colours import BLUE, GREEN, HEIGHT, PHOTO, RED, WIDTH, encode, paint

QUADRANTS = paint(64, 32, (RED, (0, 0, 32, 16)), (GREEN, (32, 0, 64, 16)), (BLUE, (0, 16, 32, 32)))
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encode_with_orientation(orientation: int, kind: str, **options: object) -> bytes:
    """Encodes `QUADRANTS`, transformed such that the EXIF `orientation` restores it."""
    image = Image.fromarray(QUADRANTS)
    if orientation in TRANSPOSES:
        image = image.transpose(TRANSPOSES[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif, **options)


def read(data: bytes) -> np.ndarray:
    return decode(data, read_header(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 40),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
    ],
)
def test_exif_orientation_is_applied(orientation: int, kind: str, options: dict[str, object], error: int) -> None:
    data = encode_with_orientation(orientation, kind, **options)
    header = read_header(data)
    assert (header.width, header.height) == (64, 32)
    difference = np.abs(decode(data, header).astype(int) - QUADRANTS)
    assert difference.max() <= error


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_lossless_formats_are_exact(kind: str) -> None:
    assert (read(encode(QUADRANTS, kind, **({"lossless": True} if kind == "WEBP" else {}))) == QUADRANTS).all()


@pytest.mark.parametrize("mode", ["P", "RGBA", "1", "L", "LA"])
def test_other_pixel_types_become_rgb(mode: str) -> None:
    stored = Image.fromarray(QUADRANTS).convert(mode)
    assert (read(encode(stored, "PNG")) == np.asarray(stored.convert("RGB"))).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_images_keep_their_brightness(kind: str) -> None:
    grey = np.tile(np.arange(0, 65536, 1024, dtype=np.uint16), (32, 1))
    picture = read(encode(Image.fromarray(grey), kind))
    assert np.abs(picture.astype(int) - (grey / 257)[..., None]).max() <= 1


def test_cmyk_jpeg_has_the_right_colours() -> None:
    picture = read(encode(Image.fromarray(QUADRANTS).convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert np.abs(picture.astype(int) - QUADRANTS).max() <= 40


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(QUADRANTS), Image.fromarray(QUADRANTS[::-1].copy())]
    assert (read(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == QUADRANTS).all()


def test_multi_picture_jpeg_gives_its_first_picture() -> None:
    pictures = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())]
    data = encode(pictures[0], "MPO", save_all=True, append_images=pictures[1:], quality=95)
    assert read_header(data).format == "JPEG"
    assert np.abs(read(data).astype(int) - PHOTO).mean() < 5


def test_floating_point_tiff_is_refused_rather_than_clipped() -> None:
    with pytest.raises(UnknownFormat, match="mode F"):
        read(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("photo", "decoded"),
    [
        ((8 * WIDTH, 8 * HEIGHT), (WIDTH, HEIGHT)),
        ((8 * WIDTH - 8, 8 * HEIGHT - 6), (2 * WIDTH - 2, 2 * HEIGHT - 1)),
        ((2 * WIDTH - 1, 2 * HEIGHT), (WIDTH, HEIGHT)),
        ((WIDTH + 1, HEIGHT + 1), (WIDTH + 1, HEIGHT + 1)),
        ((20, 10), (20, 10)),
    ],
)
def test_image_is_shrunk_to_no_less_than_the_input_size(
    kind: str, photo: tuple[int, int], decoded: tuple[int, int]
) -> None:
    data = encode(paint(*photo), kind)
    header = read_header(data)
    placed = letterbox.place(*photo, [(HEIGHT, WIDTH)])
    assert decode(data, header, placed.width, placed.height).shape == (decoded[1], decoded[0], 3)


def test_jpeg_and_png_shrink_alike() -> None:
    y, x = np.mgrid[0:512, 0:768]
    smooth = np.stack([x / 3, y / 2, (x + y) / 5], axis=2).astype(np.uint8)
    png, jpeg = (
        decode(data, read_header(data), WIDTH, HEIGHT).astype(int)
        for data in (encode(smooth, "PNG"), encode(smooth, "JPEG", quality=98, subsampling=0))
    )
    assert np.abs(png - jpeg).max() <= 4


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(1281, 961), (2561, 1921), (640, 427), (1280, 960)])
def test_shrinking_does_not_shift_the_content(size: tuple[int, int], orientation: int) -> None:
    edges = [round(0.93 * length) for length in size]
    photo = paint(*size, ((255, 255, 255), (edges[0], 0, *size)), ((255, 255, 255), (0, edges[1], *size)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo, "JPEG", quality=95, exif=exif)
    header = read_header(data)
    shrunk = decode(data, header, *((240, 320) if orientation == 6 else (320, 240)))
    upright = shrunk if orientation == 1 else np.rot90(shrunk)  # 6: to be rotated clockwise
    for axis, (length, edge) in enumerate(zip(size, edges, strict=True)):
        row = np.take(upright.mean(2), 2, axis=axis).astype(float)
        row = (row - row[:9].mean()) / (row[-3:].mean() - row[:9].mean())  # the share of each pixel that is white
        assert (1 - row).sum() / len(row) == pytest.approx(edge / length, abs=0.15 / len(row))


def test_rotated_image_is_shrunk_by_its_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(paint(8 * HEIGHT, 8 * WIDTH), "JPEG", exif=exif)
    header = read_header(data)
    assert (header.width, header.height) == (8 * WIDTH, 8 * HEIGHT)
    assert decode(data, header, WIDTH, HEIGHT).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("data", [b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\xff\xd8\xff"])
def test_data_that_is_not_an_image_is_refused(data: bytes) -> None:
    with pytest.raises(UnknownFormat):
        read_header(data)


@pytest.mark.parametrize("kind", ["PPM", "AVIF"])
def test_unsupported_format_is_refused(kind: str) -> None:
    with pytest.raises(UnknownFormat):
        read_header(encode(QUADRANTS, kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_file_is_broken(kind: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    data = encode(noise, kind)
    with pytest.raises(BrokenImage):
        read(data[: int(len(data) * kept)])


def test_bytes_after_the_image_are_ignored() -> None:
    for kind in ("JPEG", "PNG"):
        data = encode(QUADRANTS, kind)
        assert (read(data + b"\0" * 5000) == read(data)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_corrupt_exif_is_ignored() -> None:
    data = encode(QUADRANTS, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_header(data).orientation == 1


def test_tile_sizes_are_checked_before_decoding() -> None:
    def write(tile: int, kind: int = 4, offsets: int = 324) -> bytes:  # 4: an unsigned integer of four bytes
        sizes = [(256, 4, 64), (257, 4, 64), (258, 4, 8), (259, 4, 1), (262, 4, 1)]
        tiles = [(322, kind, tile), (323, kind, tile), (offsets, 4, 8), (325, 4, 4096)]
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sizes + tiles)
        return struct.pack("<2sHIH", b"II", 42, 8, 9) + entries + bytes(4)

    assert read_header(write(64), 4096).width == read_header(write(4096)).width == 64
    with pytest.raises(TooManyPixels, match="8192 x 8192"):
        read_header(write(8192))
    with pytest.raises(BrokenImage, match="tiles have no size"):
        read_header(write(0x42800000, kind=11, offsets=273))  # a float; strip offsets instead of tile offsets


def test_pixels_are_counted_before_decoding() -> None:
    bomb = encode(Image.new("1", (5000, 4000)), "PNG")
    assert len(bomb) < 10_000
    assert read_header(bomb, 20_000_000).width == 5000
    with pytest.raises(TooManyPixels, match="5000 x 4000"):
        read_header(bomb, 19_999_999)


def test_decompression_bomb_beyond_pillows_limit_is_refused() -> None:
    header = bytearray(encode(Image.new("1", (8, 8)), "BMP"))
    header[18:26] = (30_000).to_bytes(4, "little") * 2
    with pytest.raises(TooManyPixels):
        read_header(bytes(header))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the process's peak memory")
def test_huge_chunk_length_does_not_allocate_memory() -> None:
    data = bytearray(encode(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8), "PNG"))
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = (0xF000_0000).to_bytes(4, "big")
    program = (
        "import contextlib, pathlib, re, sys\n"
        "from model.image import BrokenImage, decode, read_header\n"
        "data = sys.stdin.buffer.read()\n"
        "with contextlib.suppress(BrokenImage):\n"
        "    decode(data, read_header(data))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text()).group(1))"
    )
    finished = subprocess.run([sys.executable, "-c", program], input=bytes(data), capture_output=True, check=True)
    assert int(finished.stdout) < 300_000  # kB


def test_orientation_after_the_pixels_of_a_png_is_read() -> None:
    data = encode_with_orientation(6, "PNG")
    at = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[at : at + 4], "big")
    end = data.index(b"IEND") - 4
    moved = data[:at] + data[at + length : end] + data[at : at + length] + data[end:]
    assert Image.open(io.BytesIO(moved)).size == (32, 64)
    assert (read(moved) == QUADRANTS).all()


def make_progressive(further_scans: int) -> bytes:
    data = encode(PHOTO, "JPEG", progressive=True, quality=95)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * further_scans + data[-2:]


def test_progressive_jpeg_is_read() -> None:
    data = make_progressive(0)
    assert data.count(b"\xff\xda") > 5
    assert np.abs(read(data).astype(int) - PHOTO).mean() < 5


def test_too_many_progressive_scans_are_refused_before_decoding() -> None:
    with pytest.raises(BrokenImage, match="more than the 64 scans allowed"):
        read_header(make_progressive(64))


def test_scans_in_thumbnails_and_after_the_image_are_not_counted() -> None:
    thumbnail = b"\xff\xe1" + (2 + 200).to_bytes(2, "big") + b"\xff\xda" * 100
    data = make_progressive(0)
    data = data[:2] + thumbnail + data[2:] + b"\xff\xda" * 100
    assert read(data).shape == PHOTO.shape
