"""One decode gives every fact; many in parallel; nothing is decoded twice."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from PIL import Image

from styletune.data.findings import CODES, Finding
from styletune.data.inspection import inspect
from styletune.data.inspection.duplicates import perceptual_hash
from styletune.data.inspection.facts import ImageFacts
from styletune.data.inspection.inspect import inspect_all, inspect_image
from styletune.data.inspection.quality import measure
from styletune.data.inspection.store import FactsStore, close_store, open_facts
from styletune.data.pixels.decode import decode_image
from styletune.data.pixels.fingerprint import pixel_hash
from styletune.data.sources.items import Item
from world import random_view, render

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" '
    'plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"/></rdf:RDF></x:xmpmeta>'
)


def world(seed: int) -> Image.Image:
    return Image.fromarray(render(random_view(np.random.default_rng(seed))))


def items_of(folder: Path, background: str | None = None) -> list[Item]:
    return [
        Item(file.name, str(file), "", "a picture", "set", background=background)
        for file in sorted(folder.iterdir())
    ]


def inspected(items: list[Item], store: FactsStore) -> dict[str, ImageFacts | Finding]:
    return inspect_all(items, store=store, show_progress=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve renders of the world."""
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(12):
        world(seed).save(images / f"{seed:02}.png")
    return images


def test_the_facts_are_those_of_the_decoded_image(tmp_path: Path) -> None:
    """Every fact agrees with its own function on the image that training will see."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "photo.jpg"
    world(1).resize((96, 64)).save(file, exif=exif, xmp=XMP.encode())
    facts = inspect_image(file, name="photo.jpg", background=None)
    assert isinstance(facts, ImageFacts)
    image = decode_image(file, name="photo.jpg", background=None)
    assert (facts.width, facts.height) == image.size == (64, 96)
    assert facts.pixel_hash == pixel_hash(image)
    assert facts.structure == perceptual_hash(image)
    assert facts.quality == measure(image)
    assert (facts.format, facts.stored_mode, facts.turned) == ("JPEG", "RGB", True)
    assert facts.opt_out == "DMI-PROHIBITED"
    assert facts.transparent_share == 0
    assert facts.profile == ""


def test_the_small_copy_is_the_area_average() -> None:
    """64×64 means of areas, row by row; and a WebP of at most 256 pixels with the same look."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 512, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    facts = inspect_image(stream.getvalue(), name="x", background=None)
    assert isinstance(facts, ImageFacts)
    small = np.frombuffer(facts.small, np.uint8).reshape(64, 64, 3)
    expected = pixels.reshape(64, 4, 64, 8, 3).mean((1, 3))
    assert np.abs(small - expected).max() <= 1
    with Image.open(io.BytesIO(facts.thumbnail)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (256, 128))
        assert np.abs(np.asarray(thumbnail.convert("RGB")).mean() - pixels.mean()) < 3


def test_transparency_is_measured_and_needs_a_background() -> None:
    """A quarter of the pixels is see-through: a share with a background, a finding without."""
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 4))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    facts = inspect_image(stream.getvalue(), name="x", background="#00ff00")
    assert isinstance(facts, ImageFacts)
    assert facts.transparent_share == 0.25
    assert tuple(facts.small[:3]) == (0, 255, 0)
    finding = inspect_image(stream.getvalue(), name="logo.png", background=None)
    assert isinstance(finding, Finding)
    assert finding.code == "undeclared-background"
    assert finding.files == ("logo.png",)
    assert "16 of 64" in finding.message


def test_all_faults_are_found_at_once(folder: Path, tmp_path: Path) -> None:
    """Good and bad files together: facts for these, an error for each of those, in order."""
    (folder / "03.png").write_bytes(b"no image")
    (folder / "05.png").unlink()
    (folder / "05.png").mkdir()
    Image.new("LA", (8, 8)).save(folder / "07.png")
    items = items_of(folder)
    items.append(Item("gone.png", str(tmp_path / "gone.png"), "", None, "set"))
    found = inspected(items, open_facts(None))
    assert list(found) == [item.file_name for item in items]
    codes = {name: f.code for name, f in found.items() if isinstance(f, Finding)}
    assert codes == {
        "03.png": "unreadable-image",
        "05.png": "broken-file",
        "07.png": "undeclared-background",
        "gone.png": "broken-file",
    }
    for name, finding in found.items():
        if isinstance(finding, Finding):
            assert finding.files == (name,)
            assert finding.severity == CODES[finding.code][0] == "error"
            assert finding.message
            assert finding.fix


def test_backgrounds_are_an_items_own(tmp_path: Path) -> None:
    """One transparent file under two backgrounds is two pictures."""
    file = tmp_path / "logo.png"
    Image.new("RGBA", (8, 8)).save(file)
    items = [
        Item(name, str(file), "", None, "set", background=color)
        for name, color in (("a", "#ff0000"), ("b", "#0000ff"))
    ]
    store = open_facts(None)
    own = inspected(items, store)
    assert [bytes(f.small[:3]) for f in own.values() if isinstance(f, ImageFacts)] == [
        b"\xff\0\0",
        b"\0\0\xff",
    ]


def test_archive_members_are_inspected_like_files(folder: Path, tmp_path: Path) -> None:
    """The same images in a zip have the same facts, and are known from the folder."""
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(folder.iterdir()):
            packed.write(file, file.name)
    members = [Item(f.name, str(archive), f.name, None, "set") for f in sorted(folder.iterdir())]
    store = open_facts(tmp_path / "facts.sqlite")
    assert inspected(items_of(folder), store) == inspected(members, store)
    assert (store.hits, store.misses) == (12, 12)


def test_a_second_check_decodes_nothing(folder: Path, tmp_path: Path) -> None:
    """Twelve misses, then in a new process's store twelve hits; one edited image is one miss."""
    place = tmp_path / "cache" / "facts.sqlite"
    first = open_facts(place)
    facts = inspected(items_of(folder), first)
    assert (first.hits, first.misses) == (0, 12)
    close_store(first)

    second = open_facts(place)
    assert inspected(items_of(folder), second) == facts
    assert (second.hits, second.misses) == (12, 0)
    (folder / "04.png").rename(folder / "renamed.png")
    world(99).save(folder / "04.png")
    third = inspected(items_of(folder), second)
    assert (second.hits, second.misses) == (24, 1)
    assert third["renamed.png"] == facts["04.png"]
    assert third["04.png"] != facts["04.png"]


def test_known_images_come_quickly(tmp_path: Path) -> None:
    """Large photographs are known again in a tenth of the time at most."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(3):
        world(seed).resize((1500, 1500)).save(folder / f"{seed}.jpg", quality=90)
    store = open_facts(tmp_path / "facts.sqlite")
    times = []
    for _ in range(2):
        start = time.process_time()
        inspected(items_of(folder), store)
        times.append(time.process_time() - start)
    assert times[1] < times[0] / 10


def test_more_pixels_than_fit_wait_and_do_not_block(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one small image at a time, six threads with giants among them all finish."""
    monkeypatch.setattr(inspect, "PIXELS_IN_FLIGHT", 128 * 128 + 1)
    for number in range(3):
        world(number).resize((400, 400)).save(folder / f"giant {number}.png")
    found = inspect_all(
        items_of(folder),
        store=open_facts(None),
        show_progress=False,
        workers=6,
    )
    assert len(found) == 15
    assert all(isinstance(facts, ImageFacts) for facts in found.values())


@contextlib.contextmanager
def pixels_in_hand(sizes: Mapping[str, int], room: int) -> Iterator[list[int]]:
    """The pixels of all images that are being decoded, at each beginning of one.

    An image of more than the room counts as the whole room.
    """
    lock, inside = threading.Lock(), [0]
    moments: list[int] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code is inspect_image.__code__ and event in ("call", "return"):
            pixels = min(sizes[frame.f_locals["name"]], room)
            with lock:
                inside[0] += pixels if event == "call" else -pixels
                moments.append(inside[0])

    threading.setprofile(watch)
    try:
        yield moments
    finally:
        threading.setprofile(None)


def test_never_more_pixels_at_once_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sizes up to twice the room, in eight threads, what is inside never adds up to more."""
    room, sides = 10_000, (30, 140, 55, 75, 4, 100, 20, 65)
    monkeypatch.setattr(inspect, "PIXELS_IN_FLIGHT", room)
    sizes = {f"{n}.png": sides[n % 8] ** 2 for n in range(80)}
    for n, name in enumerate(sizes):
        world(n).resize((sides[n % 8], sides[n % 8])).save(tmp_path / name)
    with pixels_in_hand(sizes, room) as moments:
        facts = inspect_all(
            items_of(tmp_path), store=open_facts(None), show_progress=False, workers=8
        )
    assert len(facts) == 80
    assert len(moments) == 160
    assert moments[-1] == 0
    assert room == max(moments)
    assert len(set(moments)) > len({0, *(min(s, room) for s in sizes.values())})


CHECK = """
import signal, sys
from pathlib import Path
from styletune.data.inspection.store import open_facts
from styletune.data.inspection.inspect import inspect_all
from styletune.data.sources.items import Item
# A shell starts its background jobs, this test's perhaps, with the interrupt ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
file, store = sys.argv[1:]
items = [Item(str(n), file, "", None, "set", background=f"#{n:06x}") for n in range(3000)]
inspect_all(items, store=open_facts(Path(store)), show_progress=True)
"""


def test_an_interrupt_stops_at_once_and_keeps_what_was_found(tmp_path: Path) -> None:
    """Ctrl-C in the midst of 3,000 images stops after the images in hand; the facts so far stay."""
    file, place = tmp_path / "a.png", tmp_path / "facts.sqlite"
    world(0).save(file)
    child = subprocess.Popen(
        [sys.executable, "-c", CHECK, str(file), str(place)],
        stderr=subprocess.PIPE,
        text=True,
    )
    store = open_facts(place)
    count = "SELECT count(*) FROM facts"
    while store.connection.execute(count).fetchone() == (0,):
        assert child.poll() is None
        time.sleep(0.1)
    (before,) = store.connection.execute(count).fetchone()
    os.kill(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=100)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in said
    (kept,) = store.connection.execute(count).fetchone()
    assert 0 < before <= kept < before + 300
