"""One decode of every image: what it tells, in parallel, and only if it is not known already."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from styletune.data.findings import Finding
from styletune.data.inspection.duplicates import perceptual_hash
from styletune.data.inspection.facts import SMALL_PX, THUMBNAIL_PX, ImageFacts
from styletune.data.inspection.quality import measure
from styletune.data.inspection.store import FactsStore, facts_key, get_facts, put_facts
from styletune.data.pixels.decode import flatten, opaque_pixels, read_colors, turn_upright
from styletune.data.pixels.fingerprint import pixel_hash
from styletune.data.pixels.image_file import header_pixels, open_image
from styletune.data.rights import opt_out_term
from styletune.data.sources.contents import read_item
from styletune.data.sources.items import Item
from styletune.errors import DataError
from styletune.files import file_sha256
from styletune.progress import progress

# Pixels decoded at once, at up to 16 bytes each; a larger image is decoded alone.
PIXELS_IN_FLIGHT = 64_000_000
# Larger files are read twice, for their hash and their pixels, but never lie in memory whole.
_WHOLE_FILE_BYTES = 64 << 20
_KEEP_EVERY_S = 1.0

_Result = ImageFacts | Finding


def inspect_image(source: Path | bytes, *, name: str, background: str | None) -> _Result:
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
        del image  # of a large image there is no room for one copy more than needed
        turned = colors.turn is not None
        colors = turn_upright(colors)
    except DataError as error:
        return _finding("unreadable-image", error)
    except MemoryError:
        fix = "save a smaller version; training never needs this many pixels"
        what = "too large for the memory of this machine"
        return Finding("unreadable-image", (name,), what, fix, "error")
    try:
        rgb = flatten(colors, background, name=name)
    except DataError as error:
        return _finding("undeclared-background", error)
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


def _finding(code: str, error: DataError) -> Finding:
    return Finding(code, (error.where,), error.message, error.fix, "error")


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
) -> dict[str, _Result]:
    """``inspect_image`` of every item, on all cores; those that the store knows are not decoded.

    At most ``PIXELS_IN_FLIGHT`` are decoded at once, and an image of more alone, so memory stays
    below about 2 GiB. Ctrl-C stops after the images that are being decoded; what was found out
    until then is kept.

    Args:
        items: file names are unique.
        store: what is known already; new facts are put there. Findings are not kept.
        show_progress: draw a progress bar on stderr.
        workers: threads; None for one a core. (Pillow works outside Python's lock.)

    Returns:
        By file name, in the order of the items: facts, or a finding ``unreadable-image``,
        ``undeclared-background``, ``broken-file`` or ``bad-archive``.
    """
    gate = _Gate(PIXELS_IN_FLIGHT)

    def one(item: Item) -> tuple[str, str, _Result, bool]:
        return (item.file_name, *_inspect_item(item, store, gate))

    found: dict[str, _Result] = {}
    new: dict[str, ImageFacts] = {}
    with (
        progress("Reading images", len(items), shown=show_progress) as advance,
        _threads(workers or _cores(), gate) as pool,
    ):
        start = keep_at = time.monotonic()
        try:
            for task in as_completed([pool.submit(one, item) for item in items]):
                name, key, found[name], known = task.result()
                if key and not known and isinstance(result := found[name], ImageFacts):
                    new[key] = result
                if new and time.monotonic() > keep_at:
                    put_facts(store, new)
                    new, keep_at = {}, time.monotonic() + _KEEP_EVERY_S
                advance(1, f"{len(found) / max(time.monotonic() - start, 1e-3):.3g} images/s")
        finally:
            put_facts(store, new)
    return {item.file_name: found[item.file_name] for item in items}


def _inspect_item(item: Item, store: FactsStore, gate: _Gate) -> tuple[str, _Result, bool]:
    """(key, facts or finding, whether they were known); an empty key is not to be kept."""
    try:
        source, file_hash = _read(item)
        key = facts_key(file_hash, item.background)
        known = get_facts(store, key)
        if known is not None:
            return key, known, True
        with gate.passed(header_pixels(source)):
            result = inspect_image(source, name=item.file_name, background=item.background)
    except DataError as error:
        # The archive's own error; where it says which member.
        code = "bad-archive" if item.member else "broken-file"
        return "", Finding(code, (item.file_name,), str(error.message), error.fix, "error"), False
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        fix = "restore the file, or take it out of the set"
        return "", Finding("broken-file", (item.file_name,), what, fix, "error"), False
    return key, result, False


def _read(item: Item) -> tuple[Path | bytes, str]:
    """An item's bytes, or its file where that is large, and their SHA-256."""
    source = read_item(item.path, item.member)
    if isinstance(source, Path):
        if source.stat().st_size > _WHOLE_FILE_BYTES:
            return source, file_sha256(source)
        source = source.read_bytes()
    return source, hashlib.sha256(source).hexdigest()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class _Gate:
    """Lets threads pass while the pixels they bring fit; ``stopped`` turns all away."""

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
