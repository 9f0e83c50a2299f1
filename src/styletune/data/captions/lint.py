"""What is wrong with captions: placeholders, triggers, copies, length; and how to fix it."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from styletune.data.captions.tokens import TokenCounter
from styletune.data.findings import Finding, agree, finding, first_few
from styletune.data.sources.card import Card
from styletune.data.sources.items import Item
from styletune.text import CONTROL_WORDS, odd_characters

# Similarity of a trigger's letters and those of a probable misspelling.
NEAR_SPELLING = 0.85
SHORTEST_GUESSED_TRIGGER = 5

_BRACKETED = (
    "trigger|trigger word|token|instance|concept|style|name|names|filename|file name|filewords|"
    "caption|prompt|class|subject|artist|description|text|words?|brand|(?:insert|your) [^]]*"
)
_PLACEHOLDERS = re.compile(
    rf"(?i:\[(?:{_BRACKETED})\])"
    r"|\$?\{[^{}\n]{0,40}\}"
    r"|<[A-Za-z_][^<>\n]{0,40}>"
    rf"|{CONTROL_WORDS.pattern}"
    r"|%\(\w+\)s|(?<![\w%])%[sd]\b"
    r"|_{3,}"
    # In capitals only: "todo" is a word in other languages.
    r"|\b(?:TODO|FIXME|TBD)\b"
    r"|(?i:\blorem ipsum\b)"
)


@dataclass(frozen=True, slots=True)
class TriggerUse:
    """How a caption spells its trigger: ``exact``; in another ``case``; in a ``variant`` of spacing
    or spelling; or not at all. ``start`` and ``end`` are its position in the caption.
    """

    kind: Literal["exact", "case", "variant", "missing"]
    start: int = 0
    end: int = 0


def trigger_of(item: Item, cards: Mapping[str, Card], trigger: str | None) -> str | None:
    """The trigger of an image: ``trigger`` if given, else that of its source's card; stripped."""
    card = cards.get(item.origin)
    declared = trigger or (card.trigger if card else None)
    return declared.strip() if declared else None


def caption_findings(
    items: Sequence[Item],
    cards: Mapping[str, Card],
    *,
    trigger: str | None = None,
    tokens: TokenCounter | None = None,
    new_tokens: Collection[str] = (),
    default_caption: str | None = None,
    variants: Sequence[Sequence[str]] = (),
) -> list[Finding]:
    """Everything to report about the captions; images without one are skipped.

    Args:
        items: the images.
        cards: the card of each source, by ``Item.origin``.
        trigger: overrides those of the cards.
        tokens: counts a caption's; None leaves lengths unchecked.
        new_tokens: words such as ``<horizon>``, which are not placeholders.
        default_caption: many images may share it.
        variants: file names of copies and variants of one picture; these may share a caption.
    """
    texts = {item.file_name: item.text for item in items if item.text and item.text.strip()}
    triggers = {
        item.file_name: declared
        for item in items
        if item.file_name in texts and (declared := trigger_of(item, cards, trigger))
    }
    machine = [item.file_name for item in items if item.machine_caption and item.text]
    return [
        *_placeholder_findings(texts, {*new_tokens, *triggers.values()}),
        *_character_findings(texts),
        *_length_findings(texts, tokens),
        *_copy_findings(texts, default_caption, variants),
        *_trigger_findings(texts, triggers),
        *_machine_findings(machine, len(items)),
    ]


def placeholders(text: str, known: Collection[str] = ()) -> list[str]:
    """A template's leftovers in a caption: ``[trigger]``, ``{name}``, ``<caption>``, ``TODO`` …"""
    folded = {word.casefold() for word in known}
    matches = (match.group() for match in _PLACEHOLDERS.finditer(text))
    return [match for match in matches if match.casefold() not in folded]


def _placeholder_findings(texts: Mapping[str, str], known: Collection[str]) -> list[Finding]:
    details = {
        name: ", ".join(dict.fromkeys(leftovers))
        for name, text in texts.items()
        if (leftovers := placeholders(text, known))
    }
    if not details:
        return []
    state = agree(len(details), "contain a placeholder")
    message = f"{len(details)} of {len(texts)} captions {state}: {first_few(details)}"
    fix = "replace it with what it stands for; put new words to learn into adapter.new_tokens"
    return [finding("placeholder", tuple(details), message, fix)]


def _character_findings(texts: Mapping[str, str]) -> list[Finding]:
    details = {name: odd for name, text in texts.items() if (odd := odd_characters(text))}
    if not details:
        return []
    state = agree(len(details), "hold characters that nobody meant")
    message = f"{len(details)} of {len(texts)} captions {state}: {first_few(details)}"
    return [finding("odd-characters", tuple(details), message, "write them again, as UTF-8")]


def _length_findings(texts: Mapping[str, str], tokens: TokenCounter | None) -> list[Finding]:
    if tokens is None:
        return []
    counts = {name: tokens.count(text) for name, text in texts.items()}
    long = {name: n for name, n in counts.items() if n > tokens.limit}
    if not long:
        return []
    long = dict(sorted(long.items(), key=lambda pair: -pair[1]))
    details = {name: f"{count} tokens" for name, count in long.items()}
    state = agree(len(long), f"are longer than the {tokens.limit} tokens that CLIP reads")
    message = (
        f"{len(long)} of {len(texts)} captions {state}, including start and end: "
        f"{first_few(details)}"
    )
    fix = "shorten them; put what matters first"
    return [finding("too-long-caption", tuple(long), message, fix)]


def _copy_findings(
    texts: Mapping[str, str], default_caption: str | None, variants: Sequence[Sequence[str]]
) -> list[Finding]:
    """Captions shared by images that are not variants of one picture."""
    cluster = {file: tuple(files) for files in variants for file in files}
    by_text: dict[str, list[str]] = {}
    for name, text in texts.items():
        by_text.setdefault(" ".join(text.casefold().split()), []).append(name)
    default = " ".join((default_caption or "").casefold().split())
    copied = {
        text: names
        for text, names in by_text.items()
        if text != default and len({cluster.get(name, (name,)) for name in names}) > 1
    }
    if not copied:
        return []
    files = tuple(sorted(name for names in copied.values() for name in names))
    details = {f'"{texts[names[0]].strip()}"': f"{len(names)} images" for names in copied.values()}
    if len(copied) == 1 and len(files) == len(texts):
        message = f"all {len(files)} images have the same caption, {next(iter(details))}"
        fix = "describe what each one shows, so that prompts can ask for it later"
        return [finding("duplicate-captions", files, message, fix, "fact")]
    message = (
        f"{len(copied)} captions are used for {len(files)} different images: {first_few(details)}"
    )
    fix = "describe the differences; one caption for different images blurs both"
    return [finding("duplicate-captions", files, message, fix)]


def find_trigger(text: str, trigger: str) -> TriggerUse:
    """Look for a trigger in a caption: exactly, else in another case, else in a similar spelling.

    A similar spelling joins or separates its words differently ("Horizon-style", "horizonstyle"),
    or has a ``difflib`` ratio of ``NEAR_SPELLING``; triggers under five letters are not guessed.
    """
    pattern = rf"(?<!\w){re.escape(trigger)}(?!\w)"
    if match := re.search(pattern, text):
        return TriggerUse("exact", *match.span())
    if match := re.search(pattern, text, re.IGNORECASE):
        return TriggerUse("case", *match.span())
    letters = _letters(trigger)
    words = [match.span() for match in re.finditer(r"\w+", text.replace("_", " "))]
    most = len(re.findall(r"[^\W_]+", trigger)) + 1
    best, use = 0.0, TriggerUse("missing")
    for first in range(len(words)):
        for last in range(first, min(first + most, len(words))):
            start, end = words[first][0], words[last][1]
            between = text[start:end]
            if re.search(r"[,.;:!?\n]", between):
                break
            near = difflib.SequenceMatcher(None, _letters(between), letters).ratio()
            guessed = len(letters) >= SHORTEST_GUESSED_TRIGGER and near >= NEAR_SPELLING
            if near > best and (near == 1 or guessed):
                best, use = near, TriggerUse("variant", start, end)
    return use


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def trigger_position(text: str, use: TriggerUse) -> Literal["first", "middle", "last"]:
    """Where in a caption its trigger is."""
    if not re.search(r"\w", text[: use.start]):
        return "first"
    return "middle" if re.search(r"\w", text[use.end :]) else "last"


def _trigger_findings(texts: Mapping[str, str], triggers: Mapping[str, str]) -> list[Finding]:
    uses = {name: find_trigger(texts[name], trigger) for name, trigger in triggers.items()}
    of_kind = {
        kind: tuple(name for name, use in uses.items() if use.kind == kind)
        for kind in ("missing", "variant", "case")
    }
    spellings = {
        name: f'"{texts[name][use.start : use.end]}"'
        for name, use in uses.items()
        if use.kind in ("variant", "case")
    }
    listed = " or ".join(f'"{each}"' for each in dict.fromkeys(triggers.values()))
    findings, total = [], len(triggers)
    if missing := of_kind["missing"]:
        state = agree(len(missing), f"do not contain the trigger {listed}")
        message = f"{len(missing)} of {total} captions {state}"
        findings.append(finding("missing-trigger", missing, message, "add it to every caption"))
    if variant := of_kind["variant"]:
        details = first_few({name: spellings[name] for name in variant})
        state = agree(len(variant), f"misspell the trigger {listed}")
        message = f"{len(variant)} of {total} captions {state}: {details}"
        fix = "spell it the same everywhere: other spellings are other words to the model"
        findings.append(finding("inconsistent-trigger", variant, message, fix))
    if case := of_kind["case"]:
        details = first_few({name: spellings[name] for name in case})
        state = agree(len(case), f"write {listed} in another case")
        message = f"{len(case)} of {total} captions {state}: {details}"
        fix = "nothing to do: CLIP reads lowercase"
        findings.append(finding("inconsistent-trigger", case, message, fix, "fact"))
    return findings + _position_findings(texts, uses)


def _position_findings(texts: Mapping[str, str], uses: Mapping[str, TriggerUse]) -> list[Finding]:
    """Triggers that are sometimes first and sometimes last."""
    positions = {name: trigger_position(texts[name], use) for name, use in uses.items() if use.end}
    counts = Counter(positions.values())
    first, last = counts["first"], counts["last"]
    if not (first and last):
        return []
    rarer = "last" if last <= first else "first"
    files = tuple(name for name, position in positions.items() if position == rarer)
    message = f"the trigger comes first in {first} captions and last in {last}"
    fix = "put it first everywhere: never cut off, and within reach of caption_keep_first"
    return [finding("inconsistent-trigger", files, message, fix)]


def _machine_findings(machine: Sequence[str], total: int) -> list[Finding]:
    if not machine:
        return []
    message = f"a model wrote the captions of {len(machine)} of {total} images"
    return [finding("machine-captions", machine, message, "read them before training on them")]


def trigger_conflict(cards: Mapping[str, Card]) -> list[Finding]:
    """A finding where sources declare different triggers."""
    triggers = {name: card.trigger.strip() for name, card in cards.items() if card.trigger}
    if len(set(triggers.values())) < 2:
        return []
    listed = ", ".join(f'{name}: "{trigger}"' for name, trigger in triggers.items())
    message = f"the sources have different triggers ({listed}), so none is added to prompts"
    return [finding("inconsistent-trigger", (), message, "use one trigger for one look")]
