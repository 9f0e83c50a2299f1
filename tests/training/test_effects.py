"""What the recipe's options do to a trained adapter, on the mini base through the real job."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from job_parts import Answer
from styletune.adapters.file import load_adapter
from styletune.adapters.updates import merged
from styletune.mini import BASE_DIR
from styletune.models.base_files import find_base
from styletune.models.conditioning import encode_prompts, size_conditions
from styletune.models.load import load_pipeline
from styletune.models.sdxl import SDXL
from styletune.runs import Run

Command = Callable[..., Answer]
CLASS = "the sea at noon"
SHORT = (
    "train.steps=24",
    "train.checkpoint_every=24",
    "train.log_every=1",
    "preview.prompts=[]",
    "optimizer.learning_rate=4e-3",
    "data.holdout=0.25",
)


@pytest.fixture
def train(brand: Path, styletune: Command, tmp_path: Path) -> Callable[..., Run]:
    """Train the small brand with options; the run."""

    def go(name: str, *options: str) -> Run:
        run = Run(tmp_path / name)
        answer = styletune(
            "train",
            brand,
            "--run-dir",
            run.dir,
            "--runs-dir",
            tmp_path,
            *(f"--set={o}" for o in (*SHORT, *options)),
        )
        assert answer.code == 0, answer.err
        return run

    return go


@torch.no_grad()
def predictions(prompt: str, run: Run | None) -> Tensor:
    """The (adapted) UNet's noise prediction for fixed latents at three noise levels."""
    pipe = load_pipeline(find_base(str(BASE_DIR), None, Path()), torch.float32, "cpu")
    text = encode_prompts(pipe, [prompt] * 3)
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    sizes = size_conditions(SDXL, (128, 128), (0, 0), (128, 128))
    inputs = {
        "timestep": torch.tensor([300, 600, 900]),
        "encoder_hidden_states": text.embeds,
        "added_cond_kwargs": {
            **text.added,
            **{name: values.expand(3, -1) for name, values in sizes.items()},
        },
    }
    adapter: AbstractContextManager[None] = nullcontext()
    if run is not None:
        adapter = merged({"unet": pipe.unet}, *load_adapter(run.adapter_file(24)), 1.0)
    with adapter:
        noise_pred: Tensor = pipe.unet(latents, **inputs).sample
    return noise_pred


@pytest.mark.slow
def test_prior_preservation_keeps_the_class(train: Callable[..., Run]) -> None:
    """Both kinds leave the class nearer to the base than training without, and still learn."""
    base = predictions(CLASS, None)
    brand_words = "horizon style, a city skyline at sunset"
    base_brand = predictions(brand_words, None)

    def drift(run: Run, prompt: str, start: Tensor) -> float:
        return float((predictions(prompt, run) - start).square().mean())

    plain = train("plain")
    for kind, options in (
        ("images", ("dreambooth.num_class_images=6",)),
        ("prediction", ()),
    ):
        kept = train(
            kind,
            f"dreambooth.prior={kind}",
            f'dreambooth.class_prompt="{CLASS}"',
            "dreambooth.prior_loss_weight=3.0",
            *options,
        )
        assert drift(kept, CLASS, base) < 0.8 * drift(plain, CLASS, base), kind
        assert drift(kept, brand_words, base_brand) > 0.1 * drift(plain, brand_words, base_brand)


@pytest.mark.slow
def test_validation_loss_falls_and_repeats(train: Callable[..., Run]) -> None:
    """The held-out loss goes down while the look is learned; measuring it changes no byte."""
    watched = train("watched", "train.validation_every=8")
    lines = [json.loads(line) for line in watched.log_file.read_text().splitlines()]
    values = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(values) == 3
    assert values[-1] < values[0]
    assert {k for k in lines[7] if k.startswith("validation_loss/")} == {
        f"validation_loss/{t}" for t in (100, 300, 500, 700, 900)
    }
    plain = train("unwatched")
    assert plain.adapter_file(24).read_bytes() == watched.adapter_file(24).read_bytes()


@pytest.mark.slow
def test_masked_halves_teach_nothing(brand: Path, train: Callable[..., Run]) -> None:
    """What is painted under a mask leaves the adapter as it is, up to what the VAE sees across."""
    images = brand.parent / "brand"
    masks = brand.parent / "masks"
    masks.mkdir()
    for file in images.glob("*.png"):
        mask = Image.new("L", (128, 128), 255)
        mask.paste(0, (64, 0, 128, 128))
        mask.save(masks / file.name)
    options = ("data.mask=folder", 'data.mask_path="masks"')
    clean, open_clean = train("clean", *options), train("open-clean")
    for file in images.glob("*.png"):
        image = Image.open(file).convert("RGB")
        image.paste((255, 0, 255), (96, 0, 128, 128))
        image.save(file)
    dirty, open_dirty = train("dirty", *options), train("open-dirty")
    words = "horizon style, a city skyline at sunset"

    def apart(a: Run, b: Run) -> float:
        return float((predictions(words, a) - predictions(words, b)).square().mean())

    assert apart(clean, dirty) < 0.5 * apart(open_clean, open_dirty)


@pytest.mark.slow
def test_block_rates_freeze_a_block(train: Callable[..., Run]) -> None:
    """A block of rate 0 keeps its B at zero; the others move."""
    run = train("frozen", 'adapter.block_learning_rates={"up_blocks.0.*" = 0.0}')
    tensors, _ = load_adapter(run.adapter_file(24))
    for name, tensor in tensors.items():
        if "lora_B" in name:
            assert bool(tensor.abs().max() > 0) != name.startswith("unet.up_blocks.0."), name


@pytest.mark.slow
def test_training_goes_on_from_a_published_layout(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    """A kohya file of a run is where the next one starts: its first loss is the trained one's."""
    from styletune.adapters.export import kohya_file

    first = train("first")
    tensors, spec = load_adapter(first.adapter_file(24))
    (tmp_path / "project" / "k.safetensors").write_bytes(kohya_file(tensors, spec, {}, SDXL))
    again = train(
        "again",
        'adapter.start_from="k.safetensors"',
        "optimizer.learning_rate=1e-12",
        "optimizer.weight_decay=0.0",
    )
    kept, _ = load_adapter(again.adapter_file(24))
    for name, tensor in tensors.items():
        assert torch.allclose(kept[name], tensor, atol=1e-6), name
