"""The model card: what the adapter is, how to use it, how it scored, where it comes from."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from styletune.hub import is_hub_id
from styletune.models.family import Family
from styletune.models.names import base_words
from styletune.registry.provenance import Provenance
from styletune.registry.release import Preview, Release
from styletune.runs.documents import DeclaredRights, RightsSummary
from styletune.runs.metrics import GATE_OF, METRIC_OF
from styletune.runs.summary import GateVerdict, MetricValue, Summary

NOT_STATED = "not stated"
# License identifiers that the Hugging Face Hub knows; every other one is "other" there.
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
_SHOWN_VALUES = 8
# Control characters, line separators, and marks that turn the reading direction around.
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def model_card(
    release: Release,
    provenance: Provenance,
    summary: Summary,
    previews: Sequence[Preview],
    family: Family,
) -> str:
    """A Hugging Face model card: YAML front matter and a Markdown body.

    Texts may hold anything: the front matter is dumped by a YAML library, the body is escaped.
    """
    parts = [
        f"---\n{_front_matter(release, previews)}---\n",
        f"# {plain(release.name)} {plain(release.version)}\n",
        f"{plain(release.description)}\n" if release.description.strip() else "",
        f"A LoRA adapter in the visual style of {plain(release.holder or NOT_STATED)}, trained on "
        f"{plain(release.base.model)} with styletune.\n",
        _usage(release, family),
        _scores(summary),
        _gates(summary.gates),
        _provenance(provenance, summary),
        _training_images(provenance.data.rights),
        f"## License\n\nAdapter: {plain(release.license)} (see `LICENSE`). What the base model's "
        "license asks of you: see `NOTICE.md`.\n",
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


def _front_matter(release: Release, previews: Sequence[Preview]) -> str:
    import yaml

    hub = release.license.lower()
    tree: dict[str, Any] = {"license": hub if hub in _HUB_LICENSES else "other"}
    if tree["license"] == "other":
        tree |= {"license_name": release.license, "license_link": "LICENSE"}
    # The Hub refuses a card whose base model is no repository's name.
    if is_hub_id(release.base.model):
        tree["base_model"] = release.base.model
    tree["library_name"] = "diffusers"
    tree["pipeline_tag"] = "text-to-image"
    tags = ["text-to-image", "diffusers", "lora", "template:sd-lora", "styletune", release.name]
    tree["tags"] = tags
    if release.adapter.trigger:
        tree["instance_prompt"] = release.adapter.trigger
    widget = [
        {"text": str(preview.settings["prompt"]), "output": {"url": f"previews/{preview.file}"}}
        for preview in previews
        if preview.file
    ]
    if widget:
        tree["widget"] = widget
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10**6))


def new_words_code(folder: str, tokens: Sequence[str], family: Family) -> str:
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


def _new_words(folder: str, tokens: Sequence[str], family: Family) -> str:
    if not tokens:
        return ""
    words = ", ".join(f"**{plain(token)}**" for token in tokens)
    return f"""
The adapter was trained with new words: {words}. In diffusers, before the first image:

```python
{new_words_code(folder, tokens, family)}```

ComfyUI, A1111, Forge: put `diffusers/learned_embeds.safetensors` into `embeddings` under a name of
your own, and write that name for the new words.
"""


def _usage(release: Release, family: Family) -> str:
    name, stem, trigger = release.name, release.stem, release.adapter.trigger
    base, strength = release.base.model, release.adapter.strength
    folder = f"{name}/{release.version}"
    called = (
        f"Write **{plain(trigger)}** in the prompt to call the style"
        if trigger
        else "There is no trigger word"
    )
    prompt = f"{trigger}, a quiet background" if trigger else "a quiet background"
    note, pipeline = base_words(base, family).load_note, family.pipeline
    if not note and not is_hub_id(base):
        note = "the folder of this base model on your machine"
    comment = f"  # {note}" if note else ""
    return f"""## Use

{called}; the strength it was chosen at is **{strength:g}**.

diffusers:

```python
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained({_literal(base)}){comment}
pipe.load_lora_weights(
    "{folder}/diffusers",
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
{_new_words(folder, release.adapter.tokens, family)}"""


def _literal(text: str) -> str:
    """A string literal of Python that cannot end its code block."""
    return json.dumps(text).replace("`", "\\u0060")


def _scores(summary: Summary) -> str:
    lines = ["| Measure | This adapter | Interval | Base model | n |", "|---|---|---|---|---|"]
    mine, base = summary.reported
    for name, measured in mine.items():
        label = METRIC_OF[name].description if name in METRIC_OF else name
        anchor = base[name].value if name in base else None
        lines.append(
            f"| {plain(label)} | {_number(measured.value)} | {_interval(measured)} "
            f"| {_number(anchor)} | {measured.n} |"
        )
    reason = f"\n{plain(summary.chosen.reason)}\n" if summary.chosen.reason else ""
    return "\n".join(
        [
            "## Scores\n",
            "Same prompts and seeds for the adapter and its base; the references are",
            "images that were not trained on.\n",
            *lines,
            reason,
        ]
    )


def _gates(gates: Sequence[GateVerdict]) -> str:
    if not gates:
        return "## Release gates\n\nNone were set for this version.\n"
    lines = [
        "## Release gates\n",
        "| Gate | Value | Interval | Threshold | Verdict |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {plain(_gate_label(gate.name))} | {_number(gate.value)} | {_interval(gate)} "
        f"| {_number(gate.threshold)} | {plain(gate.verdict)} |"
        for gate in gates
    ]
    return "\n".join(lines) + "\n"


def _gate_label(name: str) -> str:
    gate = GATE_OF.get(name)
    return f"{gate.question} ({name}, {gate.side})" if gate else name


def _provenance(provenance: Provenance, summary: Summary) -> str:
    facts = {
        "Checkpoint": summary.chosen.checkpoint,
        "Seed": provenance.seed,
        "Recipe": provenance.recipe_hash,
        "Training data": provenance.data.fingerprint,
        "Base model": f"{provenance.base.model}, {provenance.base.hash}",
        "Evaluation suite": summary.suite_hash,
        "Versions": ", ".join(f"{k} {v}" for k, v in sorted(provenance.versions.items())),
    }
    lines = [f"- {label}: {plain(value)}" for label, value in facts.items()]
    return "\n".join(["## Provenance\n", *lines, "\nAll of it: `provenance.json`.\n"])


def _training_images(rights: RightsSummary) -> str:
    """Every license, holder, source and consent with its number of images, most first."""
    keys = {"license": "License", "holder": "Holder", "source": "Source", "consent": "Consent"}
    lines = [f"- {label}: {_values(rights.declared, key)}" for key, label in keys.items()]
    notes = [f"\n{note}" for note in rights_notes(rights)]
    return "\n".join(
        [
            "## Training images\n",
            f"{rights.images} images; their number in brackets.\n",
            *lines,
            *notes,
            "\nWhich goes with which: `NOTICE.md`.\n",
        ]
    )


def _values(declared: Sequence[DeclaredRights], key: str) -> str:
    counts: Counter[str] = Counter()
    for rights in declared:
        counts[getattr(rights, key)] += rights.images
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    values = [f"{plain(text) or NOT_STATED} ({n})" for text, n in ordered[:_SHOWN_VALUES]]
    rest = len(ordered) - _SHOWN_VALUES
    return "; ".join(values) + (f"; and {rest} more" if rest > 0 else "")


def rights_notes(rights: RightsSummary) -> list[str]:
    """What else is to be known of the training images: opt-outs overridden, checks lowered."""
    notes = []
    if rights.opt_out:
        terms = ", ".join(f"{plain(t)} ({n})" for t, n in sorted(rights.opt_out.terms.items()))
        reason = plain(rights.opt_out.override) or NOT_STATED
        notes.append(f"Images whose files prohibit training: {terms}. Used because: {reason}")
    if rights.lowered:
        codes = ", ".join(f"{plain(code)} ({n})" for code, n in sorted(rights.lowered.items()))
        notes.append(f"Errors in the images that were accepted, by number of images: {codes}")
    return notes


def _interval(measured: MetricValue | GateVerdict) -> str:
    if measured.low is None and measured.high is None:
        return "–"
    return f"{_number(measured.low)} to {_number(measured.high)}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
