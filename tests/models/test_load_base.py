"""Base models in folders and in the Hub's cache: found whole, or refused with what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgm_names import vae_weights
from styletune.errors import BaseModelError, NotFound
from styletune.mini import BASE_DIR
from styletune.models.base_files import find_base
from styletune.models.load import load_pipeline
from styletune.models.sdxl import SDXL
from styletune.models.vae_files import find_vae
from styletune.models.weight_files import cached_sha256

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
COMMITS = ("1" * 40, "2" * 40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the mini base that a test may damage."""
    shutil.copytree(BASE_DIR, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_in_hub(hub: Path, name: str, source: Path, commit: str, main: bool = True) -> Path:
    """Lay a model into the cache as a download does."""
    repository = hub / f"models--{name.replace('/', '--')}"
    shutil.copytree(source, repository / "snapshots" / commit)
    (repository / "blobs").mkdir(exist_ok=True)
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def to_variant(folder: Path, part: str) -> None:
    """Rename a part's weights to the fp16 variant."""
    (file,) = (folder / part).glob("*.safetensors")
    file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))


def shard_unet(folder: Path) -> list[Path]:
    """Split the UNet's weights into two files with an index."""
    weights = load_file(folder / UNET_FILE)
    names = list(weights)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    files: list[Path] = []
    places: dict[str, str] = {}
    for i, half in enumerate(halves, 1):
        file = folder / "unet" / f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        save_file({k: weights[k] for k in half}, file)
        files.append(file)
        places |= dict.fromkeys(half, file.name)
    (folder / UNET_FILE).unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{UNET_FILE}.index.json").write_text(json.dumps(index))
    return files


def test_copy_of_a_folder_has_the_same_hash(folder: Path) -> None:
    """The hash is the model's, wherever it lies."""
    here, there = find_base("model", None, folder.parent), find_base("mini", None, Path())
    assert here.hash == there.hash
    assert (here.folder, here.resolution, here.variant) == (folder, 128, None)


@pytest.mark.parametrize(
    "name",
    [
        UNET_FILE,
        "text_encoder_2/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer_2/vocab.json",
    ],
)
def test_hash_follows_every_byte_that_changes_an_image(folder: Path, name: str) -> None:
    """Weights and vocabularies count."""
    before = find_base("model", None, folder.parent).hash
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    assert find_base("model", None, folder.parent).hash != before


def test_hash_follows_settings_but_not_their_origin(folder: Path) -> None:
    """A scheduler's betas count; the path that a config was saved from does not."""
    before = find_base("model", None, folder.parent).hash
    for name, key, value, same in (
        ("vae/config.json", "_name_or_path", "elsewhere", True),
        ("scheduler/scheduler_config.json", "beta_end", 0.02, False),
    ):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, key: value}))
        assert (find_base("model", None, folder.parent).hash == before) is same


def test_home_folder_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that starts with ~ is the user's own, not the recipe's."""
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_base("~/model", None, Path("/nowhere")).folder == folder


@pytest.mark.parametrize("parts", [("unet",), ("unet", "vae", "text_encoder", "text_encoder_2")])
def test_fp16_variants_are_loaded(folder: Path, parts: tuple[str, ...]) -> None:
    """A folder with fp16 files for some or all parts gives the same weights as the plain one."""
    for part in parts:
        to_variant(folder, part)
    base = find_base("model", None, folder.parent)
    assert base.variant == "fp16"
    found = load_pipeline(base, torch.float32, "cpu").unet.state_dict()
    plain = load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu").unet.state_dict()
    assert all(torch.equal(found[k], plain[k]) for k in plain)


def test_plain_weights_win_over_a_variant_beside_them(folder: Path) -> None:
    """An fp16 copy beside the plain file changes neither choice nor hash."""
    before = find_base("model", None, folder.parent)
    file = folder / UNET_FILE
    shutil.copy(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert find_base("model", None, folder.parent) == before


def test_sharded_weights_are_loaded(folder: Path) -> None:
    """A UNet in two files with an index is whole."""
    shard_unet(folder)
    found = load_pipeline(find_base("model", None, folder.parent), torch.float32, "cpu").unet
    plain = load_file(BASE_DIR / UNET_FILE)
    assert all(torch.equal(v, plain[k].float()) for k, v in found.state_dict().items())


def test_missing_shard_is_named(folder: Path) -> None:
    """A folder whose index lists a file that is not there is refused before loading."""
    shard_unet(folder)[1].unlink()
    with pytest.raises(BaseModelError, match="00002-of-00002"):
        find_base("model", None, folder.parent)


def test_missing_index_is_named(folder: Path) -> None:
    """Shards without their index are refused as such."""
    shard_unet(folder)
    (folder / f"{UNET_FILE}.index.json").unlink()
    with pytest.raises(BaseModelError, match=r"unet/ has shards, but not the index\.json"):
        find_base("model", None, folder.parent)


def test_truncated_weights_in_a_folder_are_refused(folder: Path) -> None:
    """A cut-off file is found by its size, without loading it."""
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BaseModelError, match="cut off: it has") as caught:
        find_base("model", None, folder.parent)
    assert caught.value.where == '[base] model = "model"'
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model_index.json", "no model_index.json"),
        ("scheduler", "part scheduler/ is missing"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
        ("unet/config.json", "config.json is missing"),
        (UNET_FILE, "unet/ has no .safetensors weights"),
        ("tokenizer/merges.txt", None),
        ("tokenizer_2/tokenizer_config.json", "tokenizer_config.json is missing"),
    ],
)
def test_each_missing_piece_is_named(folder: Path, name: str, words: str | None) -> None:
    """Whatever lacks is named; a tokenizer.json alone is a whole vocabulary."""
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if words is None:
        assert find_base("model", None, folder.parent)
        return
    with pytest.raises(BaseModelError, match=words) as caught:
        find_base("model", None, folder.parent)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "its scheduler is EDMEulerScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"prediction_type": "sample"}, "its UNet predicts sample"),
    ],
)
def test_base_with_another_noise_process_is_refused(
    folder: Path, changes: dict[str, str], words: str
) -> None:
    """Its noise is not the one that training mixes in; where it is named, so is the model."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **changes}))
    with pytest.raises(BaseModelError, match=words) as caught:
        find_base("model", None, folder.parent)
    assert caught.value.where == '[base] model = "model"'


@pytest.mark.parametrize(
    "changes", [{"_class_name": "DDIMScheduler"}, {"prediction_type": "v_prediction"}]
)
def test_any_ddpm_schedule_is_taken(folder: Path, changes: dict[str, str]) -> None:
    """Which sampler a model names does not matter, nor whether it predicts noise or velocity."""
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert find_base("model", None, folder.parent).folder == folder


def test_misspelled_path_gets_its_neighbor(folder: Path) -> None:
    """A folder that is not there is answered with the nearest that is."""
    with pytest.raises(NotFound) as caught:
        find_base("./modle", None, folder.parent)
    assert caught.value.fix == f"did you mean {folder}?"


def test_hub_model_in_the_cache_is_found_by_branch_commit_and_prefix(hub: Path) -> None:
    """No revision is main; a commit, whole or short, pins; the found commit is recorded."""
    put_in_hub(hub, "acme/sdxl", BASE_DIR, COMMITS[0])
    put_in_hub(hub, "acme/sdxl", BASE_DIR, COMMITS[1], main=False)
    for revision, commit in (
        (None, COMMITS[0]),
        ("main", COMMITS[0]),
        (COMMITS[1], COMMITS[1]),
        ("2" * 8, COMMITS[1]),
    ):
        base = find_base("acme/sdxl", revision, Path())
        assert (base.revision, base.folder.name) == (commit, commit)
        assert base.hash == find_base("mini", None, Path()).hash


def test_absent_hub_model_names_the_download(hub: Path) -> None:
    """The fix is the command, pinned as the recipe is."""
    with pytest.raises(NotFound) as caught:
        find_base("acme/sdxl", "abc1234", Path())
    assert caught.value.fix.startswith("hf download acme/sdxl --revision abc1234 --include ")


@pytest.mark.parametrize("revision", ["../../models--acme--other/refs/main", "{hub}/secret"])
def test_a_revision_cannot_point_outside_its_repository(hub: Path, revision: str) -> None:
    """Neither a relative nor an absolute path is read as a branch."""
    put_in_hub(hub, "acme/sdxl", BASE_DIR, COMMITS[0])
    put_in_hub(hub, "acme/other", BASE_DIR, COMMITS[0])
    (hub / "secret").write_text(COMMITS[0])
    with pytest.raises(NotFound, match="is not on this machine"):
        find_base("acme/sdxl", revision.format(hub=hub), Path())


def test_other_revision_on_this_machine_is_said(hub: Path) -> None:
    """A pinned commit that is not here is told apart from a model that is not here."""
    put_in_hub(hub, "acme/sdxl", BASE_DIR, COMMITS[0])
    with pytest.raises(NotFound, match=f"here: {COMMITS[0]}"):
        find_base("acme/sdxl", COMMITS[1], Path())


def test_interrupted_download_is_named(hub: Path) -> None:
    """Unfinished blobs and missing parts of a snapshot mean that the download must go on."""
    snapshot = put_in_hub(hub, "acme/sdxl", BASE_DIR, COMMITS[0])
    (snapshot.parent.parent / "blobs" / "abc.incomplete").write_bytes(b"x")
    assert find_base("acme/sdxl", None, Path())  # what is needed is there
    (snapshot / UNET_FILE).unlink()
    (snapshot / UNET_FILE).symlink_to("../../../blobs/abc")
    with pytest.raises(NotFound, match="only a part of the model") as caught:
        find_base("acme/sdxl", None, Path())
    assert caught.value.fix.startswith("hf download acme/sdxl --include")
    assert "1 unfinished" in caught.value.fix
    shutil.rmtree(snapshot)
    with pytest.raises(NotFound, match="interrupted"):
        find_base("acme/sdxl", None, Path())


def test_download_without_any_file_points_to_the_license(hub: Path) -> None:
    """A cache entry without files is what a refused, gated download leaves."""
    (hub / "models--acme--sdxl" / "refs").mkdir(parents=True)
    (hub / "models--acme--sdxl" / "refs" / "main").write_text(COMMITS[0])
    with pytest.raises(NotFound, match="nothing was downloaded") as caught:
        find_base("acme/sdxl", None, Path())
    assert "license" in caught.value.fix
    assert "hf auth login" in caught.value.fix


@pytest.fixture
def other_vae(tmp_path: Path) -> Path:
    """The mini base's VAE with a shifted last bias: it decodes a little brighter."""
    shutil.copytree(BASE_DIR / "vae", tmp_path / "bright-vae")
    file = tmp_path / "bright-vae" / "diffusion_pytorch_model.safetensors"
    weights = {k: v.float() for k, v in load_file(file).items()}
    weights["decoder.conv_out.bias"] += 0.25
    save_file(weights, file)
    return tmp_path / "bright-vae"


def test_separate_vae_replaces_the_bases_own(other_vae: Path) -> None:
    """It has its hash, changes the base's, and is what decodes: brighter by its shift."""
    plain = find_base("mini", None, Path())
    base = find_base("mini", None, other_vae.parent, vae="bright-vae")
    assert base.vae is not None
    assert base.vae.hash not in {base.hash, plain.hash}
    assert base.hash != plain.hash
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (
            load_pipeline(x, torch.float32, "cpu").vae.decode(latents).sample for x in (plain, base)
        )
    assert torch.allclose(b, a + 0.25, atol=1e-5)


def test_vae_of_a_pipeline_folder_and_of_the_hub(hub: Path, folder: Path, other_vae: Path) -> None:
    """A whole pipeline's folder serves as the VAE in it; so does a Hub id."""
    alone = find_vae(str(BASE_DIR / "vae"), Path(), SDXL)
    assert find_vae("model", folder.parent, SDXL).hash == alone.hash
    put_in_hub(hub, "acme/vae", other_vae, COMMITS[0])
    assert find_vae("acme/vae", Path(), SDXL).hash == find_vae(str(other_vae), Path(), SDXL).hash


def test_base_without_its_own_vae_needs_the_separate_one(folder: Path, other_vae: Path) -> None:
    """A folder whose vae/ is missing works with a separate VAE, and only then."""
    shutil.rmtree(folder / "vae")
    base = find_base("model", None, folder.parent, vae=str(other_vae))
    assert load_pipeline(base, torch.float32, "cpu").vae.config.latent_channels == 4
    with pytest.raises(BaseModelError, match="part vae/ is missing"):
        find_base("model", None, folder.parent)


def test_vae_of_another_scale_is_refused(other_vae: Path) -> None:
    """A VAE whose latents are scaled in another way would give noise."""
    file = other_vae / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "scaling_factor": 0.18215}))
    with pytest.raises(BaseModelError, match=r"times 0\.18215") as caught:
        find_base("mini", None, other_vae.parent, vae="bright-vae")
    assert caught.value.where == '[base] vae = "bright-vae"'


def test_vae_files_are_told_apart(tmp_path: Path) -> None:
    """A VAE in the original layout is taken; 16 channels and other files are refused."""
    weights = vae_weights(load_file(BASE_DIR / "vae" / "diffusion_pytorch_model.safetensors"))
    save_file(weights, tmp_path / "vae.safetensors")
    found = find_vae("vae.safetensors", tmp_path, SDXL)
    assert (found.file, found.factor, found.scaling_factor) == (
        tmp_path / "vae.safetensors",
        8,
        0.13025,
    )
    wide = {**weights, "decoder.conv_in.weight": torch.zeros(8, 16, 3, 3)}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(BaseModelError, match="16 latent channels"):
        find_vae("wide.safetensors", tmp_path, SDXL)
    save_file({"x": torch.zeros(1)}, tmp_path / "no.safetensors")
    with pytest.raises(BaseModelError, match="holds no VAE"):
        find_vae("no.safetensors", tmp_path, SDXL)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_weights_that_a_file_lacks_are_never_made_up(folder: Path, part: str) -> None:
    """One missing tensor stops the load; no library fills it with random numbers."""
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    name = next(n for n in weights if n.endswith(("fc1.weight", "conv_in.weight")))
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=f"1 weights of {part} are missing"):
        load_pipeline(find_base("model", None, folder.parent), torch.float32, "cpu")


@pytest.mark.parametrize("vae_dtype", [None, torch.float32])
def test_loaded_dtypes_are_as_asked(vae_dtype: torch.dtype | None) -> None:
    """All in bfloat16; the VAE in float32 with its file's exact weights when asked."""
    base = find_base("mini", None, Path())
    pipe = load_pipeline(base, torch.bfloat16, "cpu", vae_dtype=vae_dtype)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        parameters = list(getattr(pipe, name).parameters())
        assert {p.dtype for p in parameters} == {torch.bfloat16}
        assert not any(p.requires_grad for p in parameters)
    bias = load_file(BASE_DIR / "vae" / "diffusion_pytorch_model.safetensors")[
        "decoder.conv_in.bias"
    ]
    assert torch.equal(pipe.vae.decoder.conv_in.bias, bias.to(vae_dtype or torch.bfloat16))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settled file, and a cache of its own."""
    monkeypatch.setenv("STYLETUNE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights.bin"
    file.write_bytes(b"a" * 100)
    old = time.time() - 60
    os.utime(file, (old, old))
    return file


def test_known_hash_is_not_computed_again(weights: Path, tmp_path: Path) -> None:
    """While size, time and inode are the same, the remembered hash is the answer."""
    digest = cached_sha256(weights, "here", cached_from_bytes=1)
    store = tmp_path / "cache" / "file-hashes.json"
    entries = json.loads(store.read_text())
    assert entries[str(weights)][3] == digest
    entries[str(weights)][3] = "f" * 64
    store.write_text(json.dumps(entries))
    assert cached_sha256(weights, "here", cached_from_bytes=1) == "f" * 64
    assert cached_sha256(weights, "here") == digest  # small files are not looked up


def test_changed_file_is_hashed_again(weights: Path) -> None:
    """Other bytes of the same length give their own hash, as soon as the time differs."""
    before = cached_sha256(weights, "here", cached_from_bytes=1)
    weights.write_bytes(b"b" * 100)
    assert cached_sha256(weights, "here", cached_from_bytes=1) != before


def test_fresh_file_is_not_remembered(weights: Path, tmp_path: Path) -> None:
    """A file that may still be written is hashed each time."""
    os.utime(weights)
    cached_sha256(weights, "here", cached_from_bytes=1)
    assert not (tmp_path / "cache" / "file-hashes.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', "null"])
def test_corrupt_cache_is_forgotten(weights: Path, tmp_path: Path, content: str) -> None:
    """A damaged cache is made anew, with the right hash."""
    digest = cached_sha256(weights, "here", cached_from_bytes=1)
    store = tmp_path / "cache" / "file-hashes.json"
    store.write_text(content)
    assert cached_sha256(weights, "here", cached_from_bytes=1) == digest
    assert json.loads(store.read_text())[str(weights)][3] == digest


def test_unwritable_cache_does_not_stop(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no cache can be kept, hashes are still right."""
    digest = cached_sha256(weights, "here")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("STYLETUNE_CACHE", str(tmp_path / "file"))
    assert cached_sha256(weights, "here", cached_from_bytes=1) == digest


def test_finding_a_base_imports_no_torch() -> None:
    """A plan or a wrong path is answered before anything heavy is imported."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom styletune.models.base_files import find_base\n"
        "find_base('mini', None, Path())\n"
        "assert not {'torch', 'diffusers', 'transformers', 'bitsandbytes'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
