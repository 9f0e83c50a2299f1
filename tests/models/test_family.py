"""A family is one value: nothing else spells it out, and a bundled base is special to nobody."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from styletune import mini
from styletune.adapters.names import known_modules, kohya_name, modules_by_kohya_name
from styletune.models.base_files import find_base
from styletune.models.conditioning import conditioning_of, encode_prompts, stored_tensors
from styletune.models.families import FAMILIES, family_of, find_family
from styletune.models.family import chosen_encoders
from styletune.models.load import base_configs, load_pipeline
from styletune.models.names import BUNDLED, base_words, public_base
from styletune.models.sdxl import SDXL

SOURCE = Path(__file__).parents[2] / "src" / "styletune"
# Names of the one family, its parts and its inputs; and the bundled base's.
OF_ONE_FAMILY = re.compile(
    r"sdxl|StableDiffusion|text_encoder_2|tokenizer_2|pooled|time_ids|clip_[lg]\b|lora_te\d",
    re.IGNORECASE,
)
OF_ONE_BASE = re.compile(r"^mini$|embedded base|styletune.mini")
# Where they belong, and the recipe's keys, which are a contract.
FAMILY_FILES = ("models/sdxl.py", "models/recognize.py")
RECIPE_KEY = re.compile(r"text_encoder_2(_learning_rate)?")


def code_words(file: Path) -> Iterator[tuple[int, str]]:
    """Names, attributes, arguments and texts of a file's code; no docstrings and no comments."""
    tree = ast.parse(file.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word):
                yield line, word
            case ast.keyword(arg=str(word)) | ast.alias(name=word):
                yield line, word
            case ast.FunctionDef(name=word) | ast.ClassDef(name=word):
                yield line, word
            case ast.Constant(value=str(word)) if id(node) not in docstrings:
                yield line, word


def mentions(pattern: re.Pattern[str], root: Path) -> list[str]:
    return [
        f"{file.relative_to(root)}:{line}: {word[:60]}"
        for file in sorted(root.rglob("*.py"))
        for line, word in code_words(file)
        if pattern.search(word)
        and file.relative_to(root).as_posix() not in FAMILY_FILES
        and not (file.relative_to(root).parts[0] == "recipe" and RECIPE_KEY.fullmatch(word))
    ]


def test_the_family_is_spelled_out_in_its_own_file_only() -> None:
    """No other code names SDXL, its pipeline, its second text encoder or its added conditions."""
    # The list of families imports the value.
    assert [m for m in mentions(OF_ONE_FAMILY, SOURCE) if "models/families.py" not in m] == []


def test_the_bundled_base_is_special_to_nobody() -> None:
    """It is the default of recipes and suites and an entry in one table; nothing asks for it."""
    files = {m.split(":")[0] for m in mentions(OF_ONE_BASE, SOURCE)}
    assert files == {
        "mini/__init__.py",
        "models/names.py",
        "recipe/training_sections.py",
        "scoring/suite.py",
    }


@pytest.mark.parametrize(
    "line",
    [
        'kind = "SDXL"',
        "pipe.text_encoder_2.to(device)",
        "from diffusers import StableDiffusionXLPipeline",
        "f(time_ids=sizes)",
        "def pooled(x): ...",
    ],
)
def test_planted_mention_is_found(tmp_path: Path, line: str) -> None:
    """The scan sees texts, attributes, names, keywords and functions."""
    (tmp_path / "bad.py").write_text(f'"""About SDXL."""\n{line}\n')
    assert [m for m in mentions(OF_ONE_FAMILY, tmp_path) if m.startswith("bad.py:2")]


def test_a_loaded_pipeline_knows_its_family() -> None:
    """The bundled base is of the same family as the published model."""
    base = find_base(mini.NAME, None, Path())
    pipe = load_pipeline(base, torch.float32, "cpu")
    assert base.family is family_of(pipe) is find_family("StableDiffusionXLPipeline") is SDXL
    assert find_family("FluxPipeline") is None
    for encoder in SDXL.text_encoders:
        assert type(getattr(pipe, encoder.name)).__name__ == encoder.model_class
    configs = base_configs(base)
    assert SDXL.text_shapes(configs.unet) == {
        "text_embeds": (configs.text_encoders[1]["hidden_size"],)
    }


def test_conditioning_is_stored_and_read_back() -> None:
    """Cache files keep the names that version 0.1.0 wrote."""
    pipe = load_pipeline(find_base(mini.NAME, None, Path()), torch.float32, "cpu")
    text = encode_prompts(pipe, ["the sea", "a city"])
    stored = stored_tensors(SDXL, text)
    assert stored.keys() == {"embeds", "pooled"}
    again = conditioning_of(SDXL, stored)
    assert again.embeds is text.embeds
    assert again.added["text_embeds"] is text.added["text_embeds"]
    assert torch.equal(text.rows([1]).repeated(3).embeds[2], text.embeds[1])


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("none", []),
        ("first", ["text_encoder"]),
        ("second", ["text_encoder_2"]),
        ("both", ["text_encoder", "text_encoder_2"]),
    ],
)
def test_a_recipes_choice_of_text_encoders(choice: str, names: list[str]) -> None:
    """The recipe's words are the family's."""
    assert [e.name for e in chosen_encoders(SDXL, choice)] == names


def test_a_family_with_one_text_encoder_has_its_own_names() -> None:
    """Components, kohya's prefixes and known modules follow from the value alone."""
    first = replace(SDXL.text_encoders[0], kohya_prefix="lora_te_")
    other = replace(SDXL, name="other", text_encoders=(first,))
    assert other.components == ("unet", "text_encoder")
    module = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert kohya_name(module, other) == "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert modules_by_kohya_name(other)[kohya_name(module, other)] == module
    assert not any(m.startswith("text_encoder_2.") for m in known_modules(other))
    assert len(modules_by_kohya_name(SDXL)) == len(known_modules(SDXL))


def test_words_about_a_base_come_from_the_base() -> None:
    """A bundled base has words of its own, every other one its family's."""
    assert set(BUNDLED) == {"mini"}
    assert base_words("mini", SDXL).webui_version == "Unknown"
    assert "Apache-2.0" in base_words("mini", SDXL).notice
    for model in ("stabilityai/stable-diffusion-xl-base-1.0", "my-sdxl"):
        assert base_words(model, SDXL) is SDXL.words
    assert all(family.words.webui_version != "Unknown" for family in FAMILIES)


@pytest.mark.parametrize(
    ("model", "public"),
    [
        ("mini", "mini"),
        ("stabilityai/sdxl-turbo", "stabilityai/sdxl-turbo"),
        ("/home/ada/bases/sdxl", "sdxl"),
        ("../bases/sdxl", "sdxl"),
        ("./sdxl.safetensors", "sdxl.safetensors"),
        ("~/sdxl", "sdxl"),
    ],
)
def test_a_local_folder_is_reduced_to_its_name(model: str, public: str) -> None:
    """Nobody else learns where a base lies on this machine."""
    assert public_base(model) == public
