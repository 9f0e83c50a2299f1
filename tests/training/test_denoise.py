"""One micro-batch, computed again by hand from what was drawn and what is cached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from loop_parts import (
    PLAIN,
    Trainee,
    denoiser_of,
    live,
    mini_pipe,
    section_with,
    small_cache,
    trainee,
)
from torch import Tensor

from styletune.adapters.inject import adapter_off
from styletune.models.conditioning import empty_prompt, encode_prompts
from styletune.models.family import Conditioning
from styletune.recipe.training_sections import TrainSection
from styletune.training.batches import MicroBatch
from styletune.training.denoise import (
    CLASS_POSITION,
    Denoiser,
    class_losses,
    denoising_losses,
    noisy_batch,
    with_noise,
)
from styletune.training.images import Cache, Prior, TrainingImages
from styletune.training.noise import NoiseSample, sample_noise

# Sides that bfloat16 rounds; the last image is of another bucket.
SIZES = [(333, 333), (261, 261), (64, 64), (64, 64), (140, 70)]
CAPTIONS = [[f"scene {i}", f"{i} seen", f"the sea, {i}"] for i in range(5)]
SQUARE = [0, 1, 2, 3]
POSITIONS = [3, 8, 5, 40]
PERTURBED = section_with(PLAIN, seed=7, input_perturbation=0.4)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    return mini_pipe()


@pytest.fixture(scope="module")
def cache(pipe: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Five images in two buckets; of the second the left half counts."""
    folder = tmp_path_factory.mktemp("denoise") / "images"
    return small_cache(pipe, folder, SIZES, CAPTIONS, masked=[1])


def drawn_for(cache: Cache, train: TrainSection = PERTURBED) -> NoiseSample:
    return sample_noise(train, 2, POSITIONS, cache.latent_shape(cache.bucket_of[0]), 1000)


def alpha_at(denoiser: Denoiser, drawn: NoiseSample, i: int) -> float:
    """ᾱ at the drawn timestep of the i-th sample."""
    return float(denoiser.alphas_cumprod[int(drawn.timesteps[i])])


def latent_by_hand(denoiser: Denoiser, cache: Cache, drawn: NoiseSample, i: int) -> Tensor:
    mean, logvar = (part[i].double() for part in cache.latents(SQUARE)[:2])
    return (mean + (logvar / 2).exp() * drawn.posterior_noise[i]) * denoiser.scaling_factor


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ({"caption_dropout": 1.0}, {"drop_caption"}),
        ({"timestep_sampling": "logit-normal"}, {"timesteps"}),
        ({"min_timestep": 990}, {"timesteps"}),
        ({"max_timestep": 9}, {"timesteps"}),
        ({"noise_offset": 0.3}, {"noise", "input_noise"}),
        ({"pyramid_noise": 0.3}, {"noise", "input_noise"}),
        ({"input_perturbation": 0.3}, {"input_noise"}),
    ],
)
def test_each_setting_changes_its_own_draws(
    cache: Cache, setting: Mapping[str, Any], changed: set[str]
) -> None:
    """And no others."""
    plain, other = (drawn_for(cache, section_with(PLAIN, **keys)) for keys in ({}, setting))
    assert changed == {
        field.name
        for field in fields(NoiseSample)
        if not torch.equal(getattr(plain, field.name), getattr(other, field.name))
    }


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_input_and_target_are_what_was_drawn(
    pipe: StableDiffusionXLPipeline, cache: Cache, prediction_type: Any
) -> None:
    """A perturbed input is mixed from the input's noise, the target made of the unperturbed one."""
    # SDXL scales latents by 0.13025, the mini base by 1.
    denoiser = replace(denoiser_of(pipe, prediction_type), scaling_factor=0.13025)
    drawn = drawn_for(cache)
    assert not torch.allclose(drawn.noise, drawn.input_noise, atol=0.1)
    inputs = with_noise(denoiser, PERTURBED, cache, SQUARE, drawn)
    for i in range(4):
        a = alpha_at(denoiser, drawn, i)
        latent = latent_by_hand(denoiser, cache, drawn, i)
        noisy = math.sqrt(a) * latent + math.sqrt(1 - a) * drawn.input_noise[i]
        target = drawn.noise[i].double()
        if prediction_type == "v_prediction":
            target = math.sqrt(a) * target - math.sqrt(1 - a) * latent
        assert torch.allclose(inputs.noisy_latents[i].double(), noisy, atol=1e-5)
        assert torch.allclose(inputs.target[i].double(), target, atol=1e-5)
    assert torch.equal(inputs.timesteps, drawn.timesteps)


def test_another_posterior_sample_moves_the_input_by_its_spread(
    pipe: StableDiffusionXLPipeline, cache: Cache
) -> None:
    """Without the posterior's noise the input is made of the mean, and of nothing else."""
    denoiser = denoiser_of(pipe)
    drawn = drawn_for(cache)
    still = replace(drawn, posterior_noise=torch.zeros_like(drawn.posterior_noise))
    moved, kept = (
        with_noise(denoiser, PERTURBED, cache, SQUARE, d).noisy_latents for d in (drawn, still)
    )
    _, logvar, _ = cache.latents(SQUARE)
    roots = denoiser.alphas_cumprod[drawn.timesteps].sqrt()[:, None, None, None]
    spread = roots * (logvar / 2).exp() * drawn.posterior_noise * denoiser.scaling_factor
    assert float(spread.abs().max()) > 1e-3
    assert torch.allclose(moved - kept, spread, atol=2e-6)


def prediction_alone(
    denoiser: Denoiser, cache: Cache, noisy: Tensor, drawn: NoiseSample, i: int
) -> Tensor:
    """What the UNet says of one sample with its first caption, asked directly."""
    texts = cache.text_rows(cache.caption_rows[i, :1])
    output: Tensor = denoiser.unet(
        noisy[i : i + 1],
        drawn.timesteps[i : i + 1],
        encoder_hidden_states=texts.embeds,
        added_cond_kwargs={**texts.added, "time_ids": cache.sizes["time_ids"][i : i + 1]},
    ).sample[0]
    return output.double()


def error_by_hand(train: TrainSection, said: Tensor, target: Tensor) -> Tensor:
    error = (said - target).abs()
    if train.loss == "mse":
        return error**2
    delta = train.huber_delta
    return torch.where(error <= delta, error**2, delta * (2 * error - delta))


def weight_by_hand(train: TrainSection, prediction_type: str, a: float) -> float:
    snr = a / (1 - a)
    if train.weighting == "none":
        return 1.0
    if train.weighting == "debiased":
        return 1 / math.sqrt(min(snr, 1000))
    over = snr + 1 if prediction_type == "v_prediction" else snr
    return min(snr, train.snr_gamma) / over


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weighting": "min-snr", "snr_gamma": 0.05},
        {"weighting": "debiased"},
        {"weighting": "min-snr", "snr_gamma": 0.7, "prediction_type": "v_prediction"},
        {"weighting": "debiased", "loss": "huber", "huber_delta": 0.3},
    ],
)
def test_a_samples_loss_is_its_masked_error_times_its_weight(
    pipe: StableDiffusionXLPipeline, cache: Cache, changes: Mapping[str, Any]
) -> None:
    """Each sample is predicted on its own, under its caption and size, and weighed by hand."""
    train = section_with(PERTURBED, **changes)
    denoiser = denoiser_of(pipe, "epsilon" if train.prediction_type == "auto" else "v_prediction")
    drawn = replace(drawn_for(cache), caption_choice=torch.zeros(4, dtype=torch.float64))
    inputs = with_noise(denoiser, train, cache, SQUARE, drawn)
    found = denoising_losses(denoiser, train, inputs, cache.text_rows(inputs.text_rows))
    _, _, mask = cache.latents(SQUARE)
    assert mask is not None
    weights = []
    for i in range(4):
        said = prediction_alone(denoiser, cache, inputs.noisy_latents, drawn, i)
        errors = error_by_hand(train, said, inputs.target[i])
        assert bool(mask[i].all()) == (i != 1)
        alpha = alpha_at(denoiser, drawn, i)
        weights.append(weight_by_hand(train, denoiser.prediction_type, alpha))
        wanted = (errors * mask[i]).sum() / (4 * mask[i].sum()) * weights[-1]
        assert float(found[i]) == pytest.approx(float(wanted), rel=1e-4)
    assert (max(weights) - min(weights) > 0.05) == bool(changes)


@torch.no_grad()
def test_nothing_under_a_mask_is_counted(pipe: StableDiffusionXLPipeline, cache: Cache) -> None:
    """Where the mask is 0 another target is the same loss, anywhere else it is not."""
    denoiser = denoiser_of(pipe)
    inputs = with_noise(denoiser, PERTURBED, cache, SQUARE, drawn_for(cache))
    assert inputs.mask is not None
    text = cache.text_rows(inputs.text_rows)
    before = denoising_losses(denoiser, PERTURBED, inputs, text)
    nothing = (inputs.mask == 0).float()
    assert bool(nothing[1].any())
    outside = replace(inputs, target=inputs.target + nothing)
    inside = replace(inputs, target=inputs.target + (1 - nothing))
    assert torch.equal(denoising_losses(denoiser, PERTURBED, outside, text), before)
    assert bool((denoising_losses(denoiser, PERTURBED, inside, text) != before).all())


def test_a_sample_picks_the_variant_that_it_drew(
    pipe: StableDiffusionXLPipeline, cache: Cache
) -> None:
    """The row is that of the entry's own caption number int(choice · 3)."""
    denoiser, asked = denoiser_of(pipe), [2, 0, 3, 1]
    drawn = drawn_for(cache)
    for choices in ([0.0, 0.32, 0.34, 0.999], [0.66, 0.67, 0.5, 0.01]):
        these = replace(drawn, caption_choice=torch.tensor(choices, dtype=torch.float64))
        rows = with_noise(denoiser, PERTURBED, cache, asked, these).text_rows.tolist()
        assert [cache.captions[row] for row in rows] == [
            CAPTIONS[entry][int(choice * 3)] for entry, choice in zip(asked, choices, strict=True)
        ]


def test_entries_bring_their_own_latents_and_sizes(
    pipe: StableDiffusionXLPipeline, cache: Cache
) -> None:
    """Whatever order entries are asked for in, and whichever bucket they are of."""
    denoiser = denoiser_of(pipe)
    drawn = replace(
        drawn_for(cache),
        timesteps=torch.zeros(4, dtype=torch.int64),
        drop_caption=torch.zeros(4, dtype=torch.bool),
    )
    turned = with_noise(denoiser, PERTURBED, cache, [3, 0, 1, 2], drawn)
    assert torch.equal(turned.sizes["time_ids"], cache.sizes["time_ids"][[3, 0, 1, 2]])
    mean, _, _ = cache.latents([3, 0, 1, 2])
    scaled = mean * denoiser.scaling_factor
    # At timestep 0 there is nearly no noise.
    assert float((turned.noisy_latents - scaled).square().mean()) < 0.1 * float(scaled.var())
    inputs = noisy_batch(denoiser, PERTURBED, cache, MicroBatch(2, [4], [0]))
    assert inputs.noisy_latents.shape[2:] != turned.noisy_latents.shape[2:]
    assert torch.equal(inputs.sizes["time_ids"], cache.sizes["time_ids"][4:])


@pytest.mark.parametrize("force_zeros", [True, False])
def test_a_dropped_caption_is_the_pipelines_empty_prompt(
    cache: Cache, tmp_path: Path, force_zeros: bool
) -> None:
    """The row after the captions, from the cache and from live encoders, by the base's rule."""
    pipe = mini_pipe()
    pipe.register_to_config(force_zeros_for_empty_prompt=force_zeros)
    texts = [CAPTIONS[0]]
    own = small_cache(pipe, tmp_path / "images", [(64, 64)], texts)
    denoiser = denoiser_of(pipe)
    kept, dropped = (
        noisy_batch(
            denoiser, section_with(PLAIN, caption_dropout=share), own, MicroBatch(2, [0], [3])
        )
        for share in (0.0, 1.0)
    )
    wanted = empty_prompt(pipe)
    assert bool(wanted.embeds.any()) != force_zeros
    for found in (own.text_rows, live(pipe, own.captions)):
        empty, said = found(dropped.text_rows), found(kept.text_rows)
        assert torch.allclose(empty.embeds, wanted.embeds, atol=1e-5)
        assert torch.allclose(empty.added["text_embeds"], wanted.added["text_embeds"], atol=1e-5)
        assert not torch.allclose(said.embeds, wanted.embeds, atol=1e-2)
        assert not torch.allclose(said.added["text_embeds"], wanted.added["text_embeds"], atol=1e-2)


def test_only_those_that_drew_it_lose_their_caption(
    pipe: StableDiffusionXLPipeline, cache: Cache
) -> None:
    """Others in the batch keep theirs."""
    denoiser = denoiser_of(pipe)
    drop = torch.tensor([False, True, True, False])
    drawn = replace(drawn_for(cache), drop_caption=drop)
    rows = with_noise(denoiser, PERTURBED, cache, SQUARE, drawn).text_rows
    assert (rows == len(cache.captions)).tolist() == drop.tolist()


@torch.no_grad()
def test_sizes_reach_the_unet_unrounded(pipe: StableDiffusionXLPipeline, cache: Cache) -> None:
    """A side of 333 pixels is 333, also when the UNet computes in bfloat16."""
    half = mini_pipe()
    half.unet.to(torch.bfloat16)
    denoiser = denoiser_of(half, dtype=torch.bfloat16)
    seen: list[Tensor] = []
    hook = half.unet.add_time_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    inputs = with_noise(denoiser, PERTURBED, cache, SQUARE, drawn_for(cache))
    denoising_losses(denoiser, PERTURBED, inputs, cache.text_rows(inputs.text_rows))
    hook.remove()
    assert torch.equal(seen[0].float(), cache.sizes["time_ids"][SQUARE].flatten())


def test_live_captions_equal_cached_ones_before_training(
    cache: Cache, pipe: StableDiffusionXLPipeline
) -> None:
    """With an untrained adapter in both encoders every caption is as it was, the empty one too."""
    who = trainee({"adapter": {"text_encoders": "both"}})
    rows = torch.tensor([2, len(cache.captions), 0, 14])
    cached, now = cache.text_rows(rows), live(who.models.pipe, cache.captions)(rows)
    assert torch.allclose(now.embeds, cached.embeds, atol=1e-5)
    assert torch.allclose(now.added["text_embeds"], cached.added["text_embeds"], atol=1e-5)
    assert not now.embeds[1].any()


def test_gradients_reach_both_encoders() -> None:
    """Through live captions, but through the empty one of zeros to neither."""
    who = trainee({"adapter": {"text_encoders": "both"}})
    texts = live(who.models.pipe, ["the sea at noon"])
    for row, reached in ((0, True), (1, False)):
        found = texts(torch.tensor([row]))
        (found.embeds.square().sum() + found.added["text_embeds"].square().sum()).backward()
        for encoder in ("text_encoder", "text_encoder_2"):
            grads = [
                p.grad
                for n, p in who.parameters.items()
                if n.startswith(f"{encoder}.") and "lora_B" in n and p.grad is not None
            ]
            assert any(bool(g.any()) for g in grads) == reached, encoder
        for parameter in who.parameters.values():
            parameter.grad = None


def prior_of(who: Trainee, base_text: Conditioning) -> Prior:
    """By prediction: the class in the adapted encoders' words and in the base's."""
    text = live(who.models.pipe, ["the sea at noon"])
    return Prior(1.0, None, text, lambda _: base_text, lambda: adapter_off(who.models.modules))


def test_the_prior_of_an_untrained_adapter_is_nothing(cache: Cache) -> None:
    """Loss and gradients are 0: the adapted model still says what the base says."""
    who = trainee({"adapter": {"text_encoders": "both"}})
    pipe = who.models.pipe
    prior = prior_of(who, encode_prompts(pipe, ["the sea at noon"] * 4))
    images = TrainingImages(cache, cache.text_rows, [])
    found = class_losses(
        denoiser_of(pipe), PERTURBED, images, prior, MicroBatch(2, SQUARE, POSITIONS)
    )
    found.sum().backward()
    assert found.shape == (4,)
    assert float(found.detach().abs().max()) < 1e-10
    grads = [p.grad for p in who.parameters.values() if p.grad is not None]
    assert grads
    assert all(float(g.abs().max()) < 1e-5 for g in grads)


def test_the_prior_pulls_a_moved_adapter_back(cache: Cache) -> None:
    """Its target is the bare base's answer to its own words, and gradients reach all three."""
    who = trainee({"adapter": {"text_encoders": "both"}})
    pipe, generator = who.models.pipe, torch.Generator().manual_seed(5)
    denoiser, train = denoiser_of(pipe), section_with(PERTURBED, weighting="debiased")
    base_text = encode_prompts(pipe, ["the sea at noon"] * 4)
    bare = mini_pipe()
    for parameter in who.parameters.values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    prior, images = prior_of(who, base_text), TrainingImages(cache, cache.text_rows, [])
    found = class_losses(denoiser, train, images, prior, MicroBatch(2, SQUARE, POSITIONS))
    words = prior.text(torch.zeros(4, dtype=torch.long))
    # The class has noise of its own.
    apart_batch = MicroBatch(2, SQUARE, [CLASS_POSITION + p for p in POSITIONS])
    inputs = noisy_batch(denoiser, train, cache, apart_batch)
    with torch.no_grad():
        answers = [
            unet(
                inputs.noisy_latents,
                inputs.timesteps,
                encoder_hidden_states=text.embeds,
                added_cond_kwargs={**text.added, **inputs.sizes},
            ).sample
            for unet, text in ((pipe.unet, words), (bare.unet, base_text))
        ]
        apart = (answers[0] - answers[1]).square().mean(dim=(1, 2, 3)) * inputs.weights
    # Everywhere, also where the second image's mask leaves its own loss out.
    assert torch.allclose(found.detach(), apart, rtol=1e-3)
    assert float(apart.min()) > 1e-5
    found.sum().backward()
    for component in ("unet", "text_encoder", "text_encoder_2"):
        grads = [p.grad for n, p in who.parameters.items() if n.startswith(f"{component}.")]
        assert any(g is not None and bool(g.any()) for g in grads), component
