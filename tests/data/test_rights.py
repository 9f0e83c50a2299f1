"""Opt-outs in real files, licenses, and what is told of the rights."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from styletune.data.findings import Finding
from styletune.data.inspection.opt_out import UNREADABLE, opt_out_term, prohibits_training
from styletune.data.licenses import license_problem, restrictions
from styletune.data.rights import (
    publishable_problem,
    rights_findings,
    rights_summary,
)
from styletune.data.sources.items import Item, Rights

VOCABULARY = "http://ns.useplus.org/ldf/vocab/"
PLUS = 'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"'
FULL = Rights("CC-BY-4.0", "Ada Ltd", "letter of 2026-03-01", "studio shoot")


def packet(*descriptions: str) -> bytes:
    """An XMP packet as Adobe's tools wrap it."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f"{''.join(descriptions)}</rdf:RDF></x:xmpmeta>\n   \n"
        '<?xpacket end="w"?>'
    ).encode()


def as_element(value: str) -> str:
    return (
        f'<rdf:Description rdf:about="" {PLUS}><plus:DataMining>{value}</plus:DataMining>'
        "</rdf:Description>"
    )


def as_attribute(value: str) -> str:
    return f'<rdf:Description rdf:about="" {PLUS} plus:DataMining="{value}"/>'


OTHER = (
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">'
    '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">DMI-PROHIBITED is a term</rdf:li>'
    "</rdf:Alt></dc:description></rdf:Description>"
)


def file_with(xmp: bytes, kind: str) -> io.BytesIO:
    """A small image file of a kind, with an XMP packet."""
    stream, image = io.BytesIO(), Image.new("RGB", (48, 32), (200, 90, 30))
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        image.save(stream, kind, pnginfo=info)
    elif kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[700] = xmp
        tags.tagtype[700] = 1
        image.save(stream, kind, tiffinfo=tags)
    else:
        image.save(stream, kind, xmp=xmp)
    stream.seek(0)
    return stream


def term_of(xmp: bytes, kind: str = "JPEG") -> str:
    with Image.open(file_with(xmp, kind)) as image:
        return opt_out_term(image)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("form", [as_element, as_attribute])
def test_opt_out_is_found_in_every_kind_of_file(kind: str, form: Callable[[str], str]) -> None:
    """Element and attribute, behind another description: the file's term is read."""
    xmp = packet(OTHER, form(f"{VOCABULARY}DMI-PROHIBITED-GENAIMLTRAINING"))
    assert term_of(xmp, kind) == "DMI-PROHIBITED-GENAIMLTRAINING"
    assert term_of(packet(OTHER), kind) == ""


def test_opt_out_is_found_in_heic() -> None:
    """Photographs of telephones as well."""
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    heif = pillow_heif.from_pillow(Image.new("RGB", (64, 64)))
    heif.save(stream, xmp=packet(as_attribute(f"{VOCABULARY}DMI-PROHIBITED")))
    with pillow_heif.HeifImageFile(stream) as image:
        assert image.format == "HEIF"
        assert opt_out_term(image) == "DMI-PROHIBITED"


def test_png_opt_out_behind_the_pixels_is_found() -> None:
    """A chunk that comes after the image data counts, although opening does not read it."""
    content = file_with(packet(as_element(f"{VOCABULARY}DMI-PROHIBITED")), "PNG").getvalue()
    start = content.index(b"iTXt") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    tail = content.index(b"IEND") - 4
    moved = content[:start] + content[end:tail] + content[start:end] + content[tail:]
    with Image.open(io.BytesIO(moved)) as image:
        assert "xmp" not in image.info
        assert opt_out_term(image) == "DMI-PROHIBITED"


@pytest.mark.parametrize(
    "value",
    [
        f"{VOCABULARY}DMI-PROHIBITED",
        "https://ns.useplus.org/LDF/vocab#DMI-PROHIBITED",
        "plus:DMI-PROHIBITED",
        "DMI-PROHIBITED",
        "\n    dmi-prohibited\n  ",
    ],
)
@pytest.mark.parametrize("form", [as_element, as_attribute])
def test_every_way_to_write_the_term(value: str, form: Callable[[str], str]) -> None:
    """Full and prefixed URIs, bare ids, any case, blanks around: one id comes out."""
    assert term_of(packet(form(value))) == "DMI-PROHIBITED"


def test_other_shapes_of_rdf() -> None:
    """A resource, a list and another prefix for the namespace mean the same."""
    resource = (
        f'<rdf:Description {PLUS}><plus:DataMining rdf:resource="{VOCABULARY}DMI-PROHIBITED"/>'
        "</rdf:Description>"
    )
    listed = as_element(f"<rdf:Bag><rdf:li>{VOCABULARY}DMI-PROHIBITED</rdf:li></rdf:Bag>")
    renamed = (
        as_attribute(f"{VOCABULARY}DMI-PROHIBITED").replace("plus:", "q:").replace(":plus=", ":q=")
    )
    for description in (resource, listed, renamed):
        assert term_of(packet(description)) == "DMI-PROHIBITED", description
    stranger = as_element("DMI-PROHIBITED").replace("useplus", "example")
    assert term_of(packet(stranger)) == ""


def test_the_strictest_term_counts() -> None:
    """Permission in one description does not undo the prohibition in another."""
    allowed, odd = as_attribute(f"{VOCABULARY}DMI-ALLOWED"), as_element("ask my agent")
    assert term_of(packet(allowed)) == "DMI-ALLOWED"
    assert term_of(packet(allowed, odd)) == "ask my agent"
    prohibited = as_element(f"{VOCABULARY}DMI-PROHIBITED-SEECONSTRAINT")
    assert term_of(packet(allowed, odd, prohibited)) == "DMI-PROHIBITED-SEECONSTRAINT"


@pytest.mark.parametrize(
    ("term", "prohibits"),
    [
        ("DMI-UNSPECIFIED", False),
        ("DMI-ALLOWED", False),
        ("DMI-PROHIBITED-AIMLTRAINING", True),
        ("DMI-PROHIBITED-GENAIMLTRAINING", True),
        ("DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", True),
        ("DMI-PROHIBITED", True),
        ("DMI-PROHIBITED-SEECONSTRAINT", True),
        ("DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR", True),
        ("DMI-PROHIBITED-SEELINKEDRIGHTSEXPR", True),
        ("Prohibited for AI/ML training", True),
        ("", False),
        (UNREADABLE, False),
    ],
)
def test_vocabulary(term: str, prohibits: bool) -> None:
    """Of the nine terms only the first two leave training free; labels mean what they say."""
    assert prohibits_training(term) is prohibits


def test_damaged_xmp_is_no_permission() -> None:
    """A cut packet is told from no packet, and what it still forbids is forbidden."""
    whole = packet(as_attribute(f"{VOCABULARY}DMI-ALLOWED"))
    assert term_of(whole[:-40]) == UNREADABLE
    assert term_of(b"\xff\xfe\x00garbage") == UNREADABLE
    assert term_of(packet(as_element(f"{VOCABULARY}DMI-PROHIBITED"))[:-60]) == "DMI-PROHIBITED"
    assert term_of(b"\0\0  \n") == ""


def test_xmp_cannot_attack() -> None:
    """Entities are not expanded: neither a billion laughs nor a file of this machine."""
    laughs = '<!DOCTYPE r [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
    )
    start = time.process_time()
    assert term_of((laughs + "]><r>&j;</r>").encode()) == UNREADABLE
    outside = b'<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/passwd">]><r>&a;</r>'
    assert term_of(outside) == UNREADABLE
    assert time.process_time() - start < 1


def test_nothing_is_printed_about_ordinary_images() -> None:
    """No warning from Pillow or the parser, and no term, for images without any metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opt_out_term(Image.new("RGB", (4, 4))) == ""
        assert term_of(packet(OTHER)) == ""


@pytest.mark.parametrize(
    "text",
    [
        "CC-BY-4.0",
        "cc0-1.0",
        "CC-BY-4.0 OR MIT",
        "(MIT AND Apache-2.0) OR LicenseRef-Acme",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "LicenseRef-Acme.internal-2",
        "GPL-2.0",
        "DocumentRef-terms:LicenseRef-Acme",
    ],
)
def test_spdx_expressions_are_accepted(text: str) -> None:
    """Ids in any case, expressions, exceptions and terms of one's own."""
    assert license_problem(text) is None


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("CC-BY 4.0", "CC-BY-4.0"),
        ("CC BY 4.0", "CC-BY-4.0"),
        ("Apache 2.0", "Apache-2.0"),
        ("CC0", "CC0-1.0"),
        ("MIT OR CC-BY 4.0", "CC-BY-4.0"),
        ("LicenseRef Acme Ltd", "LicenseRef-Acme-Ltd"),
        ("LicenseRef-", None),
        ("all rights reserved, 2026", None),
        ("MIT AND", None),
        ("()", None),
        ("MIT AND ()", None),
        ("(AND MIT", None),
        ("MIT WITH MIT", None),
        ("", None),
        ("€ ((", None),
        ("x" * 100_000, None),
    ],
)
def test_other_licenses_are_refused(text: str, near: str | None) -> None:
    """What is not SPDX is said to be so, with the nearest id if there is one."""
    problem = license_problem(text)
    assert problem is not None
    assert "not an SPDX license" in problem
    if near:
        assert f"did you mean {near}?" in problem
    else:
        assert "did you mean" not in problem


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("CC-BY-ND-4.0", {"ND"}),
        ("cc-by-nc-sa-4.0", {"NC"}),
        ("CC-BY-NC-ND-3.0-DE", {"NC", "ND"}),
        ("PolyForm-Noncommercial-1.0.0", {"NC"}),
        ("CC-BY-NC-ND-4.0 OR MIT", set()),
        ("CC-BY-ND-4.0 OR CC-BY-NC-4.0", {"NC"}),
        ("CC-BY-ND-4.0 AND CC-BY-NC-4.0", {"NC", "ND"}),
        ("(CC-BY-ND-4.0 AND MIT) OR CC-BY-NC-4.0", {"NC"}),
        ("LicenseRef-Acme-ND", set()),
        ("CC-BY-SA-4.0", set()),
        ("NCSA", set()),
    ],
)
def test_restrictions(text: str, kinds: set[str]) -> None:
    """Both parts of AND hold; of alternatives one may choose the mildest."""
    assert restrictions(text) == kinds


def item(name: str, rights: Rights = FULL) -> Item:
    return Item(name, f"/x/{name}", "", "a caption", "x", rights=rights)


def found(*items: Item, require: bool = False) -> list[Finding]:
    return rights_findings(items, {}, require=require, override=None)


def test_whole_rights_have_no_findings() -> None:
    """License, holder, consent and source of every image, and nothing more to say."""
    assert found(item("a.png"), item("b.png"), require=True) == []
    assert publishable_problem([item("a.png"), item("b.png")]) is None


def test_missing_rights_are_counted_by_kind() -> None:
    """One finding names the images, and how many lack what; blanks are not a declaration."""
    items = [
        item("a.png"),
        item("b.png", Rights("CC-BY-4.0", "Ada Ltd", "", " ")),
        item("c.png", Rights("", "Ada Ltd", "", "shoot")),
    ]
    (finding,) = found(*items)
    assert (finding.code, finding.severity) == ("missing-rights", "warning")
    assert finding.files == ("b.png", "c.png")
    assert "2 of 3 images" in finding.message
    assert "license of 1, consent of 2 and source of 1" in finding.message
    assert "dataset.toml" in finding.fix
    assert found(*items, require=True)[0].severity == "error"


def test_bad_license_is_an_error_once_for_all_its_images() -> None:
    """Images of one wrong license make one finding; a second wrong one makes a second."""
    wrong = Rights("CC-BY 4.0", "Ada Ltd", "yes", "shoot")
    other = Rights("mine", "Ada Ltd", "yes", "shoot")
    first, second = found(item("a.png", wrong), item("b.png", other), item("c.png", wrong))
    assert (first.code, first.severity, first.files) == ("bad-license", "error", ("a.png", "c.png"))
    assert "did you mean CC-BY-4.0?" in first.message
    assert "LicenseRef-" in first.fix
    assert second.files == ("b.png",)


def test_deprecated_id_is_a_warning_with_the_new_one() -> None:
    """An id that SPDX renamed is still clear, so it stops nothing."""
    (finding,) = found(item("a.png", Rights("GPL-2.0", "Ada Ltd", "yes", "shoot")))
    assert (finding.code, finding.severity) == ("bad-license", "warning")
    assert "GPL-2.0-only" in finding.fix


def test_restricted_licenses_say_what_they_mean_for_an_adapter() -> None:
    """NC and ND each get a warning in training; ND stops publishing."""
    rights = Rights("CC-BY-NC-ND-4.0", "Ada Ltd", "yes", "shoot")
    commercial, derived = found(item("a.png", rights), require=True)
    assert {commercial.code, derived.code} == {"restricted-license"}
    assert {commercial.severity, derived.severity} == {"warning"}
    assert "prohibits commercial use" in commercial.message
    assert "can be trained but not published" in derived.message
    problem = publishable_problem([item("a.png", rights), item("b.png")])
    assert problem is not None
    assert (problem.code, problem.severity, problem.files) == (
        "restricted-license",
        "error",
        ("a.png",),
    )
    only_nc = Rights("CC-BY-NC-4.0", "Ada Ltd", "yes", "shoot")
    assert publishable_problem([item("a.png", only_nc)]) is None


@pytest.mark.parametrize(
    ("rights", "code"),
    [
        (Rights("", "Ada Ltd", "yes", "shoot"), "missing-rights"),
        (Rights("CC0-1.0", "", "yes", "shoot"), "missing-rights"),
        (Rights("CC0-1.0", "Ada Ltd", "", "shoot"), "missing-rights"),
        (Rights("CC0-1.0", "Ada Ltd", "yes", ""), "missing-rights"),
        (Rights("mine", "Ada Ltd", "yes", "shoot"), "bad-license"),
    ],
)
def test_publishing_needs_every_right_of_every_image(rights: Rights, code: str) -> None:
    """One image without one of the four stops the publishing of all."""
    problem = publishable_problem([item("a.png"), item("b.png", rights)])
    assert problem is not None
    assert (problem.code, problem.severity, problem.files) == (code, "error", ("b.png",))


OPT_OUTS = {
    "a.png": "DMI-PROHIBITED",
    "b.png": "",
    "c.png": "DMI-ALLOWED",
    "d.png": "DMI-PROHIBITED-AIMLTRAINING",
}


def test_opt_out_is_an_error_that_names_terms_and_files() -> None:
    """Prohibited images stop training; permitted ones and those without a term do not."""
    items = [item(name) for name in OPT_OUTS]
    (finding,) = rights_findings(items, OPT_OUTS, require=True, override=None)
    assert (finding.code, finding.severity) == ("opt-out", "error")
    assert finding.files == ("a.png", "d.png")
    assert "DMI-PROHIBITED (1), DMI-PROHIBITED-AIMLTRAINING (1)" in finding.message
    assert rights_findings(items, OPT_OUTS, require=True, override="  ") == [finding]


def test_override_is_quoted_in_a_warning() -> None:
    """A recorded override lets training go on, and everyone reads it."""
    items = [item(name) for name in OPT_OUTS]
    why = "Ada, 2026-03-01: the photographer agreed in writing"
    (finding,) = rights_findings(items, OPT_OUTS, require=True, override=why)
    assert (finding.code, finding.severity) == ("opt-out", "warning")
    assert why in finding.message
    assert finding.files == ("a.png", "d.png")


def test_unclear_opt_out_is_a_warning_with_or_without_an_override() -> None:
    """XMP that cannot be read, or says something of its own, is for a person to look at."""
    opt_outs = {"a.png": UNREADABLE, "b.png": "ask my agent"}
    for override in (None, "Ada said so"):
        (finding,) = rights_findings([], opt_outs, require=True, override=override)
        assert (finding.code, finding.severity) == ("opt-out", "warning")
        assert finding.files == ("a.png", "b.png")
        assert "ask my agent (1), unreadable (1)" in finding.message


def test_summary_counts_and_names_no_file() -> None:
    """Combinations with their numbers, override and lowered codes; no file name, no caption."""
    bare = Rights("CC0-1.0", "Eve")
    items = [item("a.png", bare), item("secret-b.png"), item("c.png"), item("d.png")]
    lowered = [
        Finding("too-small", ("a.png", "c.png"), "small: secret-b.png", "x", "warning"),
        Finding("too-small", ("c.png",), "x", "x", "warning"),
    ]
    summary = rights_summary(items, opt_outs=OPT_OUTS, override="Ada agreed", lowered=lowered)
    assert summary.as_json() == {
        "images": 4,
        "declared": [
            {
                "license": "CC-BY-4.0",
                "holder": "Ada Ltd",
                "consent": "letter of 2026-03-01",
                "source": "studio shoot",
                "images": 3,
            },
            {"license": "CC0-1.0", "holder": "Eve", "consent": "", "source": "", "images": 1},
        ],
        "opt_out": {
            "override": "Ada agreed",
            "terms": {"DMI-PROHIBITED": 1, "DMI-PROHIBITED-AIMLTRAINING": 1},
        },
        "lowered": {"too-small": 2},
    }
    assert ".png" not in json.dumps(summary.as_json())
    assert "a caption" not in json.dumps(summary.as_json())
    again = rights_summary(items[::-1], opt_outs=OPT_OUTS, override="Ada agreed", lowered=lowered)
    assert again == summary
    assert rights_summary(items, opt_outs={}, override="Ada agreed").opt_out is None


def test_holder_names_are_a_line() -> None:
    """The holder of most images first; many are counted, none is the empty string."""
    items = [item(f"{i}.png", Rights(holder=f"H{min(i, 4)}")) for i in range(8)]
    summary = rights_summary(items, opt_outs={}, override=None)
    assert summary.holder_names() == "H4, H0, H1 and 2 more"
    one = rights_summary([item("a")], opt_outs={}, override=None)
    assert one.holder_names() == "Ada Ltd"
    nobody = rights_summary([item("a", Rights())], opt_outs={}, override=None)
    assert nobody.holder_names() == ""


def test_license_library_is_not_loaded_before_it_is_needed() -> None:
    """Importing the room costs nobody the list of licenses."""
    code = (
        "import sys, styletune.data.rights, styletune.project.init\n"
        "bad = {'license_expression', 'boolean', 'defusedxml'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
