"""Opt-outs inside image files: whether their XMP metadata prohibits training on them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from PIL import Image

UNREADABLE = "unreadable"
PERMITTING = ("DMI-UNSPECIFIED", "DMI-ALLOWED")
_PLUS = "{http://ns.useplus.org/ldf/xmp/1.0/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


def opt_out_term(image: Image.Image) -> str:
    """The ``plus:DataMining`` term in an image's XMP, as its id such as ``DMI-PROHIBITED``.

    "" if there is none, ``UNREADABLE`` if the XMP is damaged and contains no prohibition, which
    is not permission. If there are several, the strictest counts. PNG may store its XMP after the
    pixels, so a PNG file is decoded here unless it already is.

    Source: PLUS License Data Format, XMP reference 2.0.1 (ns.useplus.org/LDF/ldf-XMPSpecification),
    adopted by IPTC Photo Metadata 2023.1. In XMP a value may be an attribute or an element of any
    ``rdf:Description``, and may be the term's URI, in full or with a prefix.

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
        # A damaged packet can still prohibit.
        prohibition = re.search(rb"DMI-PROHIBITED[A-Z-]*", packet)
        return prohibition.group().decode() if prohibition else UNREADABLE
    terms = [_term(value) for value in values]
    return min(terms, key=_strictness, default="")


def prohibits_training(term: str) -> bool:
    """Whether a ``plus:DataMining`` term prohibits training an image generator.

    Prohibiting terms: ``DMI-PROHIBITED`` (any mining), ``-AIMLTRAINING`` (any training),
    ``-GENAIMLTRAINING`` (training of generative models, which this is),
    ``-EXCEPTSEARCHENGINEINDEXING`` (everything but indexing), and ``-SEECONSTRAINT``,
    ``-SEEEMBEDDEDRIGHTSEXPR``, ``-SEELINKEDRIGHTSEXPR``: prohibited except for what a text
    elsewhere allows, which only a person can read. Future terms with that prefix, and the
    vocabulary's labels ("Prohibited for AI/ML training"), prohibit as well.
    """
    return term.upper().removeprefix("DMI-").startswith("PROHIBITED")


def _strictness(term: str) -> int:
    return 0 if prohibits_training(term) else 2 if term in PERMITTING else 1


def _term(value: str) -> str:
    """The id in ``http://ns.useplus.org/ldf/vocab/DMI-…``, ``plus:DMI-…`` or a bare id."""
    value = " ".join(value.split())
    match = re.search(r"DMI-[A-Z-]+$", value, re.IGNORECASE)
    return match.group().upper() if match else value[:99]  # a label, or arbitrary text


def _data_mining(packet: bytes) -> list[str] | None:
    """Every nonempty value of the property in an XMP packet; None if the packet is damaged."""
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
