"""The cache: what it holds, what it costs, and that its files can be trusted."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor, nn

import world
from data_parts import load_folder
from styletune.data.entries import entries
from styletune.data.pixels.crop import Crop
from styletune.data.read import read_entry
from styletune.data.rows import Entry
from styletune.errors import DataError
from styletune.models.base_files import find_base
from styletune.models.conditioning import encode_prompts, size_conditions
from styletune.models.latents import latent_mask
from styletune.models.load import load_pipeline
from styletune.models.sdxl import SDXL
from styletune.recipe.data_sections import DataSection
from styletune.training.cache import CachePlace, build_cache
from styletune.training.cache_files import latent_key, tokenizer_hash, weights_hash
from styletune.training.images import Cache

SIZES = [(128, 128), (200, 130), (140, 140), (130, 200), (210, 130)]


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    return load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")


def scene(seed: int, size: tuple[int, int]) -> Image.Image:
    view = world.random_view(np.random.default_rng([seed, 11]))
    return Image.fromarray(world.render(view, side_px=220)).resize(size)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images in three buckets; the fourth counts on its upper half only."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate(SIZES):
        image = scene(i, size)
        if i == 3:
            alpha = Image.new("L", size, 255)
            alpha.paste(0, (0, size[1] // 2, *size))
            image.putalpha(alpha)
        image.save(folder / f"{i}.png")
    return folder


def found_in(folder: Path, flip: bool = False) -> list[Entry]:
    data = load_folder(
        folder,
        default_caption="x",
        holdout=0,
        resolution=128,
        buckets=True,
        flip=flip,
        mask="alpha",
        background="#808080",
    )
    return entries(data)


def read(entry: Entry) -> Crop:
    return read_entry(entry)


def section(mask_floor: float = 0.0) -> DataSection:
    return DataSection(path="images", mask="alpha", mask_floor=mask_floor)


def build(
    pipe: StableDiffusionXLPipeline,
    found: list[Entry],
    cache_dir: Path | None = None,
    captions: list[list[str]] | None = None,
    mask_floor: float = 0.0,
) -> Cache:
    texts = captions or [[f"scene {e.row.file_name}"] for e in found]
    return build_cache(pipe, found, texts, read, section(mask_floor), CachePlace("cpu", cache_dir))


def tensors_of(cache: Cache) -> list[Tensor]:
    parts = [*cache.sizes.values(), cache.caption_rows]
    if cache.texts is not None:
        parts += [cache.texts.embeds, *cache.texts.added.values()]
    for bucket in cache.buckets:
        parts += [t for t in (bucket.mean, bucket.logvar, bucket.mask) if t is not None]
    return parts


def same(a: Cache, b: Cache) -> bool:
    pairs = zip(tensors_of(a), tensors_of(b), strict=True)
    facts = [(c.bucket_of, c.places, c.captions) for c in (a, b)]
    return facts[0] == facts[1] and all(torch.equal(x, y) for x, y in pairs)


class Calls:
    """How often the encoders really ran."""

    vae = 0
    text = 0


@pytest.fixture
def calls(pipe: StableDiffusionXLPipeline) -> Iterator[Calls]:
    count = Calls()

    def on_vae(_module: nn.Module, _inputs: object, _output: object) -> None:
        count.vae += 1

    def on_text(_module: nn.Module, _inputs: object, _output: object) -> None:
        count.text += 1

    hooks = [
        pipe.vae.encoder.register_forward_hook(on_vae),
        pipe.text_encoder.register_forward_hook(on_text),
    ]
    yield count
    for hook in hooks:
        hook.remove()


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_it_holds_what_the_encoders_give(pipe: StableDiffusionXLPipeline, images: Path) -> None:
    """Latents, sizes and captions of every entry are those of its own image."""
    found = found_in(images)
    captions = [["a", f"b {i}"] for i in range(5)]
    cache = build(pipe, found, captions=captions)
    assert cache.num_entries == 5
    assert cache.captions == ("a", "b 0", "b 1", "b 2", "b 3", "b 4")
    assert cache.caption_rows.tolist() == [[0, i + 1] for i in range(5)]
    assert [cache.latent_shape(b) for b in cache.bucket_of] == [
        (4, 16, 16),
        (4, 12, 20),
        (4, 16, 16),
        (4, 20, 12),
        (4, 12, 20),
    ]
    for i, entry in enumerate(found):
        crop = read(entry)
        pixels = torch.from_numpy(crop.pixels).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            expected = pipe.vae.encode(pixels).latent_dist
        mean, logvar, mask = cache.latents([i])
        assert torch.allclose(mean, expected.mean, atol=1e-5)
        assert torch.allclose(logvar, expected.logvar, atol=1e-4)
        assert (mask is None) == (i != 3)
        sizes = (crop.original_size, crop.crops_coords_top_left, crop.target_size)
        conditions = size_conditions(SDXL, *sizes)
        assert torch.equal(cache.sizes["time_ids"][i], conditions["time_ids"])
        assert conditions["time_ids"].tolist() == [side for size in sizes for side in size]
    encoded = encode_prompts(pipe, list(cache.captions))
    text = cache.text_rows(torch.arange(6))
    assert torch.allclose(text.embeds, encoded.embeds, atol=1e-5)
    assert text.added.keys() == encoded.added.keys() == {"text_embeds"}
    assert torch.allclose(text.added["text_embeds"], encoded.added["text_embeds"], atol=1e-5)
    assert cache.texts is not None
    assert not cache.texts.embeds[-1].any()  # this base's empty caption is zeros


def test_a_batch_is_gathered_in_its_order(pipe: StableDiffusionXLPipeline, images: Path) -> None:
    """Rows come as asked for, and a batch of two buckets is not possible."""
    cache = build(pipe, found_in(images))
    assert cache.bucket_of[1] == cache.bucket_of[4]
    both, one = cache.latents([4, 1])[0], cache.latents([1])[0]
    assert torch.equal(both[1], one[0])
    assert not torch.equal(both[0], one[0])
    with pytest.raises(ValueError, match="too many values"):
        cache.latents([0, 1])


def test_masks_are_resident_with_their_floor(pipe: StableDiffusionXLPipeline, images: Path) -> None:
    """Masked cells weigh the floor, others 1; an entry without a mask in that bucket weighs 1."""
    scene(9, (130, 200)).save(images / "9.png")
    found = found_in(images)
    cache = build(pipe, found, mask_floor=0.25)
    crop = read(found[3])
    assert crop.mask is not None
    mask = cache.latents([3, 5])[2]
    assert mask is not None
    assert mask.shape == (2, 1, 20, 12)
    expected = 0.25 + 0.75 * torch.from_numpy(latent_mask(crop.mask, 8))
    assert torch.equal(mask[0, 0], expected)
    assert mask[0].min() == 0.25
    assert mask[0].max() == 1
    assert (mask[1] == 1).all()


def test_a_mirrored_entry_has_its_own_latents(
    pipe: StableDiffusionXLPipeline, images: Path
) -> None:
    """They are those of the mirrored pixels, with the same mask turned along."""
    found = found_in(images, flip=True)
    cache = build(pipe, found)
    for plain, mirrored in ((0, 1), (6, 7)):
        assert (found[plain].flip, found[mirrored].flip) == (False, True)
        pixels = torch.from_numpy(read(found[plain]).pixels[:, ::-1].copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = pipe.vae.encode(pixels / 127.5 - 1).latent_dist.mean
        mean, _, mask = cache.latents([mirrored])
        assert torch.allclose(mean, expected, atol=1e-5)
        assert not torch.allclose(mean, cache.latents([plain])[0], atol=1e-2)
        if mask is not None:
            straight = cache.latents([plain])[2]
            assert straight is not None
            assert torch.equal(mask, straight.flip(-1))


def test_disk_changes_nothing(
    pipe: StableDiffusionXLPipeline, images: Path, tmp_path: Path, calls: Calls
) -> None:
    """Without a folder, into an empty one and from a full one the tensors are the same bits."""
    found = found_in(images, flip=True)
    bare = build(pipe, found)
    first = build(pipe, found, tmp_path / "cache")
    assert (calls.vae, calls.text) == (20, 12)
    second = build(pipe, found, tmp_path / "cache")
    assert (calls.vae, calls.text) == (20, 12)
    assert same(bare, first)
    assert same(first, second)


def test_an_edited_image_is_the_only_one_encoded_again(
    pipe: StableDiffusionXLPipeline, images: Path, tmp_path: Path, calls: Calls
) -> None:
    """One changed image costs one encoding, one changed caption one, renamed files nothing."""
    before = build(pipe, found_in(images), tmp_path / "cache")
    assert (calls.vae, calls.text) == (5, 6)
    scene(50, SIZES[1]).save(images / "1.png")
    after = build(pipe, found_in(images), tmp_path / "cache")
    assert (calls.vae, calls.text) == (6, 6)
    for i in range(5):
        kept = torch.equal(before.latents([i])[0], after.latents([i])[0])
        assert kept == (i != 1)
    shutil.move(images / "0.png", images / "renamed.png")
    texts = [[f"scene {i}.png"] for i in (1, 2, 3, 4)] + [["another caption"]]
    build(pipe, found_in(images), tmp_path / "cache", texts)
    assert (calls.vae, calls.text) == (6, 7)


def test_a_grown_cache_equals_one_built_at_once(
    pipe: StableDiffusionXLPipeline, images: Path, tmp_path: Path
) -> None:
    """What was encoded in three goes is bit for bit what one go gives."""
    found = found_in(images, flip=True)
    for part in (found[2:5], found[:7], found):
        grown = build(pipe, part, tmp_path / "grown")
    assert same(grown, build(pipe, found))


class Killed(Exception):
    pass


def test_a_killed_build_goes_on_where_it_was(
    pipe: StableDiffusionXLPipeline, images: Path, tmp_path: Path, calls: Calls
) -> None:
    """What was written before the end is not encoded again."""
    found = found_in(images)

    def dying(entry: Entry) -> Crop:
        if entry.row.file_name == "3.png":
            raise Killed
        return read(entry)

    texts = [["x"]] * 5
    with pytest.raises(Killed):
        build_cache(pipe, found, texts, dying, section(), CachePlace("cpu", tmp_path / "cache"))
    done = calls.vae
    assert done == len(files_in(tmp_path / "cache")) == 3
    cache = build(pipe, found, tmp_path / "cache", texts)
    assert calls.vae == 5
    assert same(cache, build(pipe, found, captions=texts))


@pytest.mark.parametrize("damage", ["cut", "bit", "foreign", "empty", "text"])
def test_damaged_files_are_made_anew(
    pipe: StableDiffusionXLPipeline, images: Path, tmp_path: Path, calls: Calls, damage: str
) -> None:
    """A file that is short, flipped in one bit, or another's is replaced, not used."""
    found = found_in(images)
    whole = build(pipe, found, tmp_path / "cache")
    files = files_in(tmp_path / "cache" / "latents")
    raw = files[0].read_bytes()
    files[0].write_bytes(
        {
            "cut": raw[: len(raw) // 2],
            "bit": raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:],
            "foreign": files[1].read_bytes(),
            "empty": b"",
            "text": b"\x04\x00\x00\x00\x00\x00\x00\x00null",
        }[damage]
    )
    assert (calls.vae, calls.text) == (5, 6)
    assert same(whole, build(pipe, found, tmp_path / "cache"))
    assert calls.vae == 6
    assert files[0].read_bytes() == raw


def test_keys_follow_everything_that_latents_depend_on(images: Path) -> None:
    """Pixels, mask, crop, bucket, mirroring and the VAE each give another file."""
    entry = found_in(images)[1]
    plan = entry.plan
    others = [
        replace(entry, row=replace(entry.row, pixel_hash="0" * 64)),
        replace(entry, row=replace(entry.row, mask_hash="0" * 64)),
        replace(entry, plan=replace(plan, resized=(97, 160))),
        replace(entry, plan=replace(plan, top=1)),
        replace(entry, plan=replace(plan, left=plan.left + 1)),
        replace(entry, plan=replace(plan, bucket=(96, 128))),
        replace(entry, flip=True),
    ]
    keys = {latent_key(e, "vae") for e in [entry, *others]} | {latent_key(entry, "other")}
    assert len(keys) == len(others) + 2
    same_picture = replace(entry, row=replace(entry.row, file_name="y.png", path="/y", text="y"))
    assert latent_key(same_picture, "vae") == latent_key(entry, "vae")


def test_hashes_follow_weights_settings_and_words(pipe: StableDiffusionXLPipeline) -> None:
    """One weight, one setting, one dtype or one word changes them; using a model does not."""
    fresh = load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")
    vae, words = fresh.vae, tokenizer_hash(fresh.tokenizer)
    before = weights_hash(vae)
    assert (before, words) == (weights_hash(pipe.vae), tokenizer_hash(pipe.tokenizer))
    weight = next(vae.parameters())
    kept = weight.data.clone()
    weight.data.view(-1)[0] += 1
    assert weights_hash(vae) != before
    weight.data.copy_(kept)
    assert weights_hash(vae) == before
    vae.register_to_config(act_fn="gelu")
    assert weights_hash(vae) != before
    vae.register_to_config(act_fn="silu")
    assert weights_hash(vae) == before
    assert weights_hash(vae.to(torch.bfloat16)) != before
    fresh.tokenizer("a", padding="max_length", truncation=True, max_length=9)
    assert tokenizer_hash(fresh.tokenizer) == words
    fresh.tokenizer.add_tokens(["<look>"])
    assert tokenizer_hash(fresh.tokenizer) != words


def test_models_are_put_back(pipe: StableDiffusionXLPipeline, images: Path) -> None:
    """The VAE runs in float32 and is afterwards in the precision it had, bit for bit."""
    half = load_pipeline(find_base("mini", None, Path()), torch.bfloat16, "cpu")
    before, seen = weights_hash(half.vae), set()

    def look(_module: nn.Module, inputs: tuple[Tensor, ...], _output: object) -> None:
        seen.add(inputs[0].dtype)

    hook = half.vae.encoder.register_forward_hook(look)
    cache = build(half, found_in(images)[:2])
    hook.remove()
    assert seen == {torch.float32}
    assert weights_hash(half.vae) == before
    assert cache.buckets[0].mean.dtype == torch.float32
    assert cache.texts is not None
    assert cache.texts.embeds.dtype == torch.bfloat16


def test_text_encoders_can_be_left_out(pipe: StableDiffusionXLPipeline, images: Path) -> None:
    """For trained text encoders the cache keeps the captions, not their embeddings."""
    found = found_in(images)[:2]
    cache = build_cache(
        pipe, found, [["a"], ["b"]], read, section(), CachePlace("cpu"), with_text=False
    )
    assert cache.captions == ("a", "b")
    assert cache.texts is None


def test_nan_latents_name_their_image(
    pipe: StableDiffusionXLPipeline, images: Path, tmp_path: Path
) -> None:
    """A VAE that overflows stops the run, and nothing of it is kept."""
    broken = load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")
    next(broken.vae.encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(DataError, match=r"NaN for 0\.png"):
        build(broken, found_in(images), tmp_path / "cache")
    assert files_in(tmp_path / "cache") == []


BUILDER = """
import json, sys
from pathlib import Path
import torch
places, images, cache_dir, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
sys.path[:0] = json.loads(places)
from styletune.models.base_files import find_base
from styletune.models.load import load_pipeline
from test_cache import build, digest, found_in
pipe = load_pipeline(find_base("mini", None, Path()), torch.float32, "cpu")
found = found_in(Path(images), flip=True)
print("ready", flush=True)
sys.stdin.readline()
print(digest(build(pipe, found, Path(cache_dir))))
"""


def digest(cache: Cache) -> str:
    raw = b"".join(tensor.numpy().tobytes() for tensor in tensors_of(cache))
    return hashlib.sha256(raw + repr((cache.bucket_of, cache.captions)).encode()).hexdigest()


@pytest.mark.slow
def test_two_processes_build_one_cache(
    pipe: StableDiffusionXLPipeline, images: Path, tmp_path: Path
) -> None:
    """Started together on one folder, both end with the same cache and every file is whole."""
    cache_dir = tmp_path / "cache"
    # The other process imports this module and what pytest has put on the path for it.
    words = (json.dumps(sys.path), str(images), str(cache_dir), str(torch.get_num_threads()))
    found = found_in(images, flip=True)
    with subprocess.Popen(
        [sys.executable, "-c", BUILDER, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        mine = build(pipe, found, cache_dir)
        theirs = other.communicate(timeout=120)[0].strip()
    assert other.returncode == 0
    assert theirs == digest(mine) == digest(build(pipe, found, cache_dir))
    assert len(files_in(cache_dir / "latents")) == 10
    assert [p for p in cache_dir.rglob(".*") if p.is_file()] == []


@pytest.mark.gpu
def test_the_cache_is_resident_where_it_fits(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small cache lies on the GPU; one that would crowd it is pinned, and reads the same."""
    from styletune.training import cache as module

    # A shared folder: a GPU's convolutions may round differently from one encoding to the next.
    place = CachePlace("cuda", tmp_path / "cache")
    pipe = load_pipeline(find_base("mini", None, Path()), torch.float32, "cuda")
    found = found_in(images)
    texts = [["x"]] * len(found)
    resident = build_cache(pipe, found, texts, read, section(), place)
    assert all(b.mean.is_cuda for b in resident.buckets)
    monkeypatch.setattr(module, "RESIDENT_BYTES", 0)
    pinned = build_cache(pipe, found, texts, read, section(), place)
    assert all(b.mean.is_pinned() for b in pinned.buckets)
    assert pinned.latents([1, 4])[0].is_cuda
    assert torch.equal(pinned.latents([1, 4])[0], resident.latents([1, 4])[0])
    assert pinned.text_rows(torch.tensor([0])).embeds.is_cuda
