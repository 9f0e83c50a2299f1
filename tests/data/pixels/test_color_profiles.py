"""Color profiles: what is embedded is what the pixels mean."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from styletune.data.pixels.decode import decode_image
from styletune.errors import DataError

# Colorants adapted to D50 (columns X, Y, Z), as the published sRGB and Display P3 profiles hold.
SRGB = np.array([(0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)])
P3 = np.array([(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)])
D50 = np.array([0.9642, 1.0, 0.8249])


def s15(values: NDArray[np.float64]) -> bytes:
    return b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values.ravel())


def icc(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2 profile of the given tags, by ICC.1:2001-04 §6."""
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    body = struct.pack(">I", len(tags)) + table + body
    head = struct.pack(">I", 128 + len(body)) + b"\0" * 4 + b"\x02\x40\0\0" + kind + space + pcs
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + s15(D50)
    return head.ljust(128, b"\0") + body


def gamma_curve(gamma: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"


def xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ " + b"\0" * 4 + s15(values)


def rgb_profile(colorants: NDArray[np.float64], gamma: float = 2.2) -> bytes:
    tags = {b"wtpt": xyz(D50)}
    for letter, column in zip((b"r", b"g", b"b"), colorants, strict=True):
        tags[letter + b"XYZ"] = xyz(column)
        tags[letter + b"TRC"] = gamma_curve(gamma)
    return icc(b"mntr", b"RGB ", b"XYZ ", tags)


def gray_profile(gamma: float) -> bytes:
    return icc(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": xyz(D50), b"kTRC": gamma_curve(gamma)})


CYAN_LAB = (50.0, -30.0, -45.0)


def cmyk_profile() -> bytes:
    """Paper is white, any black ink is black, cyan alone is ``CYAN_LAB``, other inks gray it."""
    nodes = bytearray()
    for c in (0, 1):
        for m in (0, 1):
            for y in (0, 1):
                for k in (0, 1):
                    lab = (100.0, 0.0, 0.0)
                    if k or c + m + y == 3:
                        lab = (0.0, 0.0, 0.0)
                    elif c and not m and not y:
                        lab = CYAN_LAB
                    elif c + m + y:
                        lab = (60.0 / (c + m + y), 0.0, 0.0)
                    nodes += bytes([round(lab[0] * 2.55), round(lab[1] + 128), round(lab[2] + 128)])
    ramp = bytes(range(256))
    lut = b"mft1" + b"\0" * 4 + bytes([4, 3, 2, 0]) + s15(np.eye(3)) + ramp * 4 + nodes + ramp * 3
    return icc(b"prtr", b"CMYK", b"Lab ", {b"wtpt": xyz(D50), b"A2B0": lut})


def to_srgb(linear_xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """XYZ under D50 to 8-bit sRGB (IEC 61966-2-1), with nothing of Pillow in it."""
    linear = np.clip(linear_xyz @ np.linalg.inv(SRGB), 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def lab_to_xyz(lab: tuple[float, float, float]) -> NDArray[np.float64]:
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    return D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))


def decoded(image: Image.Image, kind: str, profile: bytes, **options: object) -> NDArray[np.int64]:
    stream = io.BytesIO()
    image.save(stream, kind, icc_profile=profile, **options)
    result = decode_image(stream.getvalue(), name="p", background="#ffffff")
    assert result.mode == "RGB"
    assert "icc_profile" not in result.info
    return np.asarray(result).astype(np.int64)


@pytest.mark.parametrize("color", [(200, 100, 50), (60, 120, 200), (128, 128, 128), (90, 160, 90)])
def test_display_p3_is_converted(color: tuple[int, int, int]) -> None:
    """A wide-gamut color gets the sRGB numbers that look the same, by the textbook formula."""
    expected = to_srgb((np.array(color) / 255) ** 2.2 @ P3)
    result = decoded(Image.new("RGB", (4, 4), color), "PNG", rgb_profile(P3))
    assert np.abs(result - expected).max() <= 2
    if len(set(color)) > 1:
        assert np.abs(result[0, 0] - color).max() >= 5


# Adobe RGB (1998) §4.3.1: primaries adapted to D50, gamma 2.19921875.
ADOBE = np.array(
    [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
)
PATCHES = [
    (180, 60, 50),
    (100, 140, 110),
    (70, 80, 170),
    (200, 190, 70),
    (190, 90, 160),
    (120, 170, 180),
    (40, 40, 40),
    (230, 225, 220),
    (118, 118, 118),
]


@pytest.mark.parametrize(
    ("colorants", "gamma"), [(P3, 2.2), (ADOBE, 2.19921875)], ids=["Display P3", "Adobe RGB"]
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "HEIF"])
def test_patches_of_wide_profiles_look_the_same(
    kind: str, colorants: NDArray[np.float64], gamma: float
) -> None:
    """Nine patches under a wide-gamut profile are within ΔE00 1 of the color they stand for."""
    skcolor = pytest.importorskip("skimage.color")
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
        options = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    for patch in PATCHES:
        image = Image.new("RGB", (16, 16), patch)
        result = decoded(image, kind, rgb_profile(colorants, gamma), **options)
        meant = skcolor.xyz2lab(((np.array(patch) / 255) ** gamma @ colorants), illuminant="D50")
        shown = np.where(
            result[8, 8] > 10.31,
            ((result[8, 8] / 255 + 0.055) / 1.055) ** 2.4,
            result[8, 8] / 255 / 12.92,
        )
        lab = skcolor.xyz2lab(shown @ SRGB, illuminant="D50")
        assert skcolor.deltaE_ciede2000(lab, meant) < 1


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_gray_patches_look_the_same(gamma: float) -> None:
    """Grays under a gray profile are within ΔE00 1 of the lightness they stand for."""
    skcolor = pytest.importorskip("skimage.color")
    for level in (32, 80, 128, 200, 250):
        result = decoded(Image.new("L", (4, 4), level), "PNG", gray_profile(gamma))
        meant = skcolor.xyz2lab((level / 255) ** gamma * D50, illuminant="D50")
        shown = ((result[0, 0] / 255 + 0.055) / 1.055) ** 2.4
        lab = skcolor.xyz2lab(shown @ SRGB, illuminant="D50")
        assert skcolor.deltaE_ciede2000(lab, meant) < 1


def test_swapped_primaries_swap_the_picture() -> None:
    """A profile that calls red green turns red pixels green: the profile decides."""
    swapped = rgb_profile(SRGB[[1, 0, 2]])
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 100}), ("TIFF", {}), ("AVIF", {})):
        result = decoded(Image.new("RGB", (8, 8), (255, 0, 0)), kind, swapped, **options)
        assert np.abs(result - (0, 255, 0)).max() <= 6


def test_srgb_profile_changes_nothing() -> None:
    """The profile most images carry is the identity: a copy without it has the same pixels."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert (decoded(Image.fromarray(pixels), "PNG", profile) == pixels).all()


def test_a_profile_is_srgb_by_its_numbers_not_its_name() -> None:
    """One with sRGB's primaries and another curve is converted, whatever it is called."""
    dark = decoded(Image.new("RGB", (4, 4), (128, 64, 32)), "PNG", rgb_profile(SRGB, 1.8))
    expected = to_srgb((np.array((128, 64, 32)) / 255) ** 1.8 @ SRGB)
    assert np.abs(dark - expected).max() <= 1
    assert np.abs(dark[0, 0] - (128, 64, 32)).max() >= 5


def test_alpha_is_kept_through_the_profile() -> None:
    """The profile applies to color alone; alpha and the sRGB background stay as they are."""
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((255, 0, 0, 0), (4, 0, 8, 8))
    result = decoded(image, "PNG", rgb_profile(SRGB[[1, 0, 2]]))
    assert np.abs(result[:, :4] - (0, 255, 0)).max() <= 3
    assert (result[:, 4:] == 255).all()


def test_gray_profile_is_used() -> None:
    """Linear gray 128 is as bright as sRGB 188."""
    result = decoded(Image.new("L", (4, 4), 128), "PNG", gray_profile(1.0))
    assert np.abs(result - 188).max() <= 1


def test_gray_pixels_under_an_rgb_profile_are_read_as_rgb() -> None:
    """R = G = B of linear light: again 188."""
    result = decoded(Image.new("L", (4, 4), 128), "PNG", rgb_profile(SRGB, 1.0))
    assert np.abs(result - 188).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile(kind: str) -> None:
    """Inks become the colors that their profile measured, not 255 minus ink."""
    options = {"quality": 100} if kind == "JPEG" else {}
    for ink, lab in (
        ((0, 0, 0, 0), (100.0, 0.0, 0.0)),
        ((0, 0, 0, 255), (0.0, 0.0, 0.0)),
        ((255, 0, 0, 0), CYAN_LAB),
    ):
        result = decoded(Image.new("CMYK", (8, 8), ink), kind, cmyk_profile(), **options)
        assert np.abs(result[0, 0] - to_srgb(lab_to_xyz(lab))).max() <= 4
    assert np.abs(result[0, 0] - (0, 255, 255)).max() > 30


def test_cmyk_without_profile_is_refused() -> None:
    """Inks without a profile have no color."""
    stream = io.BytesIO()
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(stream, "JPEG")
    with pytest.raises(DataError, match="CMYK without a color profile"):
        decode_image(stream.getvalue(), name="p", background=None)


@pytest.mark.parametrize(
    "profile",
    [
        b"not a profile at all",
        rgb_profile(P3)[:100],
        rgb_profile(P3)[:140] + b"\xff" * 200,
        icc(b"mntr", b"RGB ", b"XYZ ", {b"wtpt": xyz(D50)}),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        gray_profile(2.2),
        cmyk_profile(),
    ],
    ids=["text", "cut", "garbage", "no primaries", "Lab", "gray", "CMYK"],
)
def test_a_broken_or_foreign_profile_is_refused(profile: bytes) -> None:
    """A profile that cannot be read, or is for other pixels, is an error that names the file."""
    with pytest.raises(DataError, match="color profile") as caught:
        decoded(Image.new("RGB", (4, 4), (200, 100, 50)), "PNG", profile)
    assert caught.value.where == "p"
