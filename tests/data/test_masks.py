"""Masks: from alpha or a folder, cut as their images, averaged to latent cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import world
from data_parts import load_folder
from styletune.data.check import check_data
from styletune.data.checked import Expected, LoadedData
from styletune.data.entries import entries
from styletune.data.inspection.store import close_store, open_facts
from styletune.data.pixels.buckets import plan_crop
from styletune.data.pixels.crop import crop_mask, crop_pixels
from styletune.data.read import read_entry
from styletune.errors import DataError, NotFound
from styletune.models.latents import latent_mask
from styletune.recipe.data_sections import DataSection


def scene(seed: int, size: tuple[int, int] = (128, 128)) -> Image.Image:
    view = world.random_view(np.random.default_rng([seed, 8]))
    return Image.fromarray(world.render(view)).resize(size)


def half_white(size: tuple[int, int]) -> Image.Image:
    """White on the left half."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def project(root: Path, count: int = 3) -> tuple[Path, Path]:
    """A folder of images, and one of masks beside it."""
    images, masks = root / "images", root / "masks"
    for folder in (images, masks):
        folder.mkdir(parents=True)
    for i in range(count):
        scene(i).save(images / f"{i}.png")
        half_white((128, 128)).save(masks / f"{i}.png")
    return images, masks


def load(images: Path, masks: Path | None, **changes: object) -> LoadedData:
    settings: dict[str, object] = {
        "default_caption": "x",
        "holdout": 0.0,
        "resolution": 128,
        "mask": "alpha" if masks is None else "folder",
        "mask_path": None if masks is None else str(masks),
    }
    return load_folder(images, **{**settings, **changes})


def test_cells_are_area_means() -> None:
    """A cell weighs the share of its 64 pixels that is white, exactly."""
    mask = np.zeros((16, 24), np.float32)
    mask[:, :8] = 1
    mask[0:4, 8:16] = 1
    mask[15, 23] = 1
    assert latent_mask(mask, 8).tolist() == [[1, 0.5, 0], [1, 0, 1 / 64]]
    assert latent_mask(mask, 8).dtype == np.float32


def test_masks_are_cut_as_images_are() -> None:
    """After scaling, trimming and mirroring, a mask still lies on what it covers."""
    picture = np.zeros((300, 500, 3), np.uint8)
    picture[60:200, 90:330] = 255
    image, plan = Image.fromarray(picture), plan_crop(300, 500, (96, 128))
    for flip in (False, True):
        crop = crop_pixels(image, plan, flip=flip, mask=None)
        mask = crop_mask(Image.fromarray(picture[..., 0]), plan, flip=flip)
        assert mask.shape == (96, 128)
        off = np.abs(crop.pixels[..., 0] / 255 - mask)
        assert off.mean() < 0.01


def test_a_folder_of_masks_is_read(tmp_path: Path) -> None:
    """Each entry has its mask, mirrored with it, whatever format the mask has."""
    images, masks = project(tmp_path)
    (masks / "1.png").unlink()
    Image.fromarray(np.asarray(half_white((128, 128))).astype(np.uint16) * 257).save(
        masks / "1.tif"
    )
    found = entries(load(images, masks, flip=True))
    assert [(e.row.file_name, e.flip) for e in found] == [
        (f"{i}.png", flip) for i in range(3) for flip in (False, True)
    ]
    for entry in found:
        mask = read_entry(entry).mask
        assert mask is not None
        expected = np.zeros((128, 128), np.float32)
        expected[:, :64] = 1
        assert (mask == (expected[:, ::-1] if entry.flip else expected)).all()


def test_alpha_is_a_mask(tmp_path: Path) -> None:
    """Transparent images count where they are opaque, upright; opaque ones everywhere."""
    scene(0).save(tmp_path / "a.png")
    glass = scene(1, (128, 96))
    alpha = Image.new("L", glass.size)
    alpha.paste(255, (0, 0, 128, 48))
    glass.putalpha(alpha)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    glass.save(tmp_path / "b.png", exif=exif)
    data = load(tmp_path, None, background="#ffffff", resolution=96)
    opaque, transparent = (read_entry(entry) for entry in entries(data))
    assert opaque.mask is None
    assert transparent.mask is not None
    assert transparent.mask[:48].max() == 0
    assert transparent.mask[48:].min() == 1
    assert (transparent.pixels[:48] == 255).all()
    bare = load(tmp_path, None, mask="none", background="#ffffff", resolution=96)
    assert bare.fingerprint != data.fingerprint


def test_masks_are_a_part_of_the_fingerprint(tmp_path: Path) -> None:
    """Another mask is another data set; the same masks are the same one."""
    images, masks = project(tmp_path)
    before, bare = load(images, masks), load(images, None)
    assert load(images, masks).fingerprint == before.fingerprint != bare.fingerprint
    changed = half_white((128, 128))
    changed.putpixel((127, 127), 1)
    changed.save(masks / "2.png")
    assert load(images, masks).fingerprint != before.fingerprint
    with pytest.raises(DataError, match=r"the mask changed .*") as caught:
        read_entry(entries(before)[2])
    assert caught.value.where == "2.png"


def test_missing_and_extra_masks_are_all_named(tmp_path: Path) -> None:
    """One error lists images without masks, masks without images, and ambiguous ones."""
    images, masks = project(tmp_path)
    (masks / "0.png").rename(masks / "zero.png")
    half_white((128, 128)).save(masks / "1.bmp")
    with pytest.raises(DataError) as caught:
        load(images, masks)
    message = caught.value.message
    assert "images without a mask: 0.png" in message
    assert "masks without an image: zero.png" in message
    assert "several masks with one name: 1.bmp, 1.png" in message


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (Image.new("L", (64, 128), 255), "the mask is 64×128 and the image 128×128 pixels"),
        (Image.new("L", (128, 128), 0), "the whole mask is black"),
        (Image.new("RGB", (128, 128), (255, 0, 0)), "the mask is colored"),
        (Image.new("LA", (128, 128), (255, 9)), "transparent"),
    ],
)
def test_unusable_masks_are_named(tmp_path: Path, mask: Image.Image, says: str) -> None:
    """A mask of another size, all black, colored or transparent stops the run by name."""
    images, masks = project(tmp_path)
    mask.save(masks / "1.png")
    with pytest.raises(DataError, match="1 of 3 images has no usable mask") as caught:
        load(images, masks)
    assert says in caught.value.message
    assert "1.png (" in caught.value.message


def test_a_mask_outside_the_crop_is_refused(tmp_path: Path) -> None:
    """White that the crop trims away leaves nothing to learn, and that is said."""
    images, masks = project(tmp_path)
    scene(1, (400, 128)).save(images / "1.png")
    mask = Image.new("L", (400, 128))
    mask.paste(255, (0, 0, 20, 128))
    mask.save(masks / "1.png")
    with pytest.raises(DataError, match=r"1\.png \(the whole crop of the mask is black"):
        load(images, masks)


def test_a_wrong_mask_folder_is_named(tmp_path: Path) -> None:
    """A folder that is missing, or would be taken for images, is refused."""
    images, masks = project(tmp_path)
    with pytest.raises(NotFound, match="no such folder of masks"):
        load(images, tmp_path / "nothing")
    masks.rename(images / "masks")
    with pytest.raises(DataError, match="in the folder of the images"):
        load(images, images / "masks")


def test_a_known_mask_is_not_decoded_again(tmp_path: Path) -> None:
    """What the store says of the same files is believed; a changed mask is read anew."""
    images, masks = project(tmp_path)
    for i in range(3):
        half_white((128, 128)).save(masks / f"{i}.png")
    section = DataSection(
        path=str(images), mask="folder", mask_path=str(masks), default_caption="x", buckets=False
    )
    store = open_facts(tmp_path / "facts.sqlite")
    try:
        first = check_data(section, Path(), Expected(128), store=store)
        assert len(set(first.masks.hashes.values())) == 1
        store.connection.execute("UPDATE masks SET hash = 'known'")
        again = check_data(section, Path(), Expected(128), store=store)
        assert set(again.masks.hashes.values()) == {"known"}
        Image.new("L", (128, 128), 128).save(masks / "2.png")
        changed = check_data(section, Path(), Expected(128), store=store).masks.hashes
        assert changed["0.png"] == changed["1.png"] == "known"
        assert len(changed["2.png"]) == 64
    finally:
        close_store(store)
