"""Features are computed once, and are the same bytes whatever they are computed with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from styletune.data.inspection.duplicates import perceptual_hash
from styletune.data.inspection.features import ToEncode
from styletune.data.inspection.store import close_store, open_facts
from styletune.encoders.clip import ClipEncoder, encode_images, load_clip
from styletune.job.features import picture_of_file, picture_views
from world import NATURAL, SCENES, View, render


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return load_clip("mini", Path(), "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nineteen images: two batches and a rest."""
    folder = tmp_path_factory.mktemp("images")
    written = []
    for i in range(19):
        view = View(list(SCENES)[i % len(SCENES)], "noon", (), i)
        written.append(folder / f"{i}.png")
        Image.fromarray(render(view, NATURAL)).save(written[-1])
    return written


def test_company_changes_no_bit(encoder: ClipEncoder, files: list[Path]) -> None:
    """Alone, in another order or in another batch: the same bytes."""
    together = encode_images(encoder, files, show_progress=False)
    backwards = encode_images(encoder, files[::-1], show_progress=False)[::-1]
    alone = encode_images(encoder, files[17:18], show_progress=False)
    assert together.tobytes() == np.ascontiguousarray(backwards).tobytes()
    assert together[17].tobytes() == alone[0].tobytes()


def test_known_features_are_not_computed_again(
    encoder: ClipEncoder, files: list[Path], tmp_path: Path
) -> None:
    """Kept by pixels: a renamed copy is known, a changed image is not; a new process has them."""
    store = open_facts(tmp_path / "facts.sqlite")
    pictures = [picture_of_file(file) for file in files]
    first = picture_views(encoder, pictures, store, "first")
    close_store(store)
    computed = encode_images(encoder, files, show_progress=False)
    assert np.abs(first.features - computed).max() < 1e-7
    assert set(np.unique(first.structure)) == {-1.0, 1.0}
    bits = [perceptual_hash(Image.open(file)) for file in files[:2]]
    apart = (first.structure[0] != first.structure[1]).sum()
    assert apart == (bits[0] ^ bits[1]).bit_count()

    def forbidden() -> Image.Image:
        raise AssertionError("it is known")

    store = open_facts(tmp_path / "facts.sqlite")
    copy = tmp_path / "another name.png"
    copy.write_bytes(files[3].read_bytes())
    known = [ToEncode(picture_of_file(file).key, forbidden) for file in [copy, *files]]
    again = picture_views(encoder, known, store, "again")
    for mine, kept in ((again.features, first.features), (again.structure, first.structure)):
        assert mine.tobytes() == np.concatenate([kept[3:4], kept]).tobytes()
    changed = Image.open(files[0]).convert("RGB")
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(copy)
    with pytest.raises(AssertionError, match="it is known"):
        picture_views(encoder, [ToEncode(picture_of_file(copy).key, forbidden)], store, "new")
    other = ClipEncoder(
        encoder.id, "0" * 12, encoder.model, encoder.preprocess, encoder.tokenize, "cpu"
    )
    with pytest.raises(AssertionError, match="it is known"):
        picture_views(other, known[:1], store, "other preprocessing")
    close_store(store)
