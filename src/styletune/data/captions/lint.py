"""What is wrong with captions: placeholders, triggers, copies, length; and how to mend it."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from styletune.data.findings import Finding, finding, named
from styletune.data.inspection.duplicates import Group
from styletune.data.sources.card import Card
from styletune.data.sources.items import Item

# What CLIP reads, the tokens of start and end included (arXiv 2103.00020, §2.4).
MAX_TOKENS = 77
# Of the letters of a trigger and of what may be meant for it.
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
    r"|%\(\w+\)s|(?<![\w%])%[sd]\b"
    r"|_{3,}"
    # In capitals only: "todo" is a word in other languages.
    r"|\b(?:TODO|FIXME|TBD)\b"
    r"|(?i:\blorem ipsum\b)"
)


@dataclass(frozen=True, slots=True)
class TriggerUse:
    """How a caption writes its trigger: ``exact``; in another ``case``; in a ``variant`` of spacing
    or spelling; or not at all. ``start`` and ``end`` say where in the caption.
    """

    kind: Literal["exact", "case", "variant", "missing"]
    start: int = 0
    end: int = 0


def trigger_of(item: Item, cards: Mapping[str, Card], trigger: str | None) -> str | None:
    """The trigger of an image: the given one, else that of its source's card; stripped."""
    card = cards.get(item.origin)
    found = trigger or (card.trigger if card else None)
    return found.strip() if found else None


def caption_findings(
    items: Sequence[Item],
    cards: Mapping[str, Card],
    *,
    trigger: str | None,
    tokens: Callable[[str], int] | None,
    known_tokens: Collection[str] = (),
    default_caption: str | None = None,
    groups: Sequence[Group] = (),
) -> list[Finding]:
    """Everything that is to be said about the captions; images without one are passed over.

    Args:
        items: the images.
        cards: the card of each source, by ``Item.origin``.
        trigger: goes before those of the cards.
        tokens: how many CLIP tokens a caption is, with those of start and end:
            ``lambda text: len(tokenizer(text).input_ids)``; None does not count.
        known_tokens: new words such as ``<horizon>``; they are no placeholders.
        default_caption: it may stand for many images.
        groups: copies and variants of one picture; these may share a caption.
    """
    texts = {item.file_name: item.text for item in items if item.text and item.text.strip()}
    triggers = {
        item.file_name: wanted
        for item in items
        if item.file_name in texts and (wanted := trigger_of(item, cards, trigger))
    }
    machine = [item.file_name for item in items if item.machine_caption and item.text]
    return [
        *_placeholder_findings(texts, {*known_tokens, *triggers.values()}),
        *_length_findings(texts, tokens),
        *_copy_findings(texts, default_caption, groups),
        *_trigger_findings(texts, triggers),
        *_machine_findings(machine, len(items)),
    ]


def placeholders(text: str, known: Collection[str] = ()) -> list[str]:
    """What a template left in a caption: ``[trigger]``, ``{name}``, ``<caption>``, ``TODO`` …"""
    folded = {word.casefold() for word in known}
    found = (match.group() for match in _PLACEHOLDERS.finditer(text))
    return [each for each in found if each.casefold() not in folded]


def _placeholder_findings(texts: Mapping[str, str], known: Collection[str]) -> list[Finding]:
    left = {name: placeholders(text, known) for name, text in texts.items()}
    left = {name: found for name, found in left.items() if found}
    if not left:
        return []
    said = {name: ", ".join(dict.fromkeys(found)) for name, found in left.items()}
    message = f"{len(left)} of {len(texts)} captions hold a placeholder: {named(said)}"
    fix = "write what it stands for; a new word to be learnt belongs into adapter.new_tokens"
    return [finding("placeholder", tuple(left), message, fix)]


def _length_findings(
    texts: Mapping[str, str], tokens: Callable[[str], int] | None
) -> list[Finding]:
    if tokens is None:
        return []
    counts = {name: tokens(text) for name, text in texts.items()}
    long = {name: n for name, n in counts.items() if n > MAX_TOKENS}
    if not long:
        return []
    long = dict(sorted(long.items(), key=lambda pair: -pair[1]))
    said = {name: f"{count} tokens" for name, count in long.items()}
    message = (
        f"{len(long)} of {len(texts)} captions are longer than the {MAX_TOKENS} tokens that CLIP "
        f"reads, start and end included: {named(said)}"
    )
    fix = "shorten them; what matters comes first"
    return [finding("too-long-caption", tuple(long), message, fix)]


def _copy_findings(
    texts: Mapping[str, str], default_caption: str | None, groups: Sequence[Group]
) -> list[Finding]:
    """Captions that stand for images which are not variants of one picture."""
    family = {file: group.files for group in groups for file in group.files}
    by_text: dict[str, list[str]] = {}
    for name, text in texts.items():
        by_text.setdefault(" ".join(text.casefold().split()), []).append(name)
    default = " ".join((default_caption or "").casefold().split())
    copied = {
        text: names
        for text, names in by_text.items()
        if text != default and len({family.get(name, (name,)) for name in names}) > 1
    }
    if not copied:
        return []
    files = tuple(sorted(name for names in copied.values() for name in names))
    said = {f'"{texts[names[0]].strip()}"': f"{len(names)} images" for names in copied.values()}
    if len(copied) == 1 and len(files) == len(texts):
        message = f"all {len(files)} images have the same caption, {next(iter(said))}"
        fix = "describe what each shows, so that the prompt can choose it later"
        return [finding("duplicate-captions", files, message, fix, "fact")]
    message = f"{len(copied)} captions stand for {len(files)} different images: {named(said)}"
    fix = "describe what tells them apart; one caption for different images blurs both"
    return [finding("duplicate-captions", files, message, fix)]


def find_trigger(text: str, trigger: str) -> TriggerUse:
    """Look for a trigger in a caption: as it is, else in another case, else in a near spelling.

    A near spelling joins or parts its words otherwise ("Horizon-style", "horizonstyle"), or is
    alike to ``NEAR_SPELLING`` by ``difflib``; triggers shorter than five letters are not guessed.
    """
    pattern = rf"(?<!\w){re.escape(trigger)}(?!\w)"
    if match := re.search(pattern, text):
        return TriggerUse("exact", *match.span())
    if match := re.search(pattern, text, re.IGNORECASE):
        return TriggerUse("case", *match.span())
    wanted = _letters(trigger)
    words = [match.span() for match in re.finditer(r"\w+", text.replace("_", " "))]
    most = len(re.findall(r"[^\W_]+", trigger)) + 1
    best, use = 0.0, TriggerUse("missing")
    for first in range(len(words)):
        for last in range(first, min(first + most, len(words))):
            start, end = words[first][0], words[last][1]
            between = text[start:end]
            if re.search(r"[,.;:!?\n]", between):
                break
            near = difflib.SequenceMatcher(None, _letters(between), wanted).ratio()
            guessed = len(wanted) >= SHORTEST_GUESSED_TRIGGER and near >= NEAR_SPELLING
            if near > best and (near == 1 or guessed):
                best, use = near, TriggerUse("variant", start, end)
    return use


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def trigger_place(text: str, use: TriggerUse) -> Literal["first", "middle", "last"]:
    """Where a trigger stands that was found in a caption."""
    if not re.search(r"\w", text[: use.start]):
        return "first"
    return "middle" if re.search(r"\w", text[use.end :]) else "last"


def _trigger_findings(texts: Mapping[str, str], triggers: Mapping[str, str]) -> list[Finding]:
    uses = {name: find_trigger(texts[name], wanted) for name, wanted in triggers.items()}
    of_kind = {
        kind: tuple(name for name, use in uses.items() if use.kind == kind)
        for kind in ("missing", "variant", "case")
    }
    written = {
        name: f'"{texts[name][use.start : use.end]}"'
        for name, use in uses.items()
        if use.kind in ("variant", "case")
    }
    shown = " or ".join(f'"{each}"' for each in dict.fromkeys(triggers.values()))
    found, total = [], len(triggers)
    if missing := of_kind["missing"]:
        message = f"{len(missing)} of {total} captions do not hold the trigger {shown}"
        found.append(finding("missing-trigger", missing, message, "write it into every caption"))
    if variant := of_kind["variant"]:
        said = named({name: written[name] for name in variant})
        message = f"{len(variant)} of {total} captions write the trigger {shown} otherwise: {said}"
        fix = "write it the same everywhere: other spellings are other words to the model"
        found.append(finding("inconsistent-trigger", variant, message, fix))
    if case := of_kind["case"]:
        said = named({name: written[name] for name in case})
        message = f"{len(case)} of {total} captions write {shown} in another case: {said}"
        fix = "nothing has to be done: CLIP reads lower case"
        found.append(finding("inconsistent-trigger", case, message, fix, "fact"))
    return found + _place_findings(texts, uses)


def _place_findings(texts: Mapping[str, str], uses: Mapping[str, TriggerUse]) -> list[Finding]:
    """Triggers that are sometimes first and sometimes last."""
    places = {name: trigger_place(texts[name], use) for name, use in uses.items() if use.end}
    counts = Counter(places.values())
    first, last = counts["first"], counts["last"]
    if not (first and last):
        return []
    rarer = "last" if last <= first else "first"
    files = tuple(name for name, place in places.items() if place == rarer)
    message = f"the trigger comes first in {first} captions and last in {last}"
    fix = "put it first everywhere: there it is never cut off and caption_keep_first can hold it"
    return [finding("inconsistent-trigger", files, message, fix)]


def _machine_findings(machine: Sequence[str], total: int) -> list[Finding]:
    if not machine:
        return []
    message = f"a model wrote the captions of {len(machine)} of {total} images"
    return [finding("machine-captions", machine, message, "read them before you train on them")]
