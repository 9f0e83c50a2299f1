"""Licenses by their SPDX expressions: whether one is known, and what it prohibits."""

from __future__ import annotations

import difflib
import functools
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from license_expression import Licensing  # type: ignore[import-untyped, unused-ignore]

# What a restriction means for an adapter; an image set may mix them freely.
RESTRICTIONS = {
    "ND": "prohibits sharing derivatives (NoDerivatives): an adapter may count as one, so it can "
    "be trained but not published",
    "NC": "prohibits commercial use (NonCommercial): of the adapter as well",
}
_OWN_ID = re.compile(r"(DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")


def license_problem(text: str) -> str | None:
    """What is wrong with a license as an SPDX expression; None if it can be used.

    Ids are case-insensitive and may be joined by AND, OR and WITH; anyone may define a
    ``LicenseRef-<name>``. The nearest id is suggested.
    """
    from license_expression import ExpressionError

    licensing = _licensing()
    try:
        parsed = licensing.parse(text, strict=True)
    except (ExpressionError, IndexError, AssertionError):  # the last two of "()" and "(AND MIT"
        return f'"{text}" is not an SPDX license expression{_near_id(text)}'
    unknown = [
        symbol.key
        for symbol in licensing.unknown_license_symbols(parsed)
        if not _OWN_ID.fullmatch(symbol.key)
    ]
    if parsed is None or unknown:
        listed = ", ".join(f'"{key}"{_near_id(key)}' for key in unknown) or '""'
        return f"not an SPDX license id: {listed}"
    return None


@functools.cache
def _licensing() -> Licensing:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def _near_id(text: str) -> str:
    """The nearest id in parentheses, or nothing."""
    near = ""
    if text.casefold().startswith("licenseref"):
        name = re.sub(r"[^A-Za-z0-9.]+", "-", text[len("licenseref") :]).strip("-")
        near = f"LicenseRef-{name}" if name else ""
    elif not re.search(r"\b(and|or|with)\b", text, re.IGNORECASE):
        known = _licensing().known_symbols.values()
        ids = {s.key.casefold(): s.key for s in known if not s.key.startswith("LicenseRef-")}
        close = difflib.get_close_matches("-".join(text[:99].casefold().split()), ids, n=1)
        near = ids[close[0]] if close else ""
    return f" (did you mean {near}?)" if near else ""


def current_id(text: str) -> str:
    """A valid license expression with current ids in place of deprecated ones."""
    return str(_licensing().parse(text).render())


def restrictions(text: str) -> frozenset[str]:
    """Which of ND and NC hold for a valid license expression; of alternatives the mildest."""

    def of(node: Any) -> frozenset[str]:
        parts = [of(part) for part in node.args if hasattr(part, "args")]
        operator = type(node).__name__
        if operator == "OR":
            return min(parts, key=lambda kinds: ("ND" in kinds, len(kinds)))
        if operator == "AND":
            return frozenset().union(*parts)
        # The name of custom terms says nothing about them.
        key = "" if f"{node}".startswith("LicenseRef-") else f"{node}-".upper()
        kinds = {kind for kind in RESTRICTIONS if f"-{kind}-" in key}
        return frozenset(kinds | ({"NC"} if "NONCOMMERCIAL" in key else set()))

    return of(_licensing().parse(text))
