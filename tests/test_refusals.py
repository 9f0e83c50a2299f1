"""What training, scoring and publishing would refuse, ``plan`` refuses; nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from job_parts import Answer, Finished, call, write_brand
from styletune.adapters.file import AdapterSpec, save_adapter
from styletune.errors import Conflict
from styletune.files import file_sha256
from styletune.job.job import StartFile
from styletune.job.start_from import starting_values
from styletune.mini import BASE_DIR
from styletune.models.base_files import find_base
from styletune.models.load import base_configs
from styletune.models.sdxl import SDXL
from styletune.planning.memory import checkpoint_bytes, trained_shapes
from styletune.recipe import load_recipe
from styletune.recipe.training_sections import AdapterSection
from styletune.runs import Run

Command = Callable[..., Answer]


def starting_adapter(file: Path, rank: int = 8) -> Path:
    """An adapter of zeros that fits the brand's recipe but for its rank."""
    configs = base_configs(find_base("mini", None, Path()))
    shapes = trained_shapes(AdapterSection(rank=rank, target="attention-ff"), configs)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_adapter(file, tensors, AdapterSpec(rank=rank, alpha=float(rank)))
    return file


def nan_adapter(file: Path) -> None:
    tensors = load_file(starting_adapter(file))
    first = min(tensors)
    tensors[first][0, 0] = float("nan")
    spec = AdapterSpec(rank=8, alpha=8.0)
    save_adapter(file, tensors, spec)


def foreign_adapter(file: Path) -> None:
    save_file({"lora_unet_nowhere.lora_down.weight": torch.zeros(4, 4)}, file)


def packed(**tensors: torch.Tensor) -> Callable[[Path], object]:
    """Writes an adapter of this tool's form with these tensors instead of its own."""
    spec = AdapterSpec(rank=8, alpha=8.0)
    return lambda file: save_adapter(file, tensors, spec)


def scaled_adapter(file: Path) -> None:
    tensors = load_file(starting_adapter(file))
    wild = {name: torch.full_like(tensor, 1e30) for name, tensor in tensors.items()}
    save_adapter(file, wild, AdapterSpec(rank=8, alpha=8.0))


def counted_adapter(file: Path) -> None:
    tensors = load_file(starting_adapter(file))
    whole = {name: tensor.to(torch.int32) for name, tensor in tensors.items()}
    save_adapter(file, whole, AdapterSpec(rank=8, alpha=8.0))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
LONG = " ".join(["landscape"] * 90)

# What is put beside the recipe as s.safetensors, settings, exit code, and a part of the message.
REFUSED: dict[str, tuple[Callable[[Path], object] | None, tuple[str, ...], int, str]] = {
    "a long class prompt": (
        None,
        ("dreambooth.prior=prediction", f"dreambooth.class_prompt={LONG}"),
        2,
        "dreambooth class_prompt",
    ),
    "a prompt that ends in the middle": (
        None,
        ('preview.prompts=["the sea <|endoftext|> at noon"]',),
        2,
        "preview prompt 1",
    ),
    "a target that matches nothing": (None, ('adapter.target=["nowhere*"]',), 2, "nowhere*"),
    "a block rank that matches nothing": (None, ("adapter.block_ranks={x=4}",), 2, '"x"'),
    "a rate that matches nothing": (None, ("adapter.block_learning_rates={x=1.0}",), 2, '"x"'),
    "every rate 0": (
        None,
        ('adapter.block_learning_rates={"*"=0.0}',),
        2,
        "nothing would be trained",
    ),
    "a block size that does not divide": (
        None,
        ("adapter.kind=oft", "adapter.rank=7", "publish.plain_lora_rank=8"),
        2,
        "does not divide",
    ),
    "new words from unknown ones": (
        None,
        ('adapter.new_tokens=["<acme>"]', "adapter.new_tokens_init=..."),
        2,
        "new_tokens_init",
    ),
    "fp16 without a GPU": (None, ("train.mixed_precision=fp16",), 2, "fp16 needs a GPU"),
    "a tracker that would ask": (None, ("train.tracker=wandb",), 2, "wandb"),
    "start from a text": (lambda f: f.write_text("a city"), (), 4, "safetensors"),
    "start from an LFS pointer": (lambda f: f.write_text(LFS), (), 4, "git-lfs pointer"),
    "start from another rank": (
        lambda f: starting_adapter(f, rank=16),
        (),
        2,
        "set adapter.rank = 16",
    ),
    "start from NaN": (nan_adapter, (), 2, "not finite"),
    "start from another family": (foreign_adapter, (), 2, "lora_unet_nowhere"),
    "start from a file without tensors": (packed(), (), 2, "holds no tensors"),
    "start from something else": (packed(latents=torch.zeros(4)), (), 2, "key latents is not"),
    "start from integers": (counted_adapter, (), 2, "is int32"),
    "start from huge values": (scaled_adapter, (), 2, "float16"),
    "start from another target": (
        starting_adapter,
        ("adapter.target=attention",),
        2,
        "set adapter.target",
    ),
    "start from another conv rank": (
        starting_adapter,
        ("adapter.conv_rank=4",),
        2,
        "leave adapter.conv_rank out",
    ),
    "start from other block ranks": (
        starting_adapter,
        ('adapter.block_ranks={"mid_block.*"=4}',),
        2,
        "block_ranks",
    ),
    "more steps than anybody trains": (None, (f"train.steps={'9' * 23}",), 2, "steps"),
    "an address for a folder": (
        None,
        ("data.path=https://example.com/set.zip",),
        2,
        "download it",
    ),
    "start from nothing": (lambda _: None, (), 3, "s.safetensors"),
    "an encoder without weights here": (
        lambda f: f.with_name("suite.toml").write_text(
            f.with_name("suite.toml").read_text()
            + '[encoder]\nname = "ViT-L-14-quickgelu/openai"\n'
        ),
        (),
        3,
        "not on this machine",
    ),
    "an encoder that open_clip does not know": (
        lambda f: f.with_name("suite.toml").write_text(
            f.with_name("suite.toml").read_text() + '[encoder]\nname = "ViT-L-14/opena"\n'
        ),
        (),
        3,
        "ViT-L-14/openai",
    ),
    "a version with leading zeros": (None, ("publish.version=01.0.0",), 2, "version"),
    "a version in other digits": (None, ("publish.version=١.٠.٠",), 2, "version"),
    "a name of 120 letters": (None, (f"publish.name={'x' * 120}",), 2, "name"),
    "an adapter without a license": (None, ("publish.license=mine",), 2, "license"),
    "a revision of a bundled base": (None, ("base.revision=x",), 2, "[base] revision"),
    "a revision of a VAE that is a folder": (
        lambda f: shutil.copytree(BASE_DIR / "vae", f.with_name("vae")),
        ("base.vae=vae", "base.vae_revision=x"),
        2,
        "[base] vae_revision",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_plan_refuses_what_run_would(
    name: str,
    brand: Path,
    styletune: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the same words and exit code; no run folder, no cache and no registry is left."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    prepare, settings, code, part = REFUSED[name]
    file = brand.with_name("s.safetensors")
    words: list[str | Path] = []
    if prepare is not None:
        prepare(file)
        if name.startswith("start from"):
            settings = (*settings, "adapter.start_from=s.safetensors")
    for setting in settings:
        words += ["--set", setting]
    places = ("--runs-dir", tmp_path / "runs", "--registry", tmp_path / "registry")
    planned = styletune("plan", brand, *words, "--publish", *places)
    ran = styletune("run", brand, *words, "--publish", *places)
    assert (planned.code, ran.code) == (code, code), planned.err + ran.err
    assert part in ran.err
    assert ran.err.splitlines()[-1] == planned.err.splitlines()[-1]
    assert "Traceback" not in planned.err + ran.err
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "registry").exists()


def test_plan_refuses_damaged_checkpoints(finished: Finished, tmp_path: Path) -> None:
    """A run whose checkpoint was changed cannot be resumed or scored, and plan says so."""
    runs = tmp_path / "runs"
    shutil.copytree(finished.run_dir, runs / "small" / finished.run_dir.name)
    adapter = next(runs.rglob("step-000020/adapter.safetensors"))
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"x")
    for verb in ("plan", "score", "run"):
        answer = call(verb, finished.recipe, "--runs-dir", runs)
        assert answer.code == 4, verb
        assert "step-000020" in answer.err


@pytest.mark.parametrize("verb", ["plan", "train", "run", "publish"])
@pytest.mark.parametrize("damage", ["gone", "another step's"])
def test_a_finished_run_without_its_last_adapter_is_not_taken_for_whole(
    verb: str, damage: str, finished: Finished, tmp_path: Path
) -> None:
    """Every command on it says so, and which checkpoint it is."""
    runs = tmp_path / "runs"
    shutil.copytree(finished.run_dir, runs / "small" / finished.run_dir.name)
    run = Run(runs / "small" / finished.run_dir.name)
    first, last = run.adapter_file(20), run.adapter_file(run.checkpoint_steps()[-1])
    last.unlink()
    if damage != "gone":
        shutil.copy(first, last)
    registry = ("--registry", tmp_path / "registry") if verb == "publish" else ()
    answer = call(verb, finished.recipe, "--runs-dir", runs, *registry)
    assert answer.code == 4, answer.err
    assert last.parent.name in answer.err
    assert "Traceback" not in answer.err


def test_a_new_word_that_no_caption_has_is_told(brand: Path, styletune: Command) -> None:
    """Nothing would be learned for it."""
    words = ("--set", 'adapter.new_tokens=["<acme>"]', "--json")
    problems = styletune("plan", brand, *words).json["problems"]
    (problem,) = (p for p in problems if p["where"] == "[adapter] new_tokens")
    assert problem["severity"] == "warning"
    assert "<acme>" in problem["message"]


def test_plan_refuses_a_place_that_is_a_file(
    brand: Path, styletune: Command, tmp_path: Path
) -> None:
    """For the run and for the registry."""
    (tmp_path / "file").write_text("x")
    for option in (("--runs-dir",), ("--publish", "--registry")):
        for verb in ("plan", "run"):
            answer = styletune(verb, brand, *option, tmp_path / "file" / "below")
            assert answer.code == 2, (verb, option)
            assert "a part of the path is a file" in answer.err


def test_plan_refuses_images_without_rights_when_it_is_to_publish(
    brand: Path, styletune: Command, tmp_path: Path
) -> None:
    """Only then: a run that is not published may be private."""
    (brand.parent / "brand" / "dataset.toml").write_text('trigger = "horizon style"\n')
    places = ("--runs-dir", tmp_path / "runs", "--registry", tmp_path / "registry")
    assert styletune("plan", brand, *places).code == 0
    planned = styletune("plan", brand, "--publish", *places)
    ran = styletune("run", brand, "--publish", *places)
    assert (planned.code, ran.code) == (1, 1)
    assert "cannot be published" in planned.err


def test_a_checkpoint_is_as_large_as_the_plan_expects(finished: Finished) -> None:
    """What is asked of the disk before training is what training writes, within 5 %."""
    recipe = load_recipe(finished.recipe).recipe
    configs = base_configs(find_base("mini", None, Path()))
    expected = checkpoint_bytes(recipe.optimizer, trained_shapes(recipe.adapter, configs))
    run = Run(finished.run_dir)
    written = sum(f.stat().st_size for f in (run.adapter_file(40), run.state_file(40)))
    assert expected == pytest.approx(written, rel=0.05)


def test_the_plan_counts_batches_that_exist(brand: Path, styletune: Command) -> None:
    """Steps of as many images as buckets hold, their scale with rsLoRA, and a warning."""
    options = ("--set", "train.batch_size=64", "--set", "adapter.rslora=true")
    answer = styletune("plan", brand, *options, "--json")
    assert answer.code == 0
    train = answer.json["train"]
    images = answer.json["data"]["train"]
    assert train["images_per_step"] == train["fewest_images"] == images < 64
    assert train["epochs"] == train["steps"]
    assert train["adapter_scale"] == pytest.approx(8**0.5)
    (warning,) = (p for p in answer.json["problems"] if p["where"] == "[train] batch_size")
    assert f"has {images}" in warning["message"]


def test_the_bundled_encoder_does_not_judge_photographs_without_a_word(
    brand: Path, styletune: Command
) -> None:
    """On another base than the bundled one, plan warns and names an encoder."""
    from test_cli_errors import HUB_BASE

    def encoder_warnings(answer: Answer) -> list[str]:
        return [p["fix"] for p in answer.json["problems"] if "[encoder]" in p["where"]]

    assert encoder_warnings(styletune("plan", brand, "--json")) == []
    hub = styletune("plan", brand, "--json", "--gpu", "RTX 4060", *HUB_BASE)
    assert encoder_warnings(hub) == ['name = "ViT-L-14-quickgelu/openai"']


def test_a_spelling_is_no_other_run(brand: Path, styletune: Command, tmp_path: Path) -> None:
    """A base by its path, another checkpoint interval or checkpointing name the same run."""
    shutil.copytree(BASE_DIR, tmp_path / "project" / "tiny")
    runs = ("--runs-dir", tmp_path / "runs")
    dirs = {
        styletune("plan", brand, "--json", *runs, *words).json["run_dir"]
        for words in (
            (),
            ("--set", "base.model=tiny"),
            ("--set", f"base.model={tmp_path / 'project' / 'tiny'}"),
            ("--set", "base.model=./tiny", "--set", "train.checkpoint_every=7"),
            ("--set", "train.gradient_checkpointing=full"),
        )
    }
    assert len(dirs) == 1
    other = styletune("plan", brand, "--json", *runs, "--set", "adapter.rank=4").json["run_dir"]
    assert other not in dirs


def test_the_home_folder_is_understood_everywhere(
    brand: Path, styletune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every path of a recipe, as for a base model."""
    monkeypatch.setenv("HOME", str(tmp_path / "project"))
    words = ("--set", "data.path=~/brand", "--set", "score.suite=~/suite.toml")
    assert styletune("plan", brand, *words, "--runs-dir", tmp_path / "runs").code == 0


@pytest.mark.parametrize(
    ("settings", "where", "part"),
    [
        (("adapter.rank=256",), "[adapter] rank", "above the width of"),
        (
            ("data.caption_variants=4", "data.caption_shuffle=true", "data.default_caption=x"),
            "[data] caption_shuffle",
            "no caption has a comma",
        ),
    ],
)
def test_plan_warns_of_settings_that_do_nothing(
    settings: tuple[str, ...], where: str, part: str, brand: Path, styletune: Command
) -> None:
    """With exit code 0: they are allowed."""
    if "caption" in where:
        (brand.parent / "brand" / "metadata.jsonl").unlink()
    words = [word for setting in settings for word in ("--set", setting)]
    answer = styletune("plan", brand, *words, "--json")
    assert answer.code == 0, answer.out
    (problem,) = (p for p in answer.json["problems"] if p["where"].startswith(where))
    assert (problem["severity"], part in problem["message"]) == ("warning", True)


@pytest.mark.parametrize(
    ("key", "section", "meant"),
    [
        ("epochs", "train", '"steps" in [train]'),
        ("max_train_steps", "train", '"steps" in [train]'),
        ("network_dim", "adapter", '"rank" in [adapter]'),
        ("lr", "optimizer", '"learning_rate" in [optimizer]'),
        ("train_data_dir", "data", '"path" in [data]'),
    ],
)
def test_keys_of_other_trainers_are_translated(
    key: str, section: str, meant: str, brand: Path, styletune: Command
) -> None:
    """By the name that they have here, and in which section."""
    answer = styletune("plan", brand, "--set", f"{section}.{key}=3")
    assert answer.code == 2
    assert f"here it is {meant}" in answer.err


def test_memory_is_planned_before_the_images_are_there(brand: Path, styletune: Command) -> None:
    """The missing folder is the error; beside it stands what the run would need."""
    answer = styletune("plan", brand, "--set", "data.path=nowhere", "--gpu", "RTX 3060")
    assert answer.code == 3
    assert "nowhere" in answer.err
    assert "GiB at the peak" in answer.out
    assert "images/s" in answer.out
    document = styletune("plan", brand, "--set", "data.path=nowhere", "--json")
    assert document.json["error"]["kind"] == "not_found"


def test_an_adapter_that_changes_midway_is_another_run(tmp_path: Path) -> None:
    """Its hash was taken when the job was prepared; other bytes are not trained from."""
    file = starting_adapter(tmp_path / "s.safetensors")
    start = StartFile(file, file_sha256(file))
    section = AdapterSection(rank=8, target="attention-ff")
    assert starting_values(start, section, SDXL)
    starting_adapter(file, rank=4)
    with pytest.raises(Conflict, match="has changed since the run began"):
        starting_values(start, section, SDXL)


@pytest.mark.parametrize(
    ("target", "told"), [("mid_block*attn1.to_q", True), ("mid_block*attn2.to_k", False)]
)
def test_what_a_consumer_cannot_install_is_told(tmp_path: Path, target: str, told: bool) -> None:
    """InvokeAI knows an adapter's base by its cross-attention or its deep blocks."""
    recipe = write_brand(tmp_path)
    target = f'adapter.target=["{target}"]'
    planned = call("plan", recipe, "--set", target, "--runs-dir", tmp_path / "runs")
    assert planned.code == 0
    assert ("InvokeAI" in planned.out) == told
