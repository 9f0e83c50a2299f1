"""One decode of every image for its facts: in parallel, and only if they are not stored."""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from styletune.data.findings import Finding, agree, finding, first_few
from styletune.data.inspection.duplicates import perceptual_hash
from styletune.data.inspection.facts import SMALL_PX, THUMBNAIL_PX, ImageFacts
from styletune.data.inspection.opt_out import opt_out_term
from styletune.data.inspection.quality import measure
from styletune.data.inspection.store import FactsStore, facts_key, get_facts, put_facts
from styletune.data.pixels.decode import flatten, opaque_pixels, read_colors, turn_upright
from styletune.data.pixels.fingerprint import pixel_hash
from styletune.data.pixels.image_file import header_pixels, open_image
from styletune.data.sources.item_bytes import read_item
from styletune.data.sources.items import Item
from styletune.errors import DataError
from styletune.files import file_sha256
from styletune.places import usable_cores
from styletune.progress import progress

# Pixels decoded at once, at up to 16 bytes each; a larger image is decoded alone.
PIXELS_IN_FLIGHT = 64_000_000
# Larger files are read twice, for their hash and their pixels, but never loaded whole.
_WHOLE_FILE_BYTES = 64 << 20
_STORE_EVERY_S = 1.0

Inspected = ImageFacts | Finding


def inspect_image(source: Path | bytes, *, name: str, background: str | None) -> Inspected:
    """Everything about one image, from one decode.

    Args:
        source: a file, or its bytes.
        name: what the finding calls the image.
        background: ``"#rrggbb"`` under transparent pixels; None if none is declared.

    Returns:
        Its facts, or why there are none: a finding ``unreadable-image`` or
        ``undeclared-background``.
    """
    try:
        with open_image(source, name=name) as image:
            kind, mode = image.format or "", image.mode
            opt_out = opt_out_term(image)
            colors = read_colors(image, name=name)
        del image  # a large image leaves no room for another copy
        turned = colors.turn is not None
        colors = turn_upright(colors)
    except DataError as error:
        return finding("unreadable-image", (error.where,), error.message, error.fix)
    except MemoryError:
        fix = "save a smaller version; training never needs this many pixels"
        message = "too large for this machine's memory"
        return finding("unreadable-image", (name,), message, fix)
    try:
        rgb = flatten(colors, background, name=name)
    except DataError as error:
        return finding("undeclared-background", (error.where,), error.message, error.fix)
    pixels = rgb.width * rgb.height
    hidden = 0.0 if colors.alpha is None else 1 - opaque_pixels(colors.alpha) / pixels
    profile = colors.profile
    del colors
    return ImageFacts(
        width=rgb.width,
        height=rgb.height,
        pixel_hash=pixel_hash(rgb),
        format=kind,
        stored_mode=mode,
        profile=profile,
        turned=turned,
        transparent_share=hidden,
        opt_out=opt_out,
        structure=perceptual_hash(rgb),
        small=rgb.resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX).tobytes(),
        thumbnail=_thumbnail(rgb),
        quality=measure(rgb),
    )


def _thumbnail(rgb: Image.Image) -> bytes:
    scale = min(1.0, THUMBNAIL_PX / max(rgb.size))
    size = max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale))
    small = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0) if scale < 1 else rgb
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=80, method=2)
    return stream.getvalue()


def inspect_all(
    items: Sequence[Item],
    *,
    store: FactsStore,
    show_progress: bool,
    workers: int | None = None,
) -> dict[str, Inspected]:
    """``inspect_image`` of every item, on all cores; images whose facts are stored are not decoded.

    At most ``PIXELS_IN_FLIGHT`` are decoded at once, and larger images alone, so memory stays
    below about 2 GiB. Ctrl-C stops after the images that are being decoded; their facts are
    stored.

    Args:
        items: file names are unique.
        store: known facts; new ones are added. Findings are not stored.
        show_progress: draw a progress bar on stderr.
        workers: threads; None for one per core. (Pillow releases the GIL.)

    Returns:
        By file name, in the order of the items: facts, or a finding ``unreadable-image``,
        ``undeclared-background``, ``broken-file`` or ``bad-archive``.
    """
    gate = _Gate(PIXELS_IN_FLIGHT)

    results: dict[str, Inspected] = {}
    new: dict[str, ImageFacts] = {}
    with (
        progress("Reading images", len(items), shown=show_progress) as advance,
        _threads(workers or usable_cores(), gate) as pool,
    ):
        start = store_at = time.monotonic()
        try:
            tasks = {pool.submit(_inspect_item, item, store, gate): item for item in items}
            for task in as_completed(tasks):
                result, new_key = task.result()
                results[tasks[task].file_name] = result
                if new_key and isinstance(result, ImageFacts):
                    new[new_key] = result
                if new and time.monotonic() > store_at:
                    put_facts(store, new)
                    new, store_at = {}, time.monotonic() + _STORE_EVERY_S
                advance(1, f"{len(results) / max(time.monotonic() - start, 1e-3):.3g} images/s")
        finally:
            put_facts(store, new)
    return {item.file_name: results[item.file_name] for item in items}


def _inspect_item(item: Item, store: FactsStore, gate: _Gate) -> tuple[Inspected, str]:
    """Facts or a finding, and the key to store new facts under; "" for known ones."""
    try:
        source, file_hash = _read(item)
        key = facts_key(file_hash, item.background)
        known = get_facts(store, key)
        if known is not None:
            return known, ""
        with gate.passed(header_pixels(source)):
            return inspect_image(source, name=item.file_name, background=item.background), key
    except DataError as error:
        code = "bad-archive" if item.member else "broken-file"
        return finding(code, (item.file_name,), error.message, error.fix), ""
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        fix = "restore the file, or remove it from the set"
        return finding("broken-file", (item.file_name,), message, fix), ""


def _read(item: Item) -> tuple[Path | bytes, str]:
    """An item's bytes, or its path if the file is large, and their SHA-256."""
    source = read_item(item.path, item.member)
    if isinstance(source, Path):
        if source.stat().st_size > _WHOLE_FILE_BYTES:
            return source, file_sha256(source)
        source = source.read_bytes()
    return source, hashlib.sha256(source).hexdigest()


@dataclass(slots=True)
class _Gate:
    """Lets threads in while their pixels fit; once ``stopped``, refuses them all."""

    room: int
    taken: int = 0
    stopped: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    @contextlib.contextmanager
    def passed(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self.room)
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or self.taken + pixels <= self.room)
            if self.stopped:
                raise DataError("was not read: interrupted")
            self.taken += pixels
        try:
            yield
        finally:
            with self.changed:
                self.taken -= pixels
                self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


@contextlib.contextmanager
def _threads(workers: int, gate: _Gate) -> Iterator[ThreadPoolExecutor]:
    """A pool that an interrupt does not wait for."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="inspect")
    try:
        yield pool
    except BaseException:
        gate.stop()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def unusable_findings(inspected: Mapping[str, Inspected]) -> list[Finding]:
    """One finding for all images with the same problem and fix, and one if no image is left."""
    problems: dict[tuple[str, str], dict[str, str]] = {}
    for result in inspected.values():
        if isinstance(result, Finding):
            same = problems.setdefault((result.code, result.fix), {})
            same[result.files[0]] = result.message
    findings, total = [], len(inspected)
    for (code, fix), details in problems.items():
        message = f"{len(details)} of {total} images cannot be used: {first_few(details)}"
        findings.append(finding(code, tuple(details), message, fix))
    if total and sum(map(len, problems.values())) == total:
        fix = "replace them with readable images, or use another source"
        findings.append(finding("no-images", (), "none of the images can be used", fix))
    return findings


def decoding_findings(facts: Mapping[str, ImageFacts]) -> list[Finding]:
    """What the decoder changed to get upright sRGB: profiles, rotations, transparency."""
    profiles = Counter(f.profile for f in facts.values() if f.profile)
    listed = ", ".join(f"{profile} ({n})" for profile, n in profiles.most_common(5))
    changes = (
        (
            "converted-color",
            [n for n, f in facts.items() if f.profile],
            f"are converted using their color profile: {listed}",
        ),
        ("turned", [n for n, f in facts.items() if f.turned], "are rotated upright by their Exif"),
        (
            "composited",
            [n for n, f in facts.items() if f.transparent_share > 0],
            "have transparent pixels, which are placed on the background",
        ),
    )
    return [
        finding(
            code,
            files,
            f"{len(files)} of {len(facts)} images {agree(len(files), change)}",
            "nothing to do",
        )
        for code, files, change in changes
        if files
    ]
