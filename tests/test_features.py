"""Features are computed once, and are the same bytes whatever they are computed with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from styletune.data.inspection.store import close_store, open_facts
from styletune.encoders.clip import ClipEncoder, encode_images, load_clip
from styletune.job.features import ToEncode, picture_features, picture_of_file
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
    first = picture_features(encoder, pictures, store, "first")
    close_store(store)
    assert np.abs(first - encode_images(encoder, files, show_progress=False)).max() < 1e-7

    def forbidden() -> Image.Image:
        raise AssertionError("it is known")

    store = open_facts(tmp_path / "facts.sqlite")
    copy = tmp_path / "another name.png"
    copy.write_bytes(files[3].read_bytes())
    known = [ToEncode(picture_of_file(file).key, forbidden) for file in [copy, *files]]
    again = picture_features(encoder, known, store, "again")
    assert again.tobytes() == np.concatenate([first[3:4], first]).tobytes()
    changed = Image.open(files[0]).convert("RGB")
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(copy)
    with pytest.raises(AssertionError, match="it is known"):
        picture_features(encoder, [ToEncode(picture_of_file(copy).key, forbidden)], store, "new")
    other = ClipEncoder(
        encoder.id, "0" * 12, encoder.model, encoder.preprocess, encoder.tokenize, "cpu"
    )
    with pytest.raises(AssertionError, match="it is known"):
        picture_features(other, known[:1], store, "other preprocessing")
    close_store(store)
