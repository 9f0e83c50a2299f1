"""Who allowed what: opt-outs in the files, licences, and what is told of them to others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from styletune.data.findings import Finding, Severity
from styletune.data.licenses import RESTRICTIONS, current_id, license_problem, restrictions
from styletune.data.sources.items import Item

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from PIL import Image

UNREADABLE = "unreadable"
_PLUS = "{http://ns.useplus.org/ldf/xmp/1.0/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_PERMITTING = ("DMI-UNSPECIFIED", "DMI-ALLOWED")
_WORDS = {"license": "licence", "holder": "holder", "consent": "consent", "source": "source"}
_DECLARE = "declare them in dataset.toml, or as columns of the metadata for single images"
_ASK = "ask the holders for a licence that fits, or take these images out"
LICENSE_FIX = "write an id from spdx.org/licenses, or LicenseRef-<name> for terms of one's own"


def opt_out_term(image: Image.Image) -> str:
    """The ``plus:DataMining`` term in an image's XMP, as its id such as ``DMI-PROHIBITED``.

    "" where there is none, ``UNREADABLE`` where the XMP is damaged and names no prohibition: that
    is no permission. The strictest term counts where there are several. PNG may hold its XMP
    behind the pixels, so a PNG file is decoded here if it was not yet.

    Source: PLUS License Data Format, XMP reference 2.0.1 (ns.useplus.org/LDF/ldf-XMPSpecification),
    which IPTC Photo Metadata 2023.1 took over. XMP lets a value stand as an attribute or an
    element of any ``rdf:Description`` and be the term's URI, in full or with a prefix.

    Raises:
        OSError: a PNG file cannot be decoded.
    """
    if image.format == "PNG":
        image.load()
    raw = image.info.get("xmp", b"")
    packet = raw.encode() if isinstance(raw, str) else bytes(raw)
    packet = packet.strip(b"\0 \t\r\n")
    if not packet:
        return ""
    values = _data_mining(packet)
    if values is None:
        # What a damaged packet still forbids is forbidden.
        found = re.search(rb"DMI-PROHIBITED[A-Z-]*", packet)
        return found.group().decode() if found else UNREADABLE
    terms = [_term(value) for value in values]
    return min(terms, key=_strictness, default="")


def prohibits_training(term: str) -> bool:
    """Whether a ``plus:DataMining`` term forbids to train an image generator.

    Forbidding terms: ``DMI-PROHIBITED`` (any mining), ``-AIMLTRAINING`` (any training),
    ``-GENAIMLTRAINING`` (training of generative models, which this is),
    ``-EXCEPTSEARCHENGINEINDEXING`` (all but indexing), and ``-SEECONSTRAINT``,
    ``-SEEEMBEDDEDRIGHTSEXPR``, ``-SEELINKEDRIGHTSEXPR``: forbidden but for what a text elsewhere
    allows, which only a person can read. A future term of that prefix, and the vocabulary's
    labels ("Prohibited for AI/ML training"), forbid as well.
    """
    return term.upper().removeprefix("DMI-").startswith("PROHIBITED")


def _strictness(term: str) -> int:
    return 0 if prohibits_training(term) else 2 if term in _PERMITTING else 1


def _term(value: str) -> str:
    """The id in ``http://ns.useplus.org/ldf/vocab/DMI-…``, ``plus:DMI-…`` or a bare id."""
    value = " ".join(value.split())
    found = re.search(r"DMI-[A-Z-]+$", value, re.IGNORECASE)
    return found.group().upper() if found else value[:99]  # a label, or anything at all


def _data_mining(packet: bytes) -> list[str] | None:
    """Every value of the property in an XMP packet that is not empty; None if it is damaged."""
    from defusedxml import ElementTree  # type: ignore[import-untyped, unused-ignore]

    try:
        root: Element = ElementTree.fromstring(packet)
    except (SyntaxError, ValueError, LookupError):  # not XML, declares entities, odd encoding
        return None
    values = []
    for node in root.iter():
        values.append(node.get(f"{_PLUS}DataMining", ""))
        if node.tag == f"{_PLUS}DataMining":
            inside = list(node.iter())
            values += [each.text or "" for each in inside]
            values += [each.get(f"{_RDF}resource", "") for each in inside]
    return [value for value in values if value.strip()]


def rights_findings(
    items: Sequence[Item],
    opt_outs: Mapping[str, str],
    *,
    require: bool,
    override: str | None,
) -> list[Finding]:
    """Everything that the declared rights and the files' opt-outs say against training.

    Args:
        items: the set.
        opt_outs: ``opt_out_term`` by file name; files without a term may be left out.
        require: rights that are not declared are errors, not warnings.
        override: why images may be used although their files prohibit it, in words that are
            recorded; None where nobody said so.
    """
    found = _missing(items, "error" if require else "warning")
    for text, files in _by_license(items).items():
        found += _license_findings(text, files)
    return found + _opt_out_findings(opt_outs, override)


def _missing(items: Sequence[Item], severity: Severity) -> list[Finding]:
    lacking = {key: [i.file_name for i in items if key in _undeclared(i)] for key in _WORDS}
    counts = [f"{_WORDS[key]} of {len(files)}" for key, files in lacking.items() if files]
    if not counts:
        return []
    files = tuple(item.file_name for item in items if _undeclared(item))
    message = f"{len(files)} of {len(items)} images lack rights: not declared are {_and(counts)}"
    return [Finding("missing-rights", files, message, _DECLARE, severity)]


def _undeclared(item: Item) -> list[str]:
    return [key for key in _WORDS if not getattr(item.rights, key).strip()]


def _by_license(items: Sequence[Item]) -> dict[str, tuple[str, ...]]:
    """The files of each declared licence, licences sorted."""
    files: dict[str, list[str]] = {}
    for item in items:
        if item.rights.license.strip():
            files.setdefault(item.rights.license, []).append(item.file_name)
    return {text: tuple(names) for text, names in sorted(files.items())}


def _license_findings(text: str, files: tuple[str, ...]) -> list[Finding]:
    problem = license_problem(text)
    if problem:
        return [Finding("bad-license", files, problem, LICENSE_FIX, "error")]
    found = []
    current = current_id(text)
    if _ids(current) != _ids(text):
        message = f"{text} is an old way to write {current}"
        found.append(Finding("bad-license", files, message, f"write {current}", "warning"))
    for kind in sorted(restrictions(text)):
        message = f"{len(files)} images are under {text}, which {RESTRICTIONS[kind]}"
        found.append(Finding("restricted-license", files, message, _ASK, "warning"))
    return found


def _ids(expression: str) -> list[str]:
    return re.findall(r"[^\s()]+", expression.casefold())


def _opt_out_findings(opt_outs: Mapping[str, str], override: str | None) -> list[Finding]:
    found = []
    forbidding = {name: term for name, term in opt_outs.items() if prohibits_training(term)}
    if forbidding:
        terms = _counted(forbidding.values())
        reason = (override or "").strip()
        message = f"{len(forbidding)} images prohibit training in their XMP data: {terms}"
        fix = "take them out, or ask their holders and record the permission as an override"
        if reason:
            message += f'; used all the same because of the recorded override "{reason}"'
            fix = "keep the permission: the override is published with the adapter"
        files = tuple(sorted(forbidding))
        severity: Severity = "warning" if reason else "error"
        found.append(Finding("opt-out", files, message, fix, severity))
    unclear = {
        name: term
        for name, term in opt_outs.items()
        if term and name not in forbidding and term not in _PERMITTING
    }
    if unclear:
        message = (
            f"whether {len(unclear)} images prohibit training cannot be told from their XMP "
            f"data: {_counted(unclear.values())}"
        )
        fix = "ask their holders, and save them with XMP data that can be read"
        found.append(Finding("opt-out", tuple(sorted(unclear)), message, fix, "warning"))
    return found


def _counted(terms: Iterable[str]) -> str:
    return ", ".join(f"{term} ({n})" for term, n in sorted(Counter(terms).items()))


def _and(parts: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def publishable_problem(items: Sequence[Item]) -> Finding | None:
    """Why an adapter of these images must not be published: the first reason, or None.

    Publishing needs licence, holder, consent and source of every image, and licences that are
    known and let others have what is derived.
    """
    found = _missing(items, "error")
    for text, files in _by_license(items).items():
        found += [f for f in _license_findings(text, files) if f.severity == "error"]
    if found:
        return found[0]
    forbidden = {t: f for t, f in _by_license(items).items() if "ND" in restrictions(t)}
    if not forbidden:
        return None
    return Finding(
        "restricted-license",
        tuple(name for files in forbidden.values() for name in files),
        "; ".join(f"{len(f)} images are under {t}" for t, f in forbidden.items())
        + f", which {RESTRICTIONS['ND']}",
        _ASK,
        "error",
    )


def rights_summary(
    items: Sequence[Item],
    *,
    opt_outs: Mapping[str, str],
    override: str | None,
    lowered: Sequence[Finding] = (),
) -> dict[str, Any]:
    """What is told of the images' rights wherever the adapter goes, as JSON would hold it.

    No file names and no captions: they may say more than the holders want to be known.

    Args:
        items: the set.
        opt_outs: as in ``rights_findings``.
        override: as in ``rights_findings``.
        lowered: findings that are errors by default and were lowered by the recipe.

    Returns:
        ``images``, their number; ``declared``, one mapping of ``license``, ``holder``,
        ``consent``, ``source`` ("" is not declared) and ``images`` for every combination, most
        images first; ``opt_out``, None or ``{override, terms}`` with the number of images of each
        forbidding term; ``lowered``, the number of files by code.
    """
    combinations = Counter(item.rights for item in items)
    declared = [{**asdict(rights), "images": n} for rights, n in combinations.items()]
    declared.sort(key=lambda entry: (-entry["images"], *(entry[key] for key in _WORDS)))
    terms = Counter(term for term in opt_outs.values() if prohibits_training(term))
    files = {
        code: {n for f in lowered if f.code == code for n in f.files}
        for code in sorted({f.code for f in lowered})
    }
    return {
        "images": len(items),
        "declared": declared,
        "opt_out": {"override": override or "", "terms": dict(sorted(terms.items()))}
        if terms
        else None,
        "lowered": {code: len(names) for code, names in files.items()},
    }
