"""Image sets that nobody here made: brand wallpapers and large photographs.

They lie in ``shared/data`` beside the repository, and are no part of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from data_parts import check_folder, load_folder
from styletune.colors import color_bytes
from styletune.data.checked import LoadedData
from styletune.data.inspection.duplicates import clusters
from styletune.data.pixels.decode import decode_image
from styletune.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
WALLPAPERS, PHOTOS = SHARED / "dracula-wallpapers", SHARED / "pop-os-photos"

pytestmark = pytest.mark.skipif(
    not (WALLPAPERS.is_dir() and PHOTOS.is_dir()), reason="no shared/data beside the repository"
)


def family(name: str) -> str:
    """The motif, by the names the artists gave."""
    name = Path(name).name
    if name == "dracula-portolans-ff79c6.png":  # byte-identical to a cat, whatever its name
        return "dracula-cat"
    if name.startswith("dracula-") and name != "dracula_qtile.png":
        return name.rsplit("-", 1)[0]
    if name == "base-vertical.png" or name.endswith(".jpg"):
        return name
    return "android" if name.startswith("android-") else "moon"


def load(folder: Path, holdout: float) -> LoadedData:
    return load_folder(folder, default_caption="wallpaper", holdout=holdout, resolution=1024)


def link(folder: Path, files: list[Path]) -> Path:
    (folder / "dataset.toml").write_text('background = "#282a36"')
    for file in files:
        (folder / file.name).symlink_to(file)
    return folder


def check_families(data: LoadedData) -> None:
    """Groups are the motifs exactly, and none is on both sides."""
    side_of = {row.file_name: row.split for row in data.rows}
    groups = clusters(list(side_of), data.groups)
    assert all(len({family(name) for name in group}) == 1 for group in groups)
    assert len(groups) == len({family(name) for name in side_of})
    assert all(len({side_of[name] for name in group}) == 1 for group in groups)


def test_color_variants_are_families(tmp_path: Path) -> None:
    """Four motifs in up to four colors, moons with other logos, and an identical pair."""
    moons = ["arch.png", "base.png", "slackware.png", "base-vertical.png"]
    files = [WALLPAPERS / "first-collection" / name for name in moons]
    files += sorted((WALLPAPERS / "second-collection").rglob("*.png"))
    data = load(link(tmp_path, files), 0.2)
    check_families(data)
    assert [g.files for g in data.groups if g.kind == "exact"] == [
        ("dracula-cat-6272a4.png", "dracula-portolans-ff79c6.png")
    ]


def test_photographs_have_no_false_pair() -> None:
    """Fifteen photographs load untouched, each its own family."""
    data = load(PHOTOS, 0.2)
    assert len(data.rows) == 15
    assert data.groups == []
    assert sum(row.split == "holdout" for row in data.rows) == 3


@pytest.mark.slow
def test_the_whole_brand_set(tmp_path: Path) -> None:
    """All 53 wallpapers: refused without a background, grouped by motif with one."""
    files = sorted(WALLPAPERS.rglob("*.png"))
    data = load(link(tmp_path, files), 0.2)
    check_families(data)
    assert len(data.rows) == len(files)
    (tmp_path / "dataset.toml").unlink()
    with pytest.raises(DataError, match="but no background is declared"):
        load(tmp_path, 0.2)


PUBLISHED = (
    "#282a36",
    "#44475a",
    "#f8f8f2",
    "#6272a4",
    "#8be9fd",
    "#50fa7b",
    "#ffb86c",
    "#ff79c6",
    "#bd93f9",
    "#ff5555",
    "#f1fa8c",
)


def to_lab(colors: tuple[str, ...]) -> np.ndarray:
    return np.asarray(rgb2lab(np.array([color_bytes(color) for color in colors]) / 255.0))


@pytest.mark.slow
def test_the_palette_of_the_brand_set_is_the_published_one(tmp_path: Path) -> None:
    """Every published color on more than 0.5 % of the pixels comes out within ΔE00 5."""
    files = sorted(WALLPAPERS.rglob("*.png"))
    checked = check_folder(
        link(tmp_path, files), default_caption="x", resolution=1024, buckets=True
    )
    share = np.zeros(len(PUBLISHED))
    for file in files:
        image = decode_image(file, name=file.name, background="#282a36")
        pixels = np.asarray(image.resize((image.width // 3, image.height // 3), 0)).reshape(-1, 3)
        colors, counts = np.unique(pixels, axis=0, return_counts=True)
        lab = rgb2lab(colors / 255.0)
        near = np.stack([deltaE_ciede2000(lab, c[None]) <= 5 for c in to_lab(PUBLISHED)])
        share += (near * counts).sum(1) / counts.sum() / len(files)
    used = [color for color, part in zip(PUBLISHED, share, strict=True) if part > 0.005]
    assert len(used) >= 4
    found = to_lab(tuple(color for color, _ in checked.palette.extracted))
    for color, lab in zip(used, to_lab(tuple(used)), strict=True):
        assert deltaE_ciede2000(found, lab[None]).min() <= 5, color
