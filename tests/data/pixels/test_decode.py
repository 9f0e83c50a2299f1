"""Decoding: orientation, depth, alpha, damage, size; and the training square."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from styletune.data.pixels.crop import square_pixels
from styletune.data.pixels.decode import decode_image
from styletune.errors import DataError


def corners() -> NDArray[np.uint8]:
    """(24, 16, 3): four flat quarters, so that every turn and flip shows."""
    pixels = np.zeros((24, 16, 3), np.uint8)
    pixels[:12, :8], pixels[:12, 8:] = (255, 0, 0), (0, 255, 0)
    pixels[12:, :8], pixels[12:, 8:] = (0, 0, 255), (255, 255, 255)
    return pixels


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(content: bytes, background: str | None = None) -> NDArray[np.uint8]:
    image = decode_image(content, name="x.png", background=background)
    assert image.mode == "RGB"
    return np.asarray(image)


# What a viewer must do with stored pixels, by Exif 2.32 §4.6.4, in numpy terms.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


EXACT: dict[str, dict[str, object]] = {
    "PNG": {},
    "JPEG": {"quality": 100, "subsampling": 0},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIF": {"quality": 100, "chroma": 444},
}


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("tag", range(1, 9))
def test_every_exif_orientation_comes_out_upright(tag: int, kind: str) -> None:
    """All eight orientations of six formats decode to the same picture."""
    stored = Image.fromarray(np.ascontiguousarray(STORED[tag](corners())))
    exif = Image.Exif()
    exif[0x0112] = tag
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    # As bytes: of these pillow-heif makes the container's own turn, which is what counts there.
    result = decoded(encoded(stored, kind, exif=exif.tobytes(), **EXACT[kind]))
    assert result.shape == (24, 16, 3)
    assert np.abs(result.astype(int) - corners()).max() <= 3


def test_heic_is_turned_by_its_container_alone() -> None:
    """HEIF (ISO/IEC 23008-12) says that Exif does not turn an image: only its own boxes do."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(corners()), "HEIF", exif=exif, **EXACT["HEIF"])
    assert b"irot" not in content
    assert decoded(content).shape == (24, 16, 3)


@pytest.mark.parametrize("tag", [0, 9, 200])
def test_an_unknown_orientation_is_no_turn(tag: int) -> None:
    """Values outside 1 to 8, which cameras do write, leave the image as stored."""
    exif = Image.Exif()
    exif[0x0112] = tag
    assert (decoded(encoded(Image.fromarray(corners()), exif=exif)) == corners()).all()


def test_the_original_is_not_touched(tmp_path: Path) -> None:
    """Decoding a file leaves its bytes and its time alone."""
    file = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    file.write_bytes(encoded(Image.fromarray(corners()), exif=exif))
    before = hashlib.sha256(file.read_bytes()).digest(), file.stat().st_mtime_ns
    image = decode_image(file, name="a.png", background=None)
    assert image.size == (24, 16)
    assert (hashlib.sha256(file.read_bytes()).digest(), file.stat().st_mtime_ns) == before


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    """A 16-bit ramp becomes an 8-bit ramp, end to end, in PNG, TIFF and PGM."""
    ramp = np.linspace(0, 65535, 512).astype(np.uint16).reshape(1, -1).repeat(4, 0)
    expected = np.rint(ramp / 65535 * 255)
    for content in (
        encoded(Image.fromarray(ramp)),
        encoded(Image.fromarray(ramp), "TIFF"),
        b"P5 512 4 65535\n" + ramp.astype(">u2").tobytes(),
    ):
        result = decoded(content)
        assert np.abs(result[..., 0] - expected).max() <= 1
        assert (result[..., 0] == result[..., 2]).all()


def png_16_bit(samples: NDArray[np.uint16], kind: int) -> bytes:
    """PNG of color type ``kind`` and these (h, w, channels) samples, by PNG 3rd edition §11."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff_16_bit(samples: NDArray[np.uint16], order: str) -> bytes:
    """TIFF of one strip of these (h, w, channels) samples, by TIFF 6.0 §§2, 20."""
    height, width, channels = samples.shape
    data = samples.astype(f"{order}u2").tobytes()
    photometric = 2 if channels >= 3 else 1
    tags = {256: width, 257: height, 259: 1, 262: photometric, 273: 8, 277: channels}
    tags |= {278: height, 279: len(data)}
    entries = {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()}
    end = 8 + len(data) + 2 + 12 * (len(tags) + 1 + (channels == 4)) + 4
    entries[258] = struct.pack(f"{order}HHII", 258, 3, channels, end)
    if channels == 4:  # alpha, not multiplied in
        entries[338] = struct.pack(f"{order}HHIHH", 338, 3, 1, 2, 0)
    table = struct.pack(f"{order}H", len(entries)) + b"".join(entries[t] for t in sorted(entries))
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    return head + data + table + bytes(4) + struct.pack(f"{order}{channels}H", *[16] * channels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF <", "TIFF >"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_color_is_scaled(channels: int, kind: str) -> None:
    """Random 16-bit colors, with and without alpha, come out within one level of v·255/65535."""
    samples = np.random.default_rng(0).integers(0, 65536, (40, 30, channels), np.uint16)
    samples[0, :8], samples[1, :8] = 0, 65535
    if channels == 4:
        samples[..., 3] = np.where(samples[..., 3] < 32768, 0, 65535)
    exact = samples / 65535 * 255
    if channels == 4:
        exact = np.where(samples[..., 3:] == 0, 255, exact)[..., :3]
    content = (
        png_16_bit(samples, {3: 2, 4: 6}[channels])
        if kind == "PNG"
        else tiff_16_bit(samples, kind[-1])
    )
    assert np.abs(decoded(content, "#ffffff") - exact).max() <= 1


def test_sixteen_bit_gray_with_alpha_is_scaled() -> None:
    """Gray keeps its proportions beside an alpha channel."""
    samples = np.random.default_rng(0).integers(0, 65536, (40, 30, 2), np.uint16)
    samples[..., 1] = 65535
    result = decoded(png_16_bit(samples, 4))
    assert np.abs(result - samples[..., :1] / 65535 * 255).max() <= 1


def test_sixteen_bit_planes_are_refused() -> None:
    """Pillow reads 16-bit TIFF with separate planes as noise: refused, not trained on."""
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    planes = np.random.default_rng(0).integers(0, 65536, (3, 40, 30), np.uint16)
    tifffile.imwrite(stream, planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(DataError, match="planes"):
        decoded(stream.getvalue())


def test_other_programs_are_never_run() -> None:
    """Formats that Pillow hands to other programs or that nobody curates in are not opened."""
    image = Image.fromarray(corners())
    for kind in ("EPS", "PCX", "TGA", "ICO", "PDF", "JPEG2000"):
        with pytest.raises(DataError, match="not a readable image"):
            decoded(encoded(image, kind))


def half_transparent(mode: str) -> Image.Image:
    """Red; the left half is opaque, the right half fully transparent."""
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:, 4:] = 0
    image = Image.new("RGB", (8, 8), (255, 0, 0)).convert("RGB" if mode == "RGBA" else "L")
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == mode
    return image


def palette_image() -> Image.Image:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 9, 9, 9])
    image.paste(1, (4, 0, 8, 8))
    return image


TRANSPARENT = {
    "RGBA": lambda: encoded(half_transparent("RGBA")),
    "LA": lambda: encoded(half_transparent("LA")),
    "palette": lambda: encoded(palette_image(), transparency=1),
    "palette table": lambda: encoded(palette_image(), transparency=b"\xff\x00"),
    "GIF": lambda: encoded(palette_image(), "GIF", transparency=1),
    "color key": lambda: encoded(palette_image().convert("RGB"), transparency=(9, 9, 9)),
    "gray key": lambda: encoded(
        Image.fromarray(np.repeat([[76, 9]], 4, 1).repeat(8, 0).astype(np.uint8)), transparency=9
    ),
    "16-bit gray key": lambda: encoded(
        Image.fromarray(np.repeat([[76 * 257, 9]], 4, 1).repeat(8, 0).astype(np.uint16)),
        transparency=9,
    ),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_needs_a_declared_background(kind: str) -> None:
    """Every kind of transparency is refused without a background; the fix is a line to paste."""
    with pytest.raises(DataError, match="32 of 64 pixels are transparent") as caught:
        decoded(TRANSPARENT[kind]())
    assert 'background = "#ffffff"' in caught.value.fix
    assert caught.value.where == "x.png"


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_shows_the_declared_background(kind: str) -> None:
    """The opaque half keeps its color, the other half is the background, not hidden color."""
    result = decoded(TRANSPARENT[kind](), background="#0080ff")
    assert (result[:, 4:] == (0, 128, 255)).all()
    assert tuple(result[0, 0]) in {(255, 0, 0), (76, 76, 76)}


def test_half_alpha_is_mixed() -> None:
    """Alpha 128 of black over white is the gray between."""
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.abs(decoded(encoded(image), "#ffffff").astype(int) - 127).max() <= 1


def test_opaque_alpha_is_dropped() -> None:
    """An alpha band that hides nothing needs no background and changes nothing."""
    image = Image.fromarray(corners()).convert("RGBA")
    assert (decoded(encoded(image)) == corners()).all()


def test_transparency_is_turned_with_the_image() -> None:
    """Alpha and color stay together under an Exif orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    result = decoded(encoded(half_transparent("RGBA"), exif=exif), "#0000ff")
    assert (result[:4] == (255, 0, 0)).all()
    assert (result[4:] == (0, 0, 255)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_plain_modes_become_rgb(mode: str) -> None:
    """Black and white survive every ordinary pixel type."""
    image = Image.new("RGB", (8, 8), "white")
    image.paste("black", (0, 0, 4, 8))
    result = decoded(encoded(image.convert(mode)))
    assert (result[:, :4] == 0).all()
    assert (result[:, 4:] == 255).all()


def noisy() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_truncated_file_is_an_error(kind: str) -> None:
    """A file cut in half is refused and named in every format, never gray at the bottom."""
    content = encoded(noisy(), kind)
    with pytest.raises(DataError) as caught:
        decoded(content[: len(content) // 2])
    assert caught.value.where == "x.png"


def test_a_damaged_file_is_an_error() -> None:
    """Flipped bytes inside the compressed data are found."""
    content = bytearray(encoded(noisy()))
    content[200:300] = bytes(255 - b for b in content[200:300])
    with pytest.raises(DataError, match="damaged"):
        decoded(bytes(content))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"a cat on a wall", "not a readable image"), (b"\x89PNG\r\n\x1a\n", "x.png")],
)
def test_what_is_no_image_is_an_error(content: bytes, said: str) -> None:
    """An empty file, a text with an image's name and a bare signature are refused."""
    with pytest.raises(DataError) as caught:
        decoded(content)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_more_than_one_frame_is_refused(kind: str) -> None:
    """Animations and multi-page files are an error; no more than the second is looked for."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="several frames or pages"):
        decoded(content)


def test_a_phone_photo_with_a_second_picture_is_its_first() -> None:
    """MPO, a photograph with a depth map behind it, is no animation."""
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    result = decoded(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert np.abs(result.astype(int) - (254, 0, 0)).max() <= 2


def bomb(width: int, height: int) -> bytes:
    content = bytearray(encoded(Image.new("L", (1, 1))))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (13_350, 13_350)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    """A header with too many pixels stops before decoding, and the error names the file."""
    with pytest.raises(DataError, match="too large") as caught:
        decoded(bomb(width, height))
    assert caught.value.where == "x.png"
    assert "178 million" in str(caught.value)


def test_the_pixel_cap_can_be_set() -> None:
    """The cap counts pixels, not bytes: 64 pass under 64 and fail under 63."""
    content = encoded(Image.new("RGB", (8, 8)))
    decode_image(content, name="a", background=None, max_pixels=64)
    with pytest.raises(DataError, match="8×8"):
        decode_image(content, name="a", background=None, max_pixels=63)


def test_numbers_without_a_range_are_refused() -> None:
    """Floating point and 32-bit pixels have no white, so they are not guessed at."""
    for dtype in (np.float32, np.int32):
        with pytest.raises(DataError, match="no defined range"):
            decoded(encoded(Image.fromarray(np.zeros((4, 4), dtype)), "TIFF"))


@pytest.mark.parametrize(
    ("width", "height"),
    [(64, 64), (100, 64), (64, 100), (201, 133), (133, 201), (97, 640), (60, 52)],
)
def test_micro_conditioning_is_true(width: int, height: int) -> None:
    """Corner, sizes and pixels agree: a coordinate picture shows where the square was cut."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    picture = np.stack([across, down, 0 * down], -1).round().astype(np.uint8)
    crop = square_pixels(Image.fromarray(picture), 64)
    assert crop.original_size == (height, width)
    assert crop.target_size == (64, 64)
    assert crop.pixels.shape == (64, 64, 3)
    assert crop.pixels.dtype == np.uint8
    top, left = crop.crops_coords_top_left
    scale = 64 / min(width, height)
    assert min(top, left) == 0
    for axis, (channel, start, side) in enumerate([(1, top, height), (0, left, width)]):
        line = crop.pixels[:, 32, channel] if axis == 0 else crop.pixels[32, :, channel]
        # Center of resized pixel i lies at (i + 0.5) / scale - 0.5 in the original.
        where = (start + np.arange(64) + 0.5) / scale - 0.5
        expected = where / (side - 1) * 255
        inner = slice(4, -4)
        one_pixel = 255 / (side - 1) / scale
        assert np.abs(line[inner] - expected[inner]).max() <= one_pixel / 2 + 1.5
        trimmed = round(side * scale) - 64
        assert abs(trimmed - 2 * start) <= 1


def test_the_crop_is_antialiased() -> None:
    """One-pixel stripes shrink to even gray, not to moiré."""
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = square_pixels(Image.fromarray(stripes), 64).pixels
    assert pixels.std() < 3
    assert abs(pixels.mean() - 127.5) < 2


def test_a_square_of_the_right_size_is_untouched() -> None:
    """Nothing is resampled when nothing needs to be."""
    pixels = np.asarray(noisy())
    assert (square_pixels(Image.fromarray(pixels), 64).pixels == pixels).all()


def test_small_pictures_fill_their_square() -> None:
    """References are enlarged as far as need be; what may be trained on is checked before."""
    assert square_pixels(Image.new("RGB", (40, 90)), 100).pixels.shape == (100, 100, 3)
