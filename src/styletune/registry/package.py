"""The files of one published version, laid out for every tool that reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from styletune.errors import BadInput
from styletune.hub import is_hub_id
from styletune.models.names import base_words, public_base
from styletune.registry.card import model_card, plain, rights_notes
from styletune.registry.manifest import parse_version
from styletune.registry.versions import check_name

DIFFUSERS_WEIGHTS = "diffusers/pytorch_lora_weights.safetensors"
DIFFUSERS_EMBEDDINGS = "diffusers/learned_embeds.safetensors"
_FACTS = (
    ("recipe_hash",),
    ("seed",),
    ("versions",),
    ("base", "model"),
    ("base", "hash"),
    ("data", "fingerprint"),
    ("data", "rights", "images"),
    ("data", "rights", "declared"),
    ("data", "rights", "opt_out"),
    ("data", "rights", "lowered"),
)
_CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
_PUBLIC_LINKS = {
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC-BY-NC-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
}


def webui_stem(name: str, version: str) -> str:
    """File name, without suffix, of the weights for A1111, Forge, ComfyUI and InvokeAI.

    They find a LoRA by this name whatever its folder, so it holds the full version.
    """
    return f"{name}_v{version}"


def package_files(
    *,
    name: str,
    version: str,
    description: str,
    license: str,  # noqa: A002
    holder: str,
    trigger: str,
    weights: Mapping[str, bytes],
    summary: Mapping[str, Any],
    report_html: bytes | None,
    run_facts: Mapping[str, Any],
    recipe_text: str,
    previews: Mapping[str, bytes],
    prompts: Sequence[Mapping[str, Any]],
    tokens: Sequence[str] = (),
) -> dict[str, bytes]:
    """All files of a version but ``manifest.json``: relative path to content.

    Args:
        name: adapter name in the registry.
        version: major.minor.patch[-pre].
        description: one sentence.
        license: SPDX id or ``LicenseRef-…`` of the adapter.
        holder: who holds the rights in the training images.
        trigger: words that call the style; may be empty.
        weights: exactly ``diffusers/pytorch_lora_weights.safetensors`` (PEFT names) and
            ``webui/<name>_v<version>.safetensors`` (kohya names); with new words also
            ``diffusers/learned_embeds.safetensors``.
        summary: content of ``scores/summary.json``; its ``chosen`` gives strength and checkpoint.
        report_html: the report, if there is one.
        run_facts: ``recipe_hash``, ``seed``, ``versions``, ``base {model, hash}``,
            ``data {fingerprint, rights}`` with the content of ``rights_summary``; other keys are
            kept out.
        recipe_text: the resolved recipe as TOML.
        previews: PNG bytes by file name; the first is the picture of the web UIs.
        prompts: one mapping a preview: ``prompt``, ``file`` (a key of ``previews``), seed,
            strength, sampler and so on; written as they are to ``previews/grid.json``.
        tokens: new words, in the order of the rows in the embeddings file.

    Raises:
        BadInput: a name, version, weight file, preview or fact is missing or not usable.
    """
    stem = webui_stem(name, version)
    _check(name, version, weights, previews, prompts, run_facts, summary)
    chosen = summary["chosen"]
    provenance = _provenance(run_facts, recipe_text, chosen)
    files = dict(weights)
    files[f"webui/{stem}.json"] = _json(
        {
            **_sidecar(name, version, description, license, trigger, chosen),
            "sd version": base_words(run_facts["base"]["model"]).webui_version,
        }
    )
    if previews:
        files[f"webui/{stem}.png"] = next(iter(previews.values()))
    files |= {f"previews/{file}": content for file, content in previews.items()}
    files["previews/grid.json"] = _json({"previews": [dict(item) for item in prompts]})
    files["eval/metrics.json"] = _json(summary)
    if report_html is not None:
        files["eval/report.html"] = report_html
    files["provenance.json"] = _json(provenance)
    files["LICENSE"] = license_text(
        name=name, version=version, license=license, holder=holder
    ).encode()
    files["NOTICE.md"] = notice_text(
        name=name, rights=run_facts["data"]["rights"], base_model=run_facts["base"]["model"]
    ).encode()
    files["README.md"] = model_card(
        name=name,
        version=version,
        description=description,
        license=license,
        holder=holder,
        trigger=trigger,
        base_model=run_facts["base"]["model"],
        stem=stem,
        summary=summary,
        provenance=provenance,
        prompts=prompts,
        tokens=tokens,
    ).encode()
    files["SHA256SUMS"] = sha256_sums(files)
    return files


def sha256_sums(files: Mapping[str, bytes]) -> bytes:
    """What ``sha256sum`` prints for these files, sorted by path; ``sha256sum -c`` reads it."""
    lines = [f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files)]
    return "".join(lines).encode()


def _check(
    name: str,
    version: str,
    weights: Mapping[str, bytes],
    previews: Mapping[str, bytes],
    prompts: Sequence[Mapping[str, Any]],
    run_facts: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> None:
    check_name(name)
    parse_version(version)
    wanted = {DIFFUSERS_WEIGHTS, f"webui/{webui_stem(name, version)}.safetensors"}
    if set(weights) - {DIFFUSERS_EMBEDDINGS} != wanted:
        raise BadInput(
            f"weights are {sorted(weights)}", where="weights", fix=f"give {sorted(wanted)}"
        )
    for file, content in previews.items():
        if not content.startswith(b"\x89PNG\r\n\x1a\n") or not file.endswith(".png"):
            raise BadInput("not a PNG file", where=f"previews/{file}", fix="save it as .png")
    for item in prompts:
        if "prompt" not in item or ("file" in item and item["file"] not in previews):
            raise BadInput(
                f"{dict(item)} has no prompt, or a file that is no preview",
                where="prompts",
                fix=f"previews: {', '.join(previews) or 'none'}",
            )
    for path in _FACTS:
        found: Any = run_facts
        for key in path:
            if not isinstance(found, Mapping) or key not in found:
                raise BadInput(
                    f'"{".".join(path)}" is missing',
                    where="run facts",
                    fix="start the run again with this version of styletune",
                )
            found = found[key]
    if not isinstance(summary.get("chosen"), Mapping):
        raise BadInput("no checkpoint is chosen", where="scores/summary.json", fix="score the run")


def _sidecar(
    name: str,
    version: str,
    description: str,
    license: str,  # noqa: A002
    trigger: str,
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """The ``<stem>.json`` beside the weights; A1111, Forge and InvokeAI read these keys."""
    strength = chosen["strength"]
    notes = f"{name} {version}, {license}; chosen at strength {strength:g} ({chosen['checkpoint']})"
    return {
        "description": description,
        "notes": notes,
        "activation text": trigger,
        "preferred weight": strength,
        "negative text": "",
    }


def _provenance(
    run_facts: Mapping[str, Any], recipe_text: str, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    base = run_facts["base"]
    return {
        "recipe_hash": run_facts["recipe_hash"],
        "recipe": recipe_text,
        "data": {key: run_facts["data"][key] for key in ("fingerprint", "rights")},
        # A local path is nobody else's business.
        "base": {"model": public_base(base["model"]), "hash": base["hash"]},
        "versions": dict(run_facts["versions"]),
        "seed": run_facts["seed"],
        "chosen": dict(chosen),
    }


def license_text(*, name: str, version: str, license: str, holder: str) -> str:  # noqa: A002
    """The ``LICENSE`` file: the terms of the adapter, by their SPDX id."""
    holder = " ".join(holder.split())
    head = f"{name} {version}\nSPDX-License-Identifier: {license}\n\n"
    if license == "CC0-1.0":
        return head + (
            f"To the extent possible under law, {holder} has waived all copyright and related or\n"
            f"neighboring rights to the adapter {name} (its weights, previews and documents). The\n"
            "work is offered as-is, without warranties of any kind.\n\n"
            f"The legal code: {_CC0}legalcode\nIn short: {_CC0}\n"
        )
    if license.startswith("LicenseRef-"):
        terms = f"These are terms of {holder}'s own; ask {holder} for their text before use."
    else:
        link = _PUBLIC_LINKS.get(license, f"https://spdx.org/licenses/{license}.html")
        terms = f"The text of the license: {link}"
    return head + (
        f"Copyright {holder}.\n\nThe adapter {name} (its weights, previews and documents) is\n"
        f"licensed under {license}. {terms}\n"
    )


def notice_text(*, name: str, rights: Mapping[str, Any], base_model: str) -> str:
    """``NOTICE.md``: rights in the training images, and what the base model's license requires.

    Args:
        name: adapter name in the registry.
        rights: as ``rights_summary`` gives them; every combination is shown with its number.
        base_model: a bundled model's name, a Hub id, or a local folder, of which only the last
            name is shown.
    """
    keys = {
        "images": "Images",
        "license": "Licence",
        "holder": "Holder",
        "source": "Source",
        "consent": "Consent",
    }
    table = [f"| {' | '.join(keys.values())} |", f"|{'---|' * len(keys)}"]
    table += [
        f"| {' | '.join(_stated(entry[key]) for key in keys)} |" for entry in rights["declared"]
    ]
    notes = [f"\n{note}" for note in rights_notes(rights)]
    return "\n".join(
        [
            f"# Notices of {name}\n",
            "## Training images\n",
            *table,
            *notes,
            "\n## Base model\n",
            _base_notice(base_model),
        ]
    )


def _stated(value: object) -> str:
    return plain(value) if value else "not stated"


def _base_notice(base_model: str) -> str:
    words = base_words(base_model)
    source = f" (https://huggingface.co/{base_model})" if is_hub_id(base_model) else ""
    name = _stated(public_base(base_model))
    return f"Trained on {name}{source}, {words.kind}.\n\n{words.notice}"


def _json(content: Any) -> bytes:
    return (
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()
