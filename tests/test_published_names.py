"""Nothing in a published version names a folder of the machine that made it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from job_parts import CARD, Answer, one_thread, write_brand
from styletune.mini import BASE_DIR, OPEN_CLIP_DIR

Command = Callable[..., Answer]

# Folders and files that a brand team would rather not see in public.
TELLING = (
    "acme-rebrand-2027",
    "clients-of-ada",
    "shoot-in-lisbon",
    "masks-of-ada",
    "bases-of-ada",
    "encoders-of-ada",
    "suites-of-ada",
    "starts-of-ada",
)


def telling_project(folder: Path) -> Path:
    """The brand's project, everything in a folder with a name that tells; returns the recipe."""
    root = folder / "acme-rebrand-2027"
    recipe = write_brand(root)
    images = root / "clients-of-ada" / "shoot-in-lisbon"
    images.parent.mkdir()
    (root / "brand").rename(images)
    (images / "dataset.toml").write_text(CARD.replace('name = "Small"\n', ""))
    masks = root / "clients-of-ada" / "masks-of-ada"
    masks.mkdir()
    for file in images.glob("*.png"):
        with Image.open(file) as image:
            Image.new("L", image.size, 255).save(masks / file.name)
    shutil.copytree(BASE_DIR, root / "bases-of-ada" / "tiny")
    shutil.copytree(OPEN_CLIP_DIR, root / "encoders-of-ada" / "clip")
    (root / "suites-of-ada").mkdir()
    suite = (root / "suite.toml").read_text().replace("steps = 8", "steps = 2")
    suite += '[encoder]\nname = "local-dir:../encoders-of-ada/clip"\n'
    (root / "suites-of-ada" / "suite.toml").write_text(suite)
    (root / "suite.toml").unlink()
    text = recipe.read_text()
    text = text.replace('path = "brand"', 'path = "clients-of-ada/shoot-in-lisbon"')
    text = text.replace("[adapter]", '[base]\nmodel = "bases-of-ada/tiny"\n[adapter]')
    text = text.replace('suite = "suite.toml"', 'suite = "suites-of-ada/suite.toml"')
    text = text.replace("steps = 40", "steps = 2").replace("checkpoint_every = 20\n", "")
    text = re.sub(r"\[preview\]\n.*\n.*\n", "", text)
    recipe.write_text(text)
    return recipe


def inner_contents(name: str, content: bytes) -> Iterator[bytes]:
    """A file's bytes, a picture's texts without compression, and the pictures in a page."""
    yield content
    if name.endswith(".png"):
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            for key, value in image.info.items():
                yield f"{key}={value}".encode()
    if name.endswith(".html"):
        for _, data in re.findall(r"data:([\w/+-]+);base64,([A-Za-z0-9+/=]+)", content.decode()):
            yield base64.b64decode(data)


def test_no_published_byte_names_a_folder(styletune: Command, tmp_path: Path) -> None:
    """All files of a version made in folders with telling names, on a copied base and encoder."""
    from styletune.api import _prepare, load_recipe
    from styletune.job.publish import package

    recipe = telling_project(tmp_path)
    runs = tmp_path / "acme-rebrand-2027" / "runs"
    with one_thread():
        first = styletune("train", recipe, "--runs-dir", runs, "--json")
        assert first.code == 0, first.err
        start = recipe.parent / "starts-of-ada" / "first.safetensors"
        start.parent.mkdir()
        run_dir = Path(first.json["run_dir"])
        shutil.copy(run_dir / "checkpoints/step-000002/adapter.safetensors", start)
        options = (
            "adapter.start_from=starts-of-ada/first.safetensors",
            "data.mask=folder",
            "data.mask_path=clients-of-ada/masks-of-ada",
        )
        sets = [word for option in options for word in ("--set", option)]
        trained = styletune("train", recipe, "--runs-dir", runs, *sets, "--json")
        assert trained.code == 0, trained.err
        scored = styletune("score", recipe, "--runs-dir", runs, *sets, "--json")
        assert scored.code in (0, 1), scored.err
        job = _prepare(load_recipe(recipe, options), runs, None)
        from styletune.runs.summary import read_summary

        packed = package(job, read_summary(job.run))
    assert len(packed.files) > 10
    assert packed.release.base.model == "tiny"
    for name, content in packed.files.items():
        for inner in inner_contents(name, content):
            named = [word for word in (*TELLING, str(tmp_path)) if word.encode() in inner]
            assert named == [], f"{name} names {named}"
    public = packed.files["provenance.json"].decode()
    assert "start_from" in public
    assert "first.safetensors" in public
