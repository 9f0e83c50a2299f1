"""The files of a version, and its model card."""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from registry_parts import small_release
from styletune.errors import BadInput
from styletune.models.names import public_base
from styletune.models.sdxl import SDXL
from styletune.registry.card import plain
from styletune.registry.package import Evidence, package_files
from styletune.registry.pull import pull
from styletune.registry.release import Preview
from styletune.registry.resolve import parse_spec
from styletune.registry.store import open_store
from styletune.registry.versions import Published
from styletune.runs.documents import (
    BaseFacts,
    DataFacts,
    DeclaredRights,
    OptOutOverride,
    RightsSummary,
    RunFacts,
)
from styletune.runs.summary import (
    Anchors,
    BaseVerdict,
    CheckpointScores,
    ChosenCheckpoint,
    GateVerdict,
    MetricValue,
    Summary,
)

HOSTILE = [
    "a: b\n---\nlicense: mit\n---\n# owned",
    "'\"`|>-%@&*!?{}[]#,\\",
    "``` \n```python\nimport os",
    "<script>alert(1)</script> [x](javascript:alert(1)) ![x](http://evil/x.png)",
    "null",
    "yes",
    "1e5",
    "- item",
    "? key",
    "*alias",
    "&anchor",
    "!!python/object:os.system",
    "\x07\x7f\x85\u2028\u202e\ufeff",
    "🌅 ünï",
    "  spaces  ",
    "a | b | c",
    "\t",
]


def png(color: tuple[int, int, int] = (200, 120, 40)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(stream, "PNG")
    return stream.getvalue()


def metric(value: float) -> MetricValue:
    return MetricValue(value=value, low=value - 0.01, high=value + 0.01, n=48)


GATE = GateVerdict(
    name="palette_ratio",
    value=0.41,
    low=0.3,
    high=0.5,
    threshold=0.7,
    verdict="pass",
    explanation="0.410 of the base's distance",
)


def scores_of(step: int, metrics: dict[str, MetricValue]) -> CheckpointScores:
    return CheckpointScores(
        checkpoint=f"step-{step:06d}",
        step=step,
        strength=0.8,
        metrics=metrics,
        gates=(GATE,),
        passed=True,
        clip_image_gain_p_holm=0.01,
    )


SUMMARY = Summary(
    suite="small",
    suite_hash="5" * 64,
    encoder="open_clip:mini",
    images=48,
    references=5,
    chosen=ChosenCheckpoint(
        checkpoint="step-000200",
        step=200,
        strength=0.8,
        reason="closest, and follows the prompt",
        passed=True,
    ),
    checkpoints=(
        scores_of(100, {"clip_image": metric(0.61)}),
        scores_of(
            200,
            {
                "clip_image": metric(0.7321),
                "odd|metric": metric(0.5),
                "fid": MetricValue(value=31.5, low=None, high=None, n=48),
            },
        ),
    ),
    anchors=Anchors(base={"clip_image": metric(0.5123)}, real={}),
    base=BaseVerdict(gates=(GATE,), passed=False),
    gates=(GATE,),
    anchors_how="",
    fid_note="",
)
DECLARED = (
    DeclaredRights(
        license="CC-BY-4.0", holder="Horizon GmbH", source="own shoot", consent="", images=12
    ),
    DeclaredRights(
        license="LicenseRef-Eve",
        holder="Eve | Ltd",
        source="own shoot",
        consent="by letter",
        images=3,
    ),
)
RIGHTS = RightsSummary(images=15, declared=DECLARED, opt_out=None, lowered={})


def facts_of(rights: RightsSummary = RIGHTS, base: str = "mini") -> RunFacts:
    return RunFacts(
        recipe="secret-launch",
        recipe_hash="f" * 64,
        training_hash="e" * 64,
        seed=7,
        base=BaseFacts(model=base, hash="b" * 64, resolution=1024),
        data=DataFacts(
            fingerprint="d" * 64,
            order="0" * 64,
            train=("secret-launch.png",),
            holdout=(),
            trigger="hrzn",
            palette=(),
            rights=rights,
            warnings=(),
        ),
        versions={"torch": "2.15.0", "diffusers": "0.42.1"},
        platform="somebody's",
        device="cpu of somebody",
    )


WEIGHTS = {
    "diffusers/pytorch_lora_weights.safetensors": b"peft",
    "webui/horizon_v1.2.0.safetensors": b"kohya",
}
SETTINGS = {"prompt": "the sea", "seed": 1, "strength": 0.8}


def build(
    *,
    text: str | None = None,
    license: str = "CC0-1.0",  # noqa: A002
    base: str = "mini",
    rights: RightsSummary = RIGHTS,
    previews: list[Preview] | None = None,
    weights: dict[str, bytes] | None = None,
) -> dict[str, bytes]:
    release = small_release(version="1.2.0", description="Calm horizons." if text is None else text)
    release = replace(
        release,
        license=license,
        holder="Horizon GmbH" if text is None else text,
        base=release.base.model_copy(update={"model": public_base(base)}),
        adapter=release.adapter.model_copy(update={"trigger": "hrzn" if text is None else text}),
    )
    evidence = Evidence(
        family=SDXL,
        facts=facts_of(rights, base),
        summary=SUMMARY,
        recipe_text='[data]\npath = "x"\n',
        report_html=b"<!doctype html>",
    )
    if previews is None:
        prompt = SETTINGS if text is None else {**SETTINGS, "prompt": text}
        previews = [
            Preview(prompt, "one.png", png()),
            Preview({**SETTINGS, "prompt": "the sky"}, "two.png", png((0, 0, 9))),
        ]
    return package_files(release, evidence, weights or WEIGHTS, previews)


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and body, as the Hub parts them: at lines of three dashes."""
    match = re.match(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL)
    assert match is not None
    tree = yaml.safe_load(match.group(1))
    assert isinstance(tree, dict)
    return tree, match.group(2)


def test_package_holds_exactly_the_documented_files() -> None:
    """Two weight files in two folders, sidecars beside the second, papers, checksums."""
    assert sorted(build()) == [
        "LICENSE",
        "NOTICE.md",
        "README.md",
        "SHA256SUMS",
        "diffusers/pytorch_lora_weights.safetensors",
        "eval/metrics.json",
        "eval/report.html",
        "previews/grid.json",
        "previews/one.png",
        "previews/two.png",
        "provenance.json",
        "webui/horizon_v1.2.0.json",
        "webui/horizon_v1.2.0.png",
        "webui/horizon_v1.2.0.safetensors",
    ]


def test_sidecar_has_the_keys_that_the_web_uis_read() -> None:
    """A1111, Forge and InvokeAI read these; the weight is the chosen strength."""
    files = build()
    sidecar = json.loads(files["webui/horizon_v1.2.0.json"])
    assert set(sidecar) == {
        "description",
        "notes",
        "sd version",
        "activation text",
        "preferred weight",
        "negative text",
    }
    assert sidecar["preferred weight"] == 0.8
    assert (sidecar["sd version"], sidecar["activation text"]) == ("Unknown", "hrzn")
    sidecar = json.loads(build(base="acme/sdxl")["webui/horizon_v1.2.0.json"])
    assert sidecar["sd version"] == "SDXL"
    assert files["webui/horizon_v1.2.0.png"] == png()


@pytest.mark.parametrize("text", [None, *HOSTILE])
def test_sums_are_those_of_sha256sum(tmp_path: Path, text: str | None) -> None:
    """The real sha256sum accepts every line, and every file but the list itself is in it."""
    files = build(text=text)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line.removesuffix(": OK") for line in done.stdout.splitlines()} == set(files) - {
        "SHA256SUMS"
    }


def test_provenance_says_where_it_comes_from_and_no_more() -> None:
    """Hashes, versions, seed, recipe and choice; no path and no device of this machine."""
    files = build(base="/home/eve/models/sdxl-fp16")
    tree = json.loads(files["provenance.json"])
    assert tree["recipe_hash"] == "a" * 64
    assert tree["recipe"] == '[data]\npath = "x"\n'
    assert tree["data"] == {"fingerprint": "d" * 64, "rights": RIGHTS.as_json()}
    assert tree["base"] == {"model": "sdxl-fp16", "hash": "b" * 64}
    assert tree["versions"] == {"torch": "2.15.0", "diffusers": "0.42.1"}
    assert (tree["seed"], tree["chosen"]) == (7, SUMMARY.chosen.as_json())
    assert json.loads(files["eval/metrics.json"]) == SUMMARY.public_json()
    for path, content in files.items():
        assert b"/home/eve" not in content, path
        assert b"somebody" not in content, path
        assert b"secret-launch" not in content, path


def test_license_of_each_kind() -> None:
    """CC0 waives by name, a known license is linked, own terms send to their holder."""
    cc0 = build()["LICENSE"].decode()
    assert "SPDX-License-Identifier: CC0-1.0" in cc0
    assert "Horizon GmbH has waived all copyright" in cc0
    own = build(license="LicenseRef-Horizon")["LICENSE"].decode()
    assert "ask Horizon GmbH" in own
    assert "https://creativecommons.org/licenses/by/4.0/" in (
        build(license="CC-BY-4.0")["LICENSE"].decode()
    )


def test_notice_carries_rights_and_flow_down() -> None:
    """The base decides: mini is Apache-2.0, SDXL hands its use restrictions on."""
    mini = build()["NOTICE.md"].decode()
    assert "| 12 | CC-BY-4.0 | Horizon GmbH | own shoot | not stated |" in mini
    assert "| 3 | LicenseRef-Eve | Eve \\| Ltd | own shoot | by letter |" in mini
    assert "prohibit" not in mini
    assert "Apache-2.0" in mini
    assert "RAIL" not in mini
    real = build(base="stabilityai/stable-diffusion-xl-base-1.0")["NOTICE.md"].decode()
    assert "CreativeML Open RAIL++-M" in real
    assert "use restrictions" in real


def with_rights(**changed: object) -> RightsSummary:
    return RIGHTS.model_copy(update=changed)


def test_card_counts_every_right() -> None:
    """Licenses, holders, sources and consents, each with its number of images, most first."""
    card = build()["README.md"].decode()
    assert "15 images" in card
    assert "- License: CC-BY-4.0 (12); LicenseRef-Eve (3)\n" in card
    assert "- Holder: Horizon GmbH (12); Eve \\| Ltd (3)\n" in card
    assert "- Source: own shoot (15)\n" in card
    assert "- Consent: not stated (12); by letter (3)\n" in card


def test_many_sources_stay_a_line_of_the_card() -> None:
    """The card shows the first eight and counts the rest; the notice shows all of them."""
    declared = tuple(
        DECLARED[1].model_copy(update={"source": f"shoot {i:02d}", "images": 1}) for i in range(30)
    )
    files = build(rights=with_rights(declared=declared))
    assert "; shoot 07 (1); and 22 more\n" in files["README.md"].decode()
    assert "shoot 08" not in files["README.md"].decode()
    assert files["NOTICE.md"].decode().count("| shoot ") == 30


def test_overridden_opt_out_and_lowered_errors_are_told() -> None:
    """Whoever gets the adapter reads which prohibitions and faults were passed over, and why."""
    opt_out = OptOutOverride(override="written permission <b>of Eve", terms={"DMI-PROHIBITED": 2})
    files = build(rights=with_rights(opt_out=opt_out, lowered={"too-small": 4}))
    for name in ("NOTICE.md", "README.md"):
        text = files[name].decode()
        assert (
            "Images whose files prohibit training: DMI-PROHIBITED (2). "
            "Used because: written permission &lt;b&gt;of Eve\n" in text
        )
        assert "accepted, by number of images: too-small (4)\n" in text
    assert json.loads(files["provenance.json"])["data"]["rights"]["opt_out"] == opt_out.as_json()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_rights_stay_text(text: str) -> None:
    """Whatever is declared, the notice keeps its rows and columns and the card its headings."""
    entry = DeclaredRights(license=text, holder=text, source=text, consent=text, images=15)
    opt_out = OptOutOverride(override=text, terms={text: 1})
    files = build(rights=with_rights(declared=(entry,), opt_out=opt_out, lowered={text: 1}))
    notice, card = files["NOTICE.md"].decode(), files["README.md"].decode()
    for part in (notice, card.split("## Training images")[1]):
        assert "<script" not in part
        assert "```" not in part
    rows = [line for line in notice.splitlines() if line.startswith("| 15 |")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [6]
    assert [line for line in notice.splitlines() if line.startswith("#")] == [
        "# Notices of horizon",
        "## Training images",
        "## Base model",
    ]


@pytest.mark.parametrize(
    "base", ["mini", "stabilityai/stable-diffusion-xl-base-1.0", "/models/sdxl"]
)
def test_card_front_matter(base: str) -> None:
    """The fields that the Hub and its widget read; only a repository is a base model there."""
    matter = split_card(build(base=base)["README.md"].decode())[0]
    assert matter.get("base_model") == (base if base.startswith("stabilityai/") else None)
    assert {"text-to-image", "diffusers", "lora", "template:sd-lora"} <= set(matter["tags"])
    assert matter["instance_prompt"] == "hrzn"
    assert matter["license"] == "cc0-1.0"
    assert matter["widget"] == [
        {"text": "the sea", "output": {"url": "previews/one.png"}},
        {"text": "the sky", "output": {"url": "previews/two.png"}},
    ]


def test_card_of_own_terms_is_other_on_the_hub() -> None:
    """A license that the Hub does not know is "other" with its name and a link."""
    matter = split_card(build(license="LicenseRef-Horizon")["README.md"].decode())[0]
    assert matter["license"] == "other"
    assert (matter["license_name"], matter["license_link"]) == ("LicenseRef-Horizon", "LICENSE")


def test_card_body_tells_how_well_and_how_to_use() -> None:
    """Score of the chosen checkpoint beside the base, intervals, verdict, three tools."""
    card = build()["README.md"].decode()
    assert "| 0.7321 | 0.7221 to 0.7421 | 0.5123 | 48 |" in card
    assert "0.61" not in card
    assert "| 31.5 | – | – | 48 |" in card
    assert "odd\\|metric" in card
    assert "| 0.41 | 0.3 to 0.5 | 0.7 | pass |" in card
    assert "<lora:horizon_v1.2.0:0.8>" in card
    assert 'weight_name="pytorch_lora_weights.safetensors"' in card
    assert "horizon/1.2.0/diffusers" in card
    assert "ComfyUI" in card


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    """Whatever a name, trigger or prompt holds: the YAML gives it back, the body is unharmed."""
    card = build(text=text, license=text.strip() or "x")["README.md"].decode()
    matter, body = split_card(card)
    assert matter["instance_prompt"] == text
    assert matter["widget"][0]["text"] == text
    assert matter["license"] == "other"
    assert "<script" not in body.split("```")[0]
    assert body.count("```") == 2
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert [line for line in body.split("\n") if line.startswith("# ")] == ["# horizon 1.2.0"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hub_library_reads_the_same(text: str) -> None:
    """huggingface_hub, which reads cards in the wild, finds the same fields."""
    from huggingface_hub import ModelCard

    data = ModelCard(build(text=text)["README.md"].decode()).data.to_dict()
    assert data["instance_prompt"] == text
    assert data["license"] == "cc0-1.0"


def test_plain_shows_as_written() -> None:
    """Markdown's and HTML's signs are escaped, lines and controls are folded."""
    assert plain("a\n# b") == r"a \# b"
    assert plain("<b>&") == "&lt;b&gt;&amp;"
    assert [plain(text) for text in ("1. x", "1.2.0", "- x", "---")] == [
        r"1\. x",
        "1.2.0",
        r"\- x",
        r"\---",
    ]
    assert plain("a\u202eb") == "a b"
    assert plain("`*_|[]") == r"\`\*\_\|\[\]"


def test_wrong_parts_are_refused() -> None:
    """Other weight names, a preview that is no PNG, a picture without its prompt."""
    with pytest.raises(BadInput, match="webui/horizon_v1"):
        build(weights={"pytorch_lora_weights.safetensors": b""})
    with pytest.raises(BadInput, match="not a PNG"):
        build(previews=[Preview(SETTINGS, "one.png", b"GIF89a")])
    with pytest.raises(BadInput, match="no prompt"):
        build(previews=[Preview({"seed": 1}, "one.png", png())])


def test_prompt_without_a_picture_is_kept_out_of_the_widget() -> None:
    """A version without previews still packs: no web picture, no widget, prompts recorded."""
    files = build(previews=[Preview({"prompt": "the sea", "seed": 3})])
    assert "webui/horizon_v1.2.0.png" not in files
    assert "widget" not in split_card(files["README.md"].decode())[0]
    assert json.loads(files["previews/grid.json"]) == {
        "previews": [{"prompt": "the sea", "seed": 3}]
    }


def test_same_input_gives_the_same_bytes() -> None:
    """Nothing in a package comes from the clock or the machine."""
    assert build() == build()


def test_package_survives_publish_and_pull(
    tmp_path: Path, publish: Callable[..., Published]
) -> None:
    """The packed files go through a registry and come out verified."""
    store = open_store(tmp_path / "registry", create=True)
    publish(store, "1.2.0", files=build())
    folder = pull(store, parse_spec("horizon@~1.2"), tmp_path / "out").dir
    subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert (folder / "webui" / "horizon_v1.2.0.safetensors").is_file()
