"""The model card: what the adapter is, how to use it, how it scored, where it comes from."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from styletune.models.families import DEFAULT_FAMILY
from styletune.models.family import Family
from styletune.models.names import base_words, public_base

# Licence identifiers that the Hugging Face Hub knows; every other one is "other" there.
_HUB_LICENSES = frozenset(
    {
        "apache-2.0",
        "mit",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "gpl-2.0",
        "gpl-3.0",
        "unlicense",
        "artistic-2.0",
        "mpl-2.0",
        "isc",
        "zlib",
        "wtfpl",
        "pddl",
        "odbl",
    }
)
_METRICS = {
    "clip_image": "Closeness to the brand's held-out images (CLIP image, higher is closer)",
    "clip_image_gain": "Gain in that closeness over the base model",
    "clip_text": "Obedience to the prompt (CLIP text, higher is better)",
    "clip_text_loss": "Loss of that obedience against the base model (share)",
    "palette": "Distance of the colours to the brand's (ΔE, lower is closer)",
    "palette_ratio": "That distance as a share of the base model's",
    "kid": "KID (lower is closer)",
    "fid": "FID (lower is closer; at this number of images no measure of quality)",
}
_SHOWN_VALUES = 8
# Control characters, line separators, and marks that turn the reading direction around.
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def model_card(
    *,
    name: str,
    version: str,
    description: str,
    license: str,  # noqa: A002
    holder: str,
    trigger: str,
    base_model: str,
    stem: str,
    summary: Mapping[str, Any],
    provenance: Mapping[str, Any],
    prompts: Sequence[Mapping[str, Any]],
    tokens: Sequence[str] = (),
) -> str:
    """A Hugging Face model card: YAML front matter and a Markdown body.

    Texts may hold anything: the front matter is dumped by a YAML library, the body is escaped.

    Args:
        name: adapter name in the registry.
        version: its version.
        description: one sentence.
        license: SPDX id or ``LicenseRef-…``.
        holder: who holds the rights in the training images.
        trigger: words that call the style; may be empty.
        base_model: a bundled model's name, a Hub id, or a local folder, of which only the last
            name is shown.
        stem: file name of the webui weights without suffix.
        summary: content of ``scores/summary.json``.
        provenance: content of ``provenance.json``.
        prompts: of the previews; ``prompt``, and ``file`` (under ``previews/``) where it has one.
        tokens: new words that it brings along.
    """
    base = public_base(base_model)
    strength = float(summary["chosen"]["strength"])
    parts = [
        f"---\n{_front_matter(name, license, trigger, base_model, prompts)}---\n",
        f"# {plain(name)} {plain(version)}\n",
        f"{plain(description)}\n" if description.strip() else "",
        f"A LoRA adapter in the visual style of {plain(holder)}, trained on {plain(base)} "
        "with styletune.\n",
        _usage(name, stem, trigger, strength, base, tokens),
        _scores(summary),
        _gates(summary),
        _provenance(provenance, summary),
        _training_images(provenance["data"]["rights"]),
        f"## Licence\n\nAdapter: {plain(license)} (see `LICENSE`). What the base model's licence "
        "asks of you: see `NOTICE.md`.\n",
    ]
    return "\n".join(part for part in parts if part)


def plain(text: object) -> str:
    """One line of text that Markdown and HTML show as it is."""
    line = " ".join(_UNSHOWN.sub(" ", str(text)).split())
    line = line.encode("utf-8", "backslashreplace").decode()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]#!|~])", r"\\\1", line)
    # At the start of a line these would make a list, a rule or a heading of it.
    line = re.sub(r"^([-=+])", r"\\\1", line)
    return re.sub(r"^(\d+)\.(?= |$)", r"\1\\.", line)


def _front_matter(
    name: str,
    license: str,  # noqa: A002
    trigger: str,
    base_model: str,
    prompts: Sequence[Mapping[str, Any]],
) -> str:
    import yaml

    hub = license.lower()
    tree: dict[str, Any] = {"license": hub if hub in _HUB_LICENSES else "other"}
    if tree["license"] == "other":
        tree |= {"license_name": license, "license_link": "LICENSE"}
    tree["base_model"] = public_base(base_model)
    tree["library_name"] = "diffusers"
    tree["pipeline_tag"] = "text-to-image"
    tree["tags"] = ["text-to-image", "diffusers", "lora", "template:sd-lora", "styletune", name]
    if trigger:
        tree["instance_prompt"] = trigger
    widget = [
        {"text": str(item["prompt"]), "output": {"url": f"previews/{item['file']}"}}
        for item in prompts
        if item.get("file")
    ]
    if widget:
        tree["widget"] = widget
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10**6))


def new_words_code(folder: str, tokens: Sequence[str], family: Family = DEFAULT_FAMILY) -> str:
    """Python that adds the new tokens of a version's folder to a diffusers pipeline ``pipe``."""
    encoders = "".join(
        f'    ("{e.embedding_key}", pipe.{e.tokenizer}, pipe.{e.name}),\n'
        for e in family.text_encoders
    )
    return f"""from safetensors.torch import load_file

rows = load_file("{folder}/diffusers/learned_embeds.safetensors")
for key, tokenizer, encoder in (
{encoders}):
    pipe.load_textual_inversion(
        list(rows[key]), token=[{", ".join(map(_literal, tokens))}],
        tokenizer=tokenizer, text_encoder=encoder,
    )
    # An encoder may otherwise take a new word for the end of the text.
    getattr(encoder, "text_model", encoder).eos_token_id = tokenizer.eos_token_id
"""


def _new_words(folder: str, tokens: Sequence[str]) -> str:
    if not tokens:
        return ""
    words = ", ".join(f"**{plain(token)}**" for token in tokens)
    return f"""
The adapter was trained with new words: {words}. In diffusers, before the first image:

```python
{new_words_code(folder, tokens)}```

ComfyUI, A1111, Forge: put `diffusers/learned_embeds.safetensors` into `embeddings` under a name of
your own, and write that name for the new words.
"""


def _usage(
    name: str, stem: str, trigger: str, strength: float, base: str, tokens: Sequence[str]
) -> str:
    called = (
        f"Write **{plain(trigger)}** in the prompt to call the style"
        if trigger
        else "There is no trigger word"
    )
    prompt = f"{trigger}, a quiet background" if trigger else "a quiet background"
    note, pipeline = base_words(base).load_note, DEFAULT_FAMILY.pipeline
    comment = f"  # {note}" if note else ""
    return f"""## Use

{called}; the strength it was chosen at is **{strength:g}**.

diffusers:

```python
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained({_literal(base)}){comment}
pipe.load_lora_weights(
    "{name}/{version_folder(stem)}/diffusers",
    weight_name="pytorch_lora_weights.safetensors",
    adapter_name="{name}",
)
pipe.set_adapters("{name}", {strength:g})
image = pipe({_literal(prompt)}).images[0]
```

ComfyUI: put `webui/{stem}.safetensors` into `models/loras`, add a *Load LoRA* node and set
`strength_model` and `strength_clip` to {strength:g}.

A1111, Forge: put `webui/{stem}.safetensors` with its `.json` and `.png` into `models/Lora` and
write `<lora:{stem}:{strength:g}>` in the prompt; the card fills in strength and trigger.
{_new_words(f"{name}/{version_folder(stem)}", tokens)}"""


def version_folder(stem: str) -> str:
    """The version in a webui stem ``<name>_v<version>``."""
    return stem.rpartition("_v")[2]


def _literal(text: str) -> str:
    """A string literal of Python that cannot end its code block."""
    return json.dumps(text).replace("`", "\\u0060")


def _scores(summary: Mapping[str, Any]) -> str:
    chosen = summary["chosen"]
    rows = [
        row
        for row in summary["checkpoints"]
        if row["checkpoint"] == chosen["checkpoint"] and row["strength"] == chosen["strength"]
    ]
    if not rows:
        return ""
    anchor = summary.get("anchors", {}).get("base") or {}
    base = anchor.get("metrics", anchor)
    lines = ["| Measure | This adapter | Interval | Base model | n |", "|---|---|---|---|---|"]
    for metric, found in rows[0]["metrics"].items():
        words = plain(_METRICS.get(metric, metric))
        lines.append(
            f"| {words} | {_number(_part(found, 'value'))} | {_interval(found)} "
            f"| {_number(_part(base.get(metric), 'value'))} | {_number(_part(found, 'n'))} |"
        )
    reason = f"\n{plain(chosen['reason'])}\n" if chosen.get("reason") else ""
    return "\n".join(
        [
            "## Scores\n",
            "Same prompts and seeds for the adapter and its base; the references are",
            "images that were not trained on.\n",
            *lines,
            reason,
        ]
    )


def _gates(summary: Mapping[str, Any]) -> str:
    gates = summary.get("gates") or []
    if not gates:
        return "## Release rules\n\nNone were set for this version.\n"
    lines = [
        "## Release rules\n",
        "| Rule | Value | Interval | Threshold | Verdict |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {plain(gate['name'])} | {_number(gate.get('value'))} | {_interval(gate)} "
        f"| {_number(gate.get('threshold'))} | {plain(gate['verdict'])} |"
        for gate in gates
    ]
    return "\n".join(lines) + "\n"


def _provenance(provenance: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    facts = {
        "Checkpoint": summary["chosen"]["checkpoint"],
        "Seed": provenance["seed"],
        "Recipe": provenance["recipe_hash"],
        "Training data": provenance["data"]["fingerprint"],
        "Base model": f"{provenance['base']['model']}, {provenance['base']['hash']}",
        "Evaluation suite": summary.get("suite_hash", "none"),
        "Versions": ", ".join(f"{k} {v}" for k, v in sorted(provenance["versions"].items())),
    }
    lines = [f"- {label}: {plain(value)}" for label, value in facts.items()]
    return "\n".join(["## Provenance\n", *lines, "\nAll of it: `provenance.json`.\n"])


def _training_images(rights: Mapping[str, Any]) -> str:
    """Every licence, holder, source and consent with its number of images, most first."""
    keys = {"license": "Licence", "holder": "Holder", "source": "Source", "consent": "Consent"}
    lines = [f"- {label}: {_values(rights['declared'], key)}" for key, label in keys.items()]
    notes = [f"\n{note}" for note in rights_notes(rights)]
    return "\n".join(
        [
            "## Training images\n",
            f"{plain(rights['images'])} images; their number in brackets.\n",
            *lines,
            *notes,
            "\nWhich goes with which: `NOTICE.md`.\n",
        ]
    )


def _values(declared: Sequence[Mapping[str, Any]], key: str) -> str:
    counts: Counter[str] = Counter()
    for entry in declared:
        counts[entry[key]] += entry["images"]
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{plain(text) or 'not stated'} ({n})" for text, n in ordered[:_SHOWN_VALUES]]
    rest = len(ordered) - _SHOWN_VALUES
    return "; ".join(shown) + (f"; and {rest} more" if rest > 0 else "")


def rights_notes(rights: Mapping[str, Any]) -> list[str]:
    """What else is to be known of the training images: opt-outs overridden, checks lowered."""
    notes = []
    if rights["opt_out"]:
        terms = ", ".join(
            f"{plain(t)} ({n})" for t, n in sorted(rights["opt_out"]["terms"].items())
        )
        reason = plain(rights["opt_out"]["override"]) or "not stated"
        notes.append(f"Images whose files prohibit training: {terms}. Used because: {reason}")
    if rights["lowered"]:
        codes = ", ".join(f"{plain(code)} ({n})" for code, n in sorted(rights["lowered"].items()))
        notes.append(f"Errors in the images that were accepted, by number of images: {codes}")
    return notes


def _part(found: Any, key: str) -> Any:
    if isinstance(found, Mapping):
        return found.get(key)
    return found if key == "value" else None


def _interval(found: Any) -> str:
    low, high = _part(found, "low"), _part(found, "high")
    if low is None and high is None:
        return "–"
    return f"{_number(low)} to {_number(high)}"


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else plain(value)
