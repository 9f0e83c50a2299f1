"""Seeded mutants of everything that people write: recipes, suites, cards, metadata, prompts.

    python scripts/fuzz_inputs.py                      # 10,000 mutants, at most 20 minutes
    python scripts/fuzz_inputs.py --count 300 --seed 7

Each mutant is loaded as a command would load it. It may be accepted or refused with one of our
errors; anything else is a fault: another exception, more than 2 seconds, or more than 500 MiB.
Prints the faults with the seeds that make them again, and exits 1 if there are any.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from styletune.cli.published import _read_prompts, parse_seeds
from styletune.data.captions.lint import caption_findings
from styletune.data.sources.card import load_card
from styletune.data.sources.items import Item
from styletune.data.sources.metadata import read_metadata
from styletune.errors import StyletuneError
from styletune.recipe import load_recipe
from styletune.registry.resolve import parse_spec
from styletune.scoring.suite import load_suite

MAX_SECONDS, MAX_MIB = 2.0, 500

RECIPE = b"""[base]
model = "mini"
[data]
path = "images"
default_caption = "a city, brand look"
caption_variants = 4
caption_shuffle = true
[adapter]
rank = 8
block_ranks = { "mid_block.*" = 4 }
new_tokens = ["<acme>"]
[train]
steps = 40
seed = 3
[preview]
prompts = ["brand look, the sea"]
[score]
suite = "suite.toml"
[publish]
name = "small"
version = "1.2.3-rc.1"
license = "CC0-1.0"
"""
SUITE = b"""name = "small"
prompts = ["the sea at noon", "dunes at night", "a meadow"]
seeds = [1, 2]
[sampler]
steps = 8
[gates]
palette_ratio = 0.9
"""
CARD = b"""name = "Small"
holder = "us"
license = "CC0-1.0"
trigger = "brand look"
palette = ["#261654", "#e24860"]
"""
JSONL = b"".join(
    b'{"file_name": "p%d.png", "text": "brand look, picture %d", "license": "MIT"}\n' % (i, i)
    for i in range(4)
)
CSV = b"file_name,text,holder\n" + b"".join(b'p%d.png,"a, %d",us\n' % (i, i) for i in range(4))
PROMPTS = b"a forest at noon\n# a comment\nthe sea\n"
WORDS = b"horizon@^1.2\nhorizon@>=1.0,<2\n101-110,7\n"

# What breaks parsers, and what people paste.
PIECES = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x1b[31m",
    "\u202e".encode(),
    "é".encode(),
    "e\u0301".encode(),
    b"\r\n",
    b"\\",
    b'"',
    b"'",
    b'"""',
    b"[",
    b"]",
    b"{",
    b"}",
    b"#",
    b"=",
    b",",
    b";",
    b"\t",
    b"nan",
    b"inf",
    b"-0",
    b"1e999",
    b"0x",
    b"true",
    b"null",
    b"[[data]]",
    b"<|endoftext|>",
    b"{trigger}",
    b"../",
    b"~",
    b"C:\\Users\\new",
    b"9" * 40,
]
LONG = [b"9" * 5000, b"[" * 3000, b"a." * 3000, b"{a=" * 2000, b"x" * 100_000, b"\n" * 50_000]


@dataclass(frozen=True, slots=True)
class Fault:
    """What a mutant did that it must not."""

    kind: str
    seed: str
    what: str


def mutants(seed: int, count: int) -> Iterator[tuple[str, str, bytes]]:
    """(kind, seed, content), the kinds in turn."""
    kinds = itertools.cycle(LOADERS)
    for number in range(count):
        kind = next(kinds)
        name = f"{seed}/{number}"
        yield kind, name, mutated(random.Random(name), LOADERS[kind][0])


def mutated(rng: random.Random, content: bytes) -> bytes:
    """One to four changes: bytes flipped, pieces put in, parts left out, moved or repeated."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.randint(1, 30))
        match rng.randrange(7):
            case 0:
                content = content[:at] + bytes([rng.randrange(256)]) + content[end:]
            case 1 | 2:
                content = content[:at] + rng.choice(PIECES) + content[at:]
            case 3:
                content = content[:at] + content[end:]
            case 4:
                content = content[:at] + content[at:end] * rng.randint(2, 400) + content[end:]
            case 5:
                content = content[:at] + rng.choice(LONG) + content[at:]
            case _:
                lines = content.split(b"\n")
                rng.shuffle(lines)
                content = b"\n".join(lines)
    return content[: 1 << 21]


def _recipe(folder: Path, content: bytes) -> None:
    file = folder / "r.toml"
    file.write_bytes(content)
    load_recipe(file)


def _suite(folder: Path, content: bytes) -> None:
    file = folder / "suite.toml"
    file.write_bytes(content)
    load_suite(file)


def _card(folder: Path, content: bytes) -> None:
    (folder / "dataset.toml").write_bytes(content)
    load_card(folder)


def _metadata(name: str) -> Callable[[Path, bytes], None]:
    def load(_folder: Path, content: bytes) -> None:
        captions, _ = read_metadata({name: content})
        items = [Item(n, "", "", w.text, "x") for n, w in captions.words.items()]
        caption_findings(items, {}, trigger="brand look")

    return load


def _prompts(folder: Path, content: bytes) -> None:
    file = folder / "p.txt"
    file.write_bytes(content)
    _read_prompts(file)


def _words(_folder: Path, content: bytes) -> None:
    spec, bounds, seeds = ([*content.split(b"\n"), b"", b"", b""])[:3]
    for text in (spec, bounds):
        try:
            parse_spec(text.decode("utf-8", "surrogateescape"))
        except StyletuneError:
            continue
    parse_seeds(seeds.decode("utf-8", "surrogateescape"))


LOADERS: dict[str, tuple[bytes, Callable[[Path, bytes], None]]] = {
    "recipe": (RECIPE, _recipe),
    "suite": (SUITE, _suite),
    "card": (CARD, _card),
    "metadata.jsonl": (JSONL, _metadata("metadata.jsonl")),
    "metadata.csv": (CSV, _metadata("metadata.csv")),
    "prompts": (PROMPTS, _prompts),
    "versions and seeds": (WORDS, _words),
}


def fault_of(kind: str, content: bytes, folder: Path) -> str:
    """What is wrong with how a mutant is taken; "" for nothing."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    try:
        LOADERS[kind][1](folder, content)
    except StyletuneError as error:
        if not error.message.strip():
            return "an error without a message"
    except Exception:  # noqa: BLE001
        return traceback.format_exc(limit=-3)
    took = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if took > MAX_SECONDS:
        return f"took {took:.1f} s"
    return f"took {grown:.0f} MiB" if grown > MAX_MIB else ""


def run(seed: int, count: int, most_seconds: float) -> tuple[int, list[Fault]]:
    """How many mutants were tried within the time, and the faults among them."""
    until, tried, faults = time.monotonic() + most_seconds, 0, []
    with tempfile.TemporaryDirectory() as folder:
        for kind, name, content in mutants(seed, count):
            if time.monotonic() > until:
                break
            tried += 1
            if what := fault_of(kind, content, Path(folder)):
                faults.append(Fault(kind, name, what))
    return tried, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=20)
    options = parser.parse_args()
    tried, faults = run(options.seed, options.count, options.minutes * 60)
    for fault in faults:
        print(f"{fault.kind} {fault.seed}\n{fault.what}")
    print(json.dumps({"tried": tried, "faults": len(faults), "of": options.count}))
    sys.exit(bool(faults) or tried < options.count)


if __name__ == "__main__":
    main()
