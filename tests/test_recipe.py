"""Recipes are strict, and their errors say where, what and the nearest fix."""

from __future__ import annotations

import runpy
import unicodedata
from pathlib import Path

import pytest
import tomli_w

from styletune.errors import NotFound, RecipeError
from styletune.recipe import load_recipe, recipe_hash, recipe_schema, training_hash

GOOD = '[data]\npath = "images"\n'
SOURCE = "[[data.sources]]\n"


def write(folder: Path, text: str, name: str = "brand.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_useful_recipe_is_short(tmp_path: Path) -> None:
    """Two lines are a whole recipe; the name comes from the file."""
    loaded = load_recipe(write(tmp_path, GOOD))
    assert loaded.name == "brand"
    assert loaded.recipe.adapter.rank == 16
    assert loaded.path("images") == tmp_path / "images"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GOOD + "[adapter]\nrnak = 8\n", ["[adapter]", '"rnak"', 'did you mean "rank"', "alpha"]),
        (GOOD + "[adapter]\nlearning_rate = 1e-4\n", ["wrong section", "[optimizer]"]),
        (GOOD + "[train]\nsnr_gama = 5\n", ["[train]", 'did you mean "snr_gamma"']),
        (GOOD + "[adapter]\nlearning_rat = 1e-4\n", ['"learning_rate" in [optimizer]']),
        (GOOD + "[trian]\nsteps = 5\n", ["top level", 'did you mean "train"']),
        (GOOD + "steps = 5\n[train]\n", ["[data]", "wrong section", "[train]"]),
        (GOOD + '[train]\nsteps = "many"\n', ["[train]", 'steps = "many"', "integer"]),
        (GOOD + "[train]\nsteps = 2.5\n", ["[train]", "steps = 2.5"]),
        (GOOD + "[train]\nsteps = 0\n", ["steps = 0", "greater than or equal to 1"]),
        (GOOD + '[adapter]\ntarget = "atention"\n', ['did you mean "attention"', "attention-ff"]),
        (
            GOOD + "[adapter]\ntarget = []\n",
            ["[adapter]", "target = []: name at least one pattern"],
        ),
        (GOOD + '[train]\nmixed_precision = "fp8"\n', ["choices: no, bf16, fp16"]),
        ("[train]\nsteps = 5\n", ["missing section [data]"]),
        ("[data]\n", ["data", "either path or [[data.sources]]"]),
        (GOOD + '[[data.sources]]\npath = "b"\n', ["either path or [[data.sources]]"]),
        (SOURCE, ["[data]", "source 1", 'missing key "path"']),
        (SOURCE + 'path = "b"\nrepeat = 2\n', ["source 1", 'did you mean "repeats"']),
        (SOURCE + 'path = "b"\nrepeats = 0\n', ["source 1: repeats", "greater than or equal"]),
        (SOURCE + 'path = "b"\nweight = 0.0\n', ["source 1: weight", "greater than"]),
        (SOURCE + 'path = "b"\nname = "a/b"\n', ["source 1: name"]),
        (GOOD + 'allow = ["opt-out"]\n', ['allow = "opt-out"', "unreadable-image"]),
        (GOOD + "fold = 1\n", ["fold = 1 needs folds"]),
        (GOOD + "folds = 2\nfold = 2\n", ["fold = 2 needs folds"]),
        (GOOD + "folds = 5\nholdout = 0.3\n", ["leave holdout out"]),
        (GOOD + 'opt_out_override = " "\n', ["opt_out_override"]),
        (GOOD + "[train]\nsteps = = 5\n", ["not valid TOML", "line"]),
        (GOOD + '[publish]\nname = "Up Per"\nlicense = "CC0-1.0"\n', ["[publish]", "name"]),
    ],
)
def test_bad_recipe_is_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    """Every message holds file, section, key and the nearest fix."""
    file = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    message = str(caught.value)
    for part in [str(file), *parts]:
        assert part in message


PUBLISH = '[publish]\nname = "brand"\nlicense = "CC0-1.0"\n'


@pytest.mark.parametrize(
    ("text", "where", "keys"),
    [
        (GOOD + 'mask = "folder"\n', "[data]", ["mask", "mask_path"]),
        (GOOD + 'mask_path = "masks"\n', "[data]", ["mask", "mask_path"]),
        (GOOD + 'mask = "alpha"\nmask_path = "masks"\n', "[data]", ["mask", "mask_path"]),
        (GOOD + "mask_floor = 0.5\n", "[data]", ["mask_floor"]),
        (GOOD + "caption_variants = 3\n", "[data]", ["caption_variants", "caption_shuffle"]),
        (GOOD + "caption_shuffle = true\n", "[data]", ["caption_variants", "caption_shuffle"]),
        (GOOD + "caption_tag_dropout = 0.1\n", "[data]", ["caption_variants", "_tag_dropout"]),
        (
            GOOD + "[adapter]\ntext_encoder_rank = 4\n",
            "[adapter]",
            ["text_encoder_rank", "text_encoders"],
        ),
        (GOOD + '[adapter]\nkind = "loha"\nrslora = true\n', "[adapter]", ["rslora", "loha"]),
        (GOOD + '[adapter]\nkind = "lokr"\nrslora = true\n', "[adapter]", ["rslora", "lokr"]),
        (GOOD + '[adapter]\nkind = "oft"\nrslora = true\n', "[adapter]", ["rslora", "oft"]),
        (GOOD + '[adapter]\nkind = "oft"\nalpha = 8.0\n', "[adapter]", ["oft", "alpha"]),
        (GOOD + '[adapter]\nkind = "oft"\nconv_rank = 8\n', "[adapter]", ["oft", "conv_rank"]),
        (
            GOOD + '[optimizer]\nname = "schedule-free-adamw"\nschedule = "cosine"\n',
            "[optimizer]",
            ["schedule-free-adamw", "schedule"],
        ),
        (
            GOOD + '[optimizer]\nname = "schedule-free-adamw"\nema_decay = 0.9\n',
            "[optimizer]",
            ["schedule-free-adamw", "ema_decay"],
        ),
        (GOOD + '[optimizer]\nname = "prodigy"\n', "[optimizer]", ["prodigy", "learning_rate"]),
        (
            GOOD + '[optimizer]\nname = "adafactor"\nbeta1 = 0.8\n',
            "[optimizer]",
            ["adafactor", "beta1"],
        ),
        (
            GOOD + '[optimizer]\nname = "adafactor"\nbeta2 = 0.99\n',
            "[optimizer]",
            ["adafactor", "beta2"],
        ),
        (
            GOOD + "[train]\nmin_timestep = 500\nmax_timestep = 499\n",
            "[train]",
            ["min_timestep", "max_timestep"],
        ),
        (GOOD + '[dreambooth]\nprior = "images"\n', "[dreambooth]", ["prior", "class_prompt"]),
        (
            GOOD + '[dreambooth]\nclass_prompt = "a sea"\n',
            "[dreambooth]",
            ["prior", "class_prompt"],
        ),
        (
            GOOD + "[optimizer]\ntext_encoder_learning_rate = 1e-4\n",
            "recipe",
            ["optimizer.text_encoder_learning_rate", "adapter.text_encoders"],
        ),
        (
            GOOD + '[adapter]\ntext_encoders = "second"\n[optimizer]\n'
            "text_encoder_learning_rate = 1e-4\n",
            "recipe",
            ["optimizer.text_encoder_learning_rate", "adapter.text_encoders"],
        ),
        (
            GOOD + '[adapter]\ntext_encoders = "first"\n[optimizer]\n'
            "text_encoder_2_learning_rate = 1e-4\n",
            "recipe",
            ["optimizer.text_encoder_2_learning_rate", "adapter.text_encoders"],
        ),
        (
            GOOD + "[optimizer]\ntoken_learning_rate = 1e-4\n",
            "recipe",
            ["optimizer.token_learning_rate", "adapter.new_tokens"],
        ),
        (
            GOOD + "[optimizer]\nwarmup_steps = 11\n[train]\nsteps = 10\n",
            "recipe",
            ["optimizer.warmup_steps", "train.steps"],
        ),
        (
            GOOD + '[adapter]\nkind = "loha"\n[optimizer]\nlora_plus_ratio = 4.0\n',
            "recipe",
            ["optimizer.lora_plus_ratio", "loha"],
        ),
        (
            GOOD + '[base]\nquantization = "nf4"\n[adapter]\nkind = "dora"\n',
            "recipe",
            ["base.quantization", "adapter.kind"],
        ),
        (
            GOOD + '[optimizer]\nname = "prodigy"\nlearning_rate = 1.0\nlora_plus_ratio = 4.0\n',
            "recipe",
            ["prodigy", "optimizer.lora_plus_ratio"],
        ),
        (
            GOOD + '[adapter]\ntext_encoders = "first"\n[optimizer]\nname = "prodigy"\n'
            "learning_rate = 1.0\ntext_encoder_learning_rate = 0.5\n",
            "recipe",
            ["prodigy", "optimizer.text_encoder_learning_rate"],
        ),
        (
            GOOD + "[adapter.block_learning_rates]\nmid_block = 0.5\n"
            '[optimizer]\nname = "prodigy"\nlearning_rate = 1.0\n',
            "recipe",
            ["prodigy", "adapter.block_learning_rates", "mid_block"],
        ),
        (
            GOOD + '[adapter]\nkind = "lokr"\n' + PUBLISH,
            "recipe",
            ["lokr", "publish.plain_lora_rank"],
        ),
        (GOOD + PUBLISH + "plain_lora_rank = 8\n", "recipe", ["publish.plain_lora_rank", "lora"]),
        (
            GOOD + "[train]\nsteps = 10000000\ncheckpoint_every = 1\n",
            "[train]",
            ["checkpoint_every", "10,000,000 checkpoints"],
        ),
        (GOOD + '[preview]\nprompts = ["a city", "  "]\n', "[preview]", ["prompt 2", "no words"]),
        *(
            (f"{GOOD}[{key.partition('.')[0]}]\n{key.partition('.')[2]}\n", "recipe", [needs])
            for key, needs in (
                ("train.huber_delta = 0.3", 'train.loss = "huber"'),
                ('train.weighting = "none"\nsnr_gamma = 4.0', 'train.weighting = "min-snr"'),
                ('train.tracker_project = "acme"', "train.tracker"),
                ("optimizer.schedule_power = 1.0", 'optimizer.schedule = "polynomial"'),
                ('adapter.new_tokens_init = "city"', "adapter.new_tokens"),
                ("dreambooth.prior_loss_weight = 2.0", "dreambooth.prior"),
            )
        ),
        (GOOD + "caption_keep_first = 1\n", "recipe", ["data.caption_shuffle"]),
        (GOOD + "buckets = false\nmax_aspect = 3.0\n", "recipe", ["data.max_aspect"]),
        (GOOD + "buckets = false\nbucket_step = 32\n", "recipe", ["data.bucket_step"]),
    ],
)
def test_keys_that_do_not_go_together_are_named(
    tmp_path: Path, text: str, where: str, keys: list[str]
) -> None:
    """The message is about these keys: it has neither a printed section nor keys left alone."""
    file = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    message = str(caught.value)
    for part in [f"{file}: {where}", *keys]:
        assert part in message
    untouched = ("require_rights", "num_class_images", "weight_decay", "log_every", "start_from")
    assert not any(key in message for key in ("{", "\n", *untouched)), message


@pytest.mark.parametrize(
    "text",
    [
        GOOD + 'mask = "alpha"\nmask_floor = 0.5\n',
        GOOD + "caption_variants = 3\ncaption_tag_dropout = 0.1\n",
        GOOD + '[adapter]\nkind = "dora"\nrslora = true\n',
        GOOD + '[adapter]\nkind = "oft"\nrank = 8\nalpha = 8.0\n',
        GOOD + '[adapter]\ntext_encoders = "second"\ntext_encoder_rank = 4\n[optimizer]\n'
        "text_encoder_2_learning_rate = 0.0\n",
        GOOD + '[adapter]\nnew_tokens = ["<a>"]\n[optimizer]\ntoken_learning_rate = 1e-4\n',
        GOOD + "[optimizer]\nwarmup_steps = 10\n[train]\nsteps = 10\n",
        GOOD + '[adapter]\nkind = "dora"\n[optimizer]\nlora_plus_ratio = 4.0\n',
        GOOD + '[base]\nquantization = "int8"\n',
        GOOD + "[train]\nmin_timestep = 500\nmax_timestep = 500\n",
        GOOD + '[adapter]\ntext_encoders = "first"\n[optimizer]\nname = "prodigy"\n'
        "learning_rate = 1.0\ntext_encoder_learning_rate = 0.0\n",
        GOOD + '[adapter]\nkind = "lokr"\n' + PUBLISH + "plain_lora_rank = 8\n",
        GOOD + '[train]\nloss = "huber"\nhuber_delta = 0.3\n',
        GOOD + "[train]\nsteps = 10000000\ncheckpoint_every = 1000\n",
        GOOD + '[preview]\nprompts = ["a city"]\nsteps = 30\n',
    ],
)
def test_keys_that_go_together_are_taken_together(tmp_path: Path, text: str) -> None:
    """Each is the nearest neighbor of a combination that is refused."""
    assert load_recipe(write(tmp_path, text))


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    """Two mistakes need one run to be found."""
    text = GOOD + '[train]\nsteps = "x"\n[adapter]\nrnak = 2\n'
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert "rnak" in str(caught.value)
    assert "steps" in str(caught.value)


def test_missing_recipe_names_the_nearest(tmp_path: Path) -> None:
    """A misspelled file name is answered with the right one."""
    write(tmp_path, GOOD)
    with pytest.raises(NotFound) as caught:
        load_recipe(tmp_path / "brnad.toml")
    assert "brand.toml" in str(caught.value)


def test_override_is_typed_and_checked(tmp_path: Path) -> None:
    """--set reads TOML values and is as strict as the file."""
    file = write(tmp_path, GOOD)
    loaded = load_recipe(file, ["train.steps=7", "base.model=other", 'data.default_caption="a b"'])
    assert loaded.recipe.train.steps == 7
    assert loaded.recipe.base.model == "other"
    assert loaded.recipe.data.default_caption == "a b"
    for bad in ("steps=7", "train.stepz=7", "train.steps"):
        with pytest.raises(RecipeError):
            load_recipe(file, [bad])


def test_hash_is_of_the_settings_not_of_the_text(tmp_path: Path) -> None:
    """Comments, order and spelled-out defaults do not change it; a value does."""
    plain = load_recipe(write(tmp_path, GOOD)).recipe
    wordy = load_recipe(
        write(tmp_path, "# hello\n[adapter]\nrank = 16\n" + GOOD, "wordy.toml")
    ).recipe
    other = load_recipe(write(tmp_path, GOOD + "[adapter]\nrank = 8\n", "other.toml")).recipe
    assert recipe_hash(plain) == recipe_hash(wordy)
    assert recipe_hash(plain) != recipe_hash(other)


@pytest.mark.parametrize("key", ["block_ranks", "block_learning_rates"])
def test_order_of_block_patterns_decides_the_hash(tmp_path: Path, key: str) -> None:
    """The first match counts, so another order is another adapter."""
    pairs = ['"up_blocks.0*" = 4', '"up_blocks*" = 8']
    if key == "block_learning_rates":
        pairs = [f"{pair}.0" for pair in pairs]
    first, again, turned = (
        load_recipe(write(tmp_path, GOOD + f"[adapter]\n{key} = {{ {', '.join(order)} }}\n")).recipe
        for order in (pairs, list(pairs), pairs[::-1])
    )
    for own_hash in (recipe_hash, training_hash):
        assert own_hash(first) == own_hash(again) != own_hash(turned)


def test_several_sources_are_read_and_resolved(tmp_path: Path) -> None:
    """Tables of sources arrive in order, and a resolved recipe loads as the same again."""
    text = SOURCE + 'path = "a"\nrepeats = 3\n' + SOURCE + 'path = "b.zip"\nweight = 0.5\n'
    recipe = load_recipe(write(tmp_path, text + "[data]\nfolds = 5\nfold = 4\n")).recipe
    assert [(s.path, s.repeats, s.weight) for s in recipe.data.sources] == [
        ("a", 3, 1.0),
        ("b.zip", 1, 0.5),
    ]
    resolved = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))
    assert load_recipe(write(tmp_path, resolved, "again.toml")).recipe == recipe


def test_the_place_of_the_images_does_not_decide_the_adapter(tmp_path: Path) -> None:
    """Their content has a fingerprint; a name or path is no reason to train again."""
    places = [
        GOOD,
        '[data]\npath = "moved/images"\n',
        SOURCE + 'path = "images"\n',
        SOURCE + 'path = "owner/name"\nrevision = "abc"\nname = "other"\n',
    ]
    recipes = [load_recipe(write(tmp_path, text)).recipe for text in places]
    assert len({recipe_hash(recipe) for recipe in recipes}) == len(places)
    assert len({training_hash(recipe) for recipe in recipes}) == 1
    masks = [GOOD + f'mask = "folder"\nmask_path = "{place}"\n' for place in ("a", "b")]
    first, second = (training_hash(load_recipe(write(tmp_path, text)).recipe) for text in masks)
    assert first == second != training_hash(recipes[0])
    for more in ("resolution = 512\n", 'background = "#000000"\n', "flip = true\n"):
        changed = load_recipe(write(tmp_path, GOOD + more)).recipe
        assert training_hash(changed) != training_hash(recipes[0])


def test_every_key_is_explained() -> None:
    """The schema has a sentence for each key of each section."""
    for section in recipe_schema()["$defs"].values():
        for key, info in section["properties"].items():
            assert info.get("description"), key


def test_recipe_reference_is_current() -> None:
    """``docs/recipe.md`` says what the schema says; ``scripts/make_docs.py`` writes it."""
    root = Path(__file__).parent.parent
    script = runpy.run_path(str(root / "scripts" / "make_docs.py"))
    assert (root / "docs" / "recipe.md").read_text(encoding="utf-8") == script["recipe_reference"]()
    page = (root / "docs" / "findings.md").read_text(encoding="utf-8")
    assert page == script["findings_reference"]()


@pytest.mark.parametrize("name", ["my style", "été", "アトリエ", "it's [a] 'q'", "v1.2"])
def test_any_name_of_a_folder_is_one_of_a_recipe(tmp_path: Path, name: str) -> None:
    """Composed, so that the same name is the same run on every system."""
    file = tmp_path / f"{unicodedata.normalize('NFD', name)}.toml"
    file.write_text('[data]\npath = "x"\n')
    assert load_recipe(file).name == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize("name", [".hidden", "-x", "a:b", "a\tb", " a", "what?", "a.", "é" * 120])
def test_a_name_that_is_no_folders_is_refused(tmp_path: Path, name: str) -> None:
    """Here or on the system of the next person."""
    file = tmp_path / f"{name}.toml"
    file.write_text('[data]\npath = "x"\n')
    with pytest.raises(RecipeError, match="cannot name a run"):
        load_recipe(file)
