"""From a request (``horizon@^1.2``) to one version."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from obstore.store import ObjectStore

from styletune.errors import BadInput, NotFound
from styletune.registry.manifest import Manifest, Version, parse_version
from styletune.registry.versions import check_name, list_names, list_versions, read_manifest

ReleaseNumbers = tuple[int, int, int]

_EXAMPLES = "horizon, horizon@1.2.3, horizon@^1, horizon@~1.2, horizon@>=1.0,<2"
_COMPARE: dict[str, Callable[[ReleaseNumbers, ReleaseNumbers], bool]] = {
    "==": operator.eq,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_MAX_CHARACTERS = 300
_NUMBER = "0|[1-9][0-9]{0,8}"
_TERM = re.compile(rf"(\^|~|>=|<=|>|<)({_NUMBER})(?:\.({_NUMBER}))?(?:\.({_NUMBER}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Spec:
    """A request: one exact version, or every release that meets all bounds."""

    name: str
    text: str
    exact: Version | None
    bounds: tuple[tuple[str, ReleaseNumbers], ...]


def parse_spec(text: str) -> Spec:
    """Read ``name``, ``name@1.2.3``, ``name@^1.2``, ``name@~1.2`` or ``name@>=1.0,<2``.

    ``^`` keeps the leftmost number that is not zero, ``~`` keeps major and minor (or only major,
    when only that is given); missing numbers of a bound are zero.

    Raises:
        BadInput: none of these.
    """
    if len(text) > _MAX_CHARACTERS:
        raise BadInput(
            f"is longer than any adapter's name and version: {text[:60]}…",
            where="version",
            fix=f"such as {_EXAMPLES}",
        )
    name, at, version = text.partition("@")
    try:
        check_name(name)
        if not at:
            return Spec(name, text, None, ())
        if version[:1].isdigit():
            return Spec(name, text, parse_version(version), ())
    except BadInput as error:
        raise BadInput(error.message, where=text, fix=_near_spec(name, version)) from None
    bounds: list[tuple[str, ReleaseNumbers]] = []
    for term in version.split(","):
        match = _TERM.fullmatch(term.strip())
        if match is None:
            raise BadInput(
                f'"{version}" is not a version or a range', where=text, fix=f"such as {_EXAMPLES}"
            )
        bounds += _bounds(match.group(1), [int(part) for part in match.groups()[1:] if part])
    return Spec(name, text, None, tuple(bounds))


def _near_spec(name: str, version: str) -> str:
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", version, re.ASCII):
        return f"did you mean {name}@^{version} or {name}@~{version}?"
    return f"such as {_EXAMPLES}"


def _bounds(sign: str, numbers: list[int]) -> list[tuple[str, ReleaseNumbers]]:
    major, minor, patch = (*numbers, 0, 0)[:3]
    low = (major, minor, patch)
    if sign == "~":
        return [
            (">=", low),
            ("<", (major, minor + 1, 0) if len(numbers) > 1 else (major + 1, 0, 0)),
        ]
    if sign == "^":
        # semver's caret: 0.x promises nothing between minors, 0.0.x nothing between patches.
        if major or len(numbers) == 1:
            return [(">=", low), ("<", (major + 1, 0, 0))]
        if minor or len(numbers) == 2:
            return [(">=", low), ("<", (0, minor + 1, 0))]
        return [("==", low)]
    return [(sign, low)]


def matches(spec: Spec, version: Version) -> bool:
    """Whether a version answers the spec; prereleases only when asked for exactly."""
    if spec.exact is not None:
        return version == spec.exact
    return not version.pre and all(
        _COMPARE[sign](version.release, bound) for sign, bound in spec.bounds
    )


def resolve(store: ObjectStore, spec: Spec) -> tuple[Manifest, str]:
    """The highest version that answers the spec, with its manifest's digest.

    Raises:
        NotFound: no such adapter (with the nearest name) or version (with those there are).
        IntegrityError: its manifest was changed.
    """
    versions = [parse_version(text) for text in list_versions(store, spec.name)]
    if not versions:
        names = list_names(store)
        near = difflib.get_close_matches(spec.name, names, n=1, cutoff=0.5)
        there = f"adapters there: {', '.join(names) or 'none'}"
        raise NotFound(
            f'no adapter "{spec.name}"',
            where=spec.text,
            fix=f"did you mean {near[0]}? {there}" if near else there,
        )
    matching = [version for version in versions if matches(spec, version)]
    if not matching:
        published = ", ".join(str(version) for version in versions)
        hint = "" if any(not v.pre for v in versions) else "; prereleases must be asked for exactly"
        raise NotFound(
            f'no version of "{spec.name}" answers this',
            where=spec.text,
            fix=f"published versions: {published}{hint}",
        )
    return read_manifest(store, spec.name, str(max(matching)))
