"""The files of one published version, laid out for every tool that reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from styletune.errors import BadInput
from styletune.hub import is_hub_id
from styletune.models.family import Family
from styletune.models.names import base_words
from styletune.registry.card import NOT_STATED, model_card, plain, rights_notes
from styletune.registry.manifest import parse_version
from styletune.registry.provenance import Provenance, ProvenanceBase, ProvenanceData
from styletune.registry.release import Preview, Release
from styletune.registry.versions import check_name
from styletune.runs.documents import RightsSummary, RunFacts
from styletune.runs.summary import Summary

DIFFUSERS_WEIGHTS = "diffusers/pytorch_lora_weights.safetensors"
DIFFUSERS_EMBEDDINGS = "diffusers/learned_embeds.safetensors"
_CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
_PUBLIC_LINKS = {
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC-BY-NC-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a version takes over from its run.

    ``recipe_text`` is the resolved recipe as TOML, as others may see it; ``report_html`` the
    report, if there is one; ``family`` is the base model's.
    """

    family: Family
    facts: RunFacts
    summary: Summary
    recipe_text: str
    report_html: bytes | None


def package_files(
    release: Release,
    evidence: Evidence,
    weights: Mapping[str, bytes],
    previews: Sequence[Preview],
) -> dict[str, bytes]:
    """All files of a version but ``manifest.json``: relative path to content.

    Args:
        release: what the version declares.
        evidence: what it takes over from its run; of the facts only what ``provenance.json`` names.
        weights: exactly ``diffusers/pytorch_lora_weights.safetensors`` (PEFT names) and
            ``webui/<name>_v<version>.safetensors`` (kohya names); with new words also
            ``diffusers/learned_embeds.safetensors``.
        previews: their settings are written as they are to ``previews/grid.json``; the first
            picture is that of the web UIs.

    Raises:
        BadInput: a name, version, weight file or preview is missing or not usable.
    """
    _check(release, weights, previews)
    stem, summary = release.stem, evidence.summary
    provenance = _provenance(release, evidence)
    files = dict(weights)
    files[f"webui/{stem}.json"] = _json(
        _sidecar(release, summary.chosen.checkpoint, evidence.family)
    )
    pictures = {preview.file: preview.content for preview in previews if preview.file}
    if pictures:
        files[f"webui/{stem}.png"] = next(iter(pictures.values()))
    files |= {f"previews/{file}": content for file, content in pictures.items()}
    files["previews/grid.json"] = _json({"previews": [preview.as_json() for preview in previews]})
    files["eval/metrics.json"] = _json(summary.public_json())
    if evidence.report_html is not None:
        files["eval/report.html"] = evidence.report_html
    files["provenance.json"] = _json(provenance.as_json())
    files["LICENSE"] = license_text(release).encode()
    files["NOTICE.md"] = notice_text(release, provenance.data.rights, evidence.family).encode()
    card = model_card(release, provenance, summary, previews, evidence.family)
    files["README.md"] = card.encode()
    files["SHA256SUMS"] = sha256_sums(files)
    return files


def sha256_sums(files: Mapping[str, bytes]) -> bytes:
    """What ``sha256sum`` prints for these files, sorted by path; ``sha256sum -c`` reads it."""
    lines = [f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files)]
    return "".join(lines).encode()


def _check(release: Release, weights: Mapping[str, bytes], previews: Sequence[Preview]) -> None:
    check_name(release.name)
    parse_version(release.version)
    expected = {DIFFUSERS_WEIGHTS, f"webui/{release.stem}.safetensors"}
    if set(weights) - {DIFFUSERS_EMBEDDINGS} != expected:
        raise BadInput(
            f"weights are {sorted(weights)}", where="weights", fix=f"give {sorted(expected)}"
        )
    for preview in previews:
        if "prompt" not in preview.settings:
            raise BadInput(
                f"the settings have no prompt: {dict(preview.settings)}",
                where=f"previews/{preview.file}",
                fix="sample it again",
            )
        is_png = preview.content.startswith(b"\x89PNG\r\n\x1a\n")
        if preview.file and not (is_png and preview.file.endswith(".png")):
            raise BadInput(
                "not a PNG file", where=f"previews/{preview.file}", fix="save it as .png"
            )


def _sidecar(release: Release, checkpoint: str, family: Family) -> dict[str, Any]:
    """The ``<stem>.json`` beside the weights; A1111, Forge and InvokeAI read these keys."""
    strength = release.adapter.strength
    return {
        "description": release.description,
        "notes": f"{release.name} {release.version}, {release.license}; chosen at strength "
        f"{strength:g} ({checkpoint})",
        "sd version": base_words(release.base.model, family).webui_version,
        "activation text": release.adapter.trigger,
        "preferred weight": strength,
        "negative text": "",
    }


def _provenance(release: Release, evidence: Evidence) -> Provenance:
    facts = evidence.facts
    return Provenance(
        recipe_hash=release.recipe_hash,
        recipe=evidence.recipe_text,
        data=ProvenanceData(fingerprint=facts.data.fingerprint, rights=facts.data.rights),
        # A local path is nobody else's business.
        base=ProvenanceBase(model=release.base.model, hash=facts.base.hash),
        versions=facts.versions,
        seed=facts.seed,
        chosen=evidence.summary.chosen,
    )


def license_text(release: Release) -> str:
    """The ``LICENSE`` file: the terms of the adapter, by their SPDX id."""
    name, spdx = release.name, release.license
    holder = " ".join((release.holder or NOT_STATED).split())
    head = f"{name} {release.version}\nSPDX-License-Identifier: {spdx}\n\n"
    if spdx == "CC0-1.0":
        return head + (
            f"To the extent possible under law, {holder} has waived all copyright and related or\n"
            f"neighboring rights to the adapter {name} (its weights, previews and documents). The\n"
            "work is offered as-is, without warranties of any kind.\n\n"
            f"The legal code: {_CC0}legalcode\nIn short: {_CC0}\n"
        )
    if spdx.startswith("LicenseRef-"):
        terms = f"These are terms of {holder}'s own; ask {holder} for their text before use."
    else:
        link = _PUBLIC_LINKS.get(spdx, f"https://spdx.org/licenses/{spdx}.html")
        terms = f"The text of the license: {link}"
    return head + (
        f"Copyright {holder}.\n\nThe adapter {name} (its weights, previews and documents) is\n"
        f"licensed under {spdx}. {terms}\n"
    )


def notice_text(release: Release, rights: RightsSummary, family: Family) -> str:
    """``NOTICE.md``: rights in the training images, and what the base model's license asks.

    Every combination of ``rights`` is shown with its number of images.
    """
    keys = {
        "images": "Images",
        "license": "License",
        "holder": "Holder",
        "source": "Source",
        "consent": "Consent",
    }
    table = [f"| {' | '.join(keys.values())} |", f"|{'---|' * len(keys)}"]
    table += [
        f"| {' | '.join(_stated(getattr(entry, key)) for key in keys)} |"
        for entry in rights.declared
    ]
    notes = [f"\n{note}" for note in rights_notes(rights)]
    return "\n".join(
        [
            f"# Notices of {release.name}\n",
            "## Training images\n",
            *table,
            *notes,
            "\n## Base model\n",
            _base_notice(release.base.model, family),
        ]
    )


def _stated(value: object) -> str:
    return plain(value) if value else NOT_STATED


def _base_notice(base_model: str, family: Family) -> str:
    words = base_words(base_model, family)
    source = f" (https://huggingface.co/{base_model})" if is_hub_id(base_model) else ""
    return f"Trained on {_stated(base_model)}{source}, {words.kind}.\n\n{words.notice}"


def _json(content: Any) -> bytes:
    return (
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()
