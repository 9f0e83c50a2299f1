"""From a spec to a version."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from obstore.store import ObjectStore

from registry_parts import publish_small
from styletune.errors import BadInput, NotFound
from styletune.registry.resolve import parse_spec, resolve
from styletune.registry.store import open_store
from styletune.registry.versions import Published

VERSIONS = (
    "0.0.3",
    "0.0.4",
    "0.2.0",
    "0.2.9",
    "0.3.0",
    "1.0.0",
    "1.2.0",
    "1.2.3",
    "1.2.10",
    "1.10.0",
    "2.0.0",
    "2.1.0-rc.1",
)


@pytest.fixture(scope="module")
def full() -> ObjectStore:
    store = open_store("memory:///", create=True)
    for version in VERSIONS:
        publish_small(store, version)
    return store


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("horizon", "2.0.0"),
        ("horizon@1.2.0", "1.2.0"),
        ("horizon@2.1.0-rc.1", "2.1.0-rc.1"),
        ("horizon@^1", "1.10.0"),
        ("horizon@^1.2", "1.10.0"),
        ("horizon@^1.2.3", "1.10.0"),
        ("horizon@^2", "2.0.0"),
        ("horizon@^0", "0.3.0"),
        ("horizon@^0.2", "0.2.9"),
        ("horizon@^0.2.1", "0.2.9"),
        ("horizon@^0.0.3", "0.0.3"),
        ("horizon@^0.0", "0.0.4"),
        ("horizon@~1", "1.10.0"),
        ("horizon@~1.2", "1.2.10"),
        ("horizon@~1.2.3", "1.2.10"),
        ("horizon@~0.0.3", "0.0.4"),
        ("horizon@>=1.0,<2", "1.10.0"),
        ("horizon@>=1.0, <=1.2.3", "1.2.3"),
        ("horizon@>1,<1.2.3", "1.2.0"),
    ],
)
def test_spec_resolves_to_the_highest_match(full: ObjectStore, text: str, version: str) -> None:
    """Each form of spec finds the highest release inside its bounds."""
    manifest, digest = resolve(full, parse_spec(text))
    assert manifest.version == version
    assert len(digest) == 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@1.0.0",
        "horizon@",
        "horizon@1",
        "horizon@1.2",
        "horizon@latest",
        "horizon@^",
        "a b",
        "horizon@^1.2.3.4",
        "horizon@^01",
        "horizon@>=1,",
        "horizon@==1.0.0",
        "Horizon@1.0.0",
        "../x@1.0.0",
        "horizon@1.0.0@2",
        "horizon@^1.0.0-rc.1",
    ],
)
def test_nonsense_is_bad_input_with_examples(text: str) -> None:
    """What is no spec is refused, with one that would do."""
    with pytest.raises(BadInput) as caught:
        parse_spec(text)
    assert "horizon@" in caught.value.fix


def test_partial_version_is_asked_back() -> None:
    """A bare "1.2" could be a range or a version; the error offers both ranges."""
    with pytest.raises(BadInput, match=r"did you mean horizon@\^1\.2 or horizon@~1\.2\?"):
        parse_spec("horizon@1.2")


def test_no_match_names_the_versions(full: ObjectStore) -> None:
    """A range that nothing answers lists what there is."""
    with pytest.raises(NotFound, match=r"1\.2\.10"):
        resolve(full, parse_spec("horizon@^3"))
    with pytest.raises(NotFound, match=r"2\.1\.0-rc\.1"):
        resolve(full, parse_spec("horizon@1.2.4"))


def test_misspelled_name_gets_the_nearest(full: ObjectStore) -> None:
    """An adapter that is not there brings the nearest that is."""
    with pytest.raises(NotFound, match=r"did you mean horizon\?"):
        resolve(full, parse_spec("horizn@^1"))


def test_prerelease_alone_is_not_taken_unasked(
    store: ObjectStore, publish: Callable[..., Published]
) -> None:
    """With nothing but a prerelease the bare name finds nothing, and the error says why."""
    publish(store, "1.0.0-rc.1")
    with pytest.raises(NotFound, match="asked for exactly"):
        resolve(store, parse_spec("horizon"))
    assert resolve(store, parse_spec("horizon@1.0.0-rc.1"))[0].version == "1.0.0-rc.1"
