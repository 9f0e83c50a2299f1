"""The loop on the mini base: what a step adds up, clips, averages, shows and refuses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_parts import (
    NAMES,
    Trainee,
    lines_of,
    live,
    norm,
    part_of,
    squares,
    train,
    trainee,
    values,
    watched,
)
from torch import Tensor

from job_parts import Answer
from styletune.adapters.file import load_adapter
from styletune.errors import BadInput, CheckFailed
from styletune.recipe.training_sections import TrainSection
from styletune.runs import Run
from styletune.training.batches import step_batch
from styletune.training.images import Cache, Prior, TrainingImages
from styletune.training.processes import make_accelerator

Command = Callable[..., Answer]
TEXT = {"adapter": {"text_encoders": "both"}}
UNCLIPPED = {"optimizer": {"max_grad_norm": 1e9}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return squares(tmp_path_factory.mktemp("loop") / "images")


@pytest.fixture
def material(cache: Cache) -> TrainingImages:
    return TrainingImages(cache, cache.text_rows, NAMES)


# -- what a step adds up --------------------------------------------------------------------------


def same_order(entries: int, size: int) -> int:
    """A seed with which two batches of ``size`` are, one after the other, the one of both."""

    def batch(seed: int, micro: int, batch_size: int, accumulation: int) -> list[int]:
        return step_batch(
            seed,
            0,
            micro,
            bucket_of=[0] * entries,
            batch_size=batch_size,
            accumulation=accumulation,
        )

    return next(
        seed
        for seed in range(100)
        if batch(seed, 0, size, 2) + batch(seed, 1, size, 2) == batch(seed, 0, 2 * size, 1)
    )


@pytest.mark.parametrize("entries", [4, 3])
def test_accumulated_batches_are_one_batch(cache: Cache, tmp_path: Path, entries: int) -> None:
    """Twice two, or two and a ragged one, have the loss, prior and gradient of all at once."""
    seed = same_order(entries, 2)
    few = part_of(cache, range(entries))
    found = []
    for size, accumulation in ((2, 2), (4, 1)):
        who = trainee(UNCLIPPED)
        shown = TrainingImages(few, few.text_rows, NAMES[:entries])
        prior = Prior(0.5, shown, shown.texts, shown.texts, nullcontext)
        with watched(who) as steps:
            run = train(
                who,
                shown,
                tmp_path / f"{size}",
                steps=1,
                batch_size=size,
                gradient_accumulation_steps=accumulation,
                prior=prior,
                seed=seed,
            )
        found.append((steps[0], lines_of(run)[0]))
    (ours, our_line), (whole, line) = found
    for key in ("loss", "prior_loss", "grad_norm"):
        assert our_line[key] == pytest.approx(line[key], rel=1e-4), key
    difference = norm(g - whole.gradients[n] for n, g in ours.gradients.items())
    assert whole.norm > 1e-3
    assert difference < 1e-4 * whole.norm


def one_step(
    cache: Cache, folder: Path, weights: tuple[float, ...] = (), **sections: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The gradient of a step with all four images, and its line in the log."""
    who = trainee({**UNCLIPPED, **sections})
    shown = TrainingImages(cache, cache.text_rows, NAMES, weights=weights)
    with watched(who) as steps:
        run = train(who, shown, folder, steps=1, batch_size=4)
    return steps[0].gradients, lines_of(run)[0]


def test_a_weight_counts_in_its_own_images_loss(cache: Cache, tmp_path: Path) -> None:
    """Loss and gradient are the sums of the single images', each times its weight."""
    weights = (0.5, 2.0, 1.0, 3.0)
    together, line = one_step(cache, tmp_path / "all", weights)
    alone = [
        one_step(cache, tmp_path / f"{i}", tuple(float(i == k) for k in range(4))) for i in range(4)
    ]
    losses = [one["loss"] for _, one in alone]
    added_loss = sum(w * one for w, one in zip(weights, losses, strict=True))
    assert line["loss"] == pytest.approx(added_loss, rel=1e-4)
    assert max(losses) > 1.1 * min(losses)
    for name, gradient in together.items():
        added = torch.stack([w * g[name] for w, (g, _) in zip(weights, alone, strict=True)]).sum(0)
        assert torch.allclose(gradient, added, atol=1e-6), name
    assert norm(together.values()) > 1e-3


def test_a_weight_goes_with_its_image_through_the_order(cache: Cache, tmp_path: Path) -> None:
    """In batches of one, each step's loss is the plain one times the weight of the image shown."""
    weights, found = (0.5, 2.0, 1.0, 3.0), []
    for name, given in (("plain", ()), ("weighted", weights)):
        shown = TrainingImages(cache, cache.text_rows, NAMES, weights=given)
        who = trainee({"optimizer": {"learning_rate": 1e-9}})
        run = train(who, shown, tmp_path / name, steps=4, batch_size=1)
        found.append([line["loss"] for line in lines_of(run)])
    for step, (plain, weighted) in enumerate(zip(*found, strict=True)):
        (entry,) = step_batch(0, step, 0, bucket_of=[0] * 4, batch_size=1, accumulation=1)
        assert weighted == pytest.approx(weights[entry] * plain, rel=1e-4)


@contextmanager
def sizes_seen(who: Trainee) -> Iterator[list[list[float]]]:
    """The size conditioning of every sample that the UNet is shown."""
    seen: list[list[float]] = []

    def see(_: object, given: tuple[Tensor]) -> None:
        seen.extend(given[0].reshape(-1, 6).tolist())

    hook = who.models.pipe.unet.add_time_proj.register_forward_pre_hook(see)
    yield seen
    hook.remove()


def test_an_epoch_shows_an_image_as_often_as_it_repeats(cache: Cache, tmp_path: Path) -> None:
    """In two epochs one image comes six times, one four, two twice."""
    who = trainee({})
    repeats = (3, 1, 1, 2)
    shown = TrainingImages(cache, cache.text_rows, NAMES, repeats=repeats)
    with sizes_seen(who) as seen:
        train(who, shown, tmp_path / "run", steps=14, batch_size=1)
    # Their original heights tell them apart.
    assert Counter(height for height, *_ in seen) == {
        float(64 + i): 2 * times for i, times in enumerate(repeats)
    }


def test_repeats_and_weight_of_a_source_reach_the_loop(
    brand: Path, styletune: Command, tmp_path: Path
) -> None:
    """One image four times in a batch, at weight 2, has twice the loss of it in four batches."""
    images = brand.parent / "brand"
    for file in sorted(images.glob("*.png"))[1:]:
        file.unlink()
    line = (images / "metadata.jsonl").read_text().splitlines()[0]
    (images / "metadata.jsonl").write_text(line + "\n")
    rest = brand.read_text().replace('path = "brand"', "").replace("holdout = 0.25", "holdout = 0")
    rest = rest.split("[score]")[0]

    def loss(name: str, keys: str, batch_size: int, accumulation: int) -> float:
        file = brand.parent / f"{name}.toml"
        file.write_text(f'[[data.sources]]\npath = "brand"\n{keys}{rest}')
        run = Run(tmp_path / name)
        answer = styletune(
            "train",
            file,
            "--run-dir",
            run.dir,
            "--runs-dir",
            tmp_path,
            "--set=train.steps=1",
            "--set=train.log_every=1",
            "--set=preview.prompts=[]",
            f"--set=train.batch_size={batch_size}",
            f"--set=train.gradient_accumulation_steps={accumulation}",
        )
        assert answer.code == 0, answer.err
        value: float = lines_of(run)[0]["loss"]
        return value

    apart = loss("apart", "", 1, 4)
    together = loss("together", "repeats = 4\nweight = 2.0\n", 4, 1)
    assert together == pytest.approx(2 * apart, rel=1e-4)


# -- clipping and averages ------------------------------------------------------------------------


def test_the_gradient_is_clipped_to_the_norm_asked_for(cache: Cache, tmp_path: Path) -> None:
    """Its direction stays; the log has the norm from before."""
    free, _ = one_step(cache, tmp_path / "free")
    clipped, line = one_step(
        cache, tmp_path / "clipped", optimizer={"max_grad_norm": norm(free.values()) / 8}
    )
    assert line["grad_norm"] == pytest.approx(norm(free.values()), rel=1e-4)
    for name, gradient in clipped.items():
        assert torch.allclose(8 * gradient, free[name], rtol=1e-3, atol=1e-7), name


def test_a_frozen_part_takes_no_part_in_clipping(cache: Cache, tmp_path: Path) -> None:
    """The trained parts alone have the norm asked for, and the log's norm is theirs."""
    who = trainee(
        {**TEXT, "optimizer": {"text_encoder_2_learning_rate": 0.0, "max_grad_norm": 1e-3}}
    )
    with watched(who) as steps:
        run = train(
            who,
            TrainingImages(cache, live(who.models.pipe, cache.captions), NAMES),
            tmp_path / "run",
            steps=1,
            batch_size=4,
        )
    trained, frozen = (
        [g for n, g in steps[0].gradients.items() if n.startswith("text_encoder_2.") == is_frozen]
        for is_frozen in (False, True)
    )
    assert norm(trained) == pytest.approx(1e-3, rel=1e-3)
    assert norm(frozen) > 1e-3
    assert lines_of(run)[0]["grad_norm"] > 1e-3


def test_the_file_holds_the_moving_average(material: TrainingImages, tmp_path: Path) -> None:
    """Every step's weights times what is left of them; afterwards the live ones are in place."""
    who = trainee({"optimizer": {"ema_decay": 0.3}})
    expected = {n: p.detach().double() for n, p in who.parameters.items()}
    with watched(who) as steps:
        run = train(who, material, tmp_path / "run", steps=5, batch_size=2)
    for number, step in enumerate(steps):
        decay = min(0.3, (1 + number) / (10 + number))
        for name, weight in step.weights.items():
            expected[name] = decay * expected[name] + (1 - decay) * weight
    saved, spec = load_adapter(run.adapter_file(5))
    assert spec.step == 5
    live_weights = values(who.parameters)
    for name, average in expected.items():
        assert torch.allclose(saved[name].double(), average, atol=1e-6), name
        assert torch.equal(live_weights[name], steps[-1].weights[name]), name
    assert norm(saved[n] - live_weights[n] for n in saved) > 1e-3


# -- what is refused ------------------------------------------------------------------------------


def poisoned(cache: Cache, entry: int) -> Cache:
    """One image's latents are NaN, as a broken VAE gives them."""
    (bucket,) = cache.buckets
    mean = bucket.mean.clone()
    mean[cache.places[entry]] = math.nan
    return replace(cache, buckets=(replace(bucket, mean=mean),))


def step_of(entry: int) -> int:
    """The step, from 1, at which batches of two out of four first show an entry."""
    return next(
        step + 1
        for step in range(2)
        if entry in step_batch(0, step, 0, bucket_of=[0] * 4, batch_size=2, accumulation=1)
    )


@pytest.mark.parametrize("entry", [0, 3])
def test_a_nan_is_blamed_on_its_step_and_image(cache: Cache, tmp_path: Path, entry: int) -> None:
    """Though nothing is looked at before the fifth step, and the other image was in the batch."""
    bad = poisoned(cache, entry)
    with pytest.raises(CheckFailed) as caught:
        train(
            trainee({}),
            TrainingImages(bad, bad.text_rows, NAMES),
            tmp_path / "run",
            steps=5,
            batch_size=2,
            log_every=10,
        )
    assert f"loss is nan at step {step_of(entry)}, images: {NAMES[entry]}" in str(caught.value)
    assert str(caught.value).count(".png") == 1
    assert "learning_rate" in caught.value.fix
    assert not Run(tmp_path / "run").checkpoint_steps()


@pytest.mark.parametrize("entry", [0, 3])
def test_an_infinite_gradient_is_blamed_on_its_step(
    cache: Cache, tmp_path: Path, entry: int
) -> None:
    """A loss that is still finite, of which the gradient is not, stops the run as well."""
    weights = tuple(1e30 if i == entry else 1.0 for i in range(4))
    shown = TrainingImages(cache, cache.text_rows, NAMES, weights=weights)
    with pytest.raises(CheckFailed) as caught:
        train(trainee({}), shown, tmp_path / "run", steps=5, batch_size=2, log_every=10)
    message = str(caught.value)
    assert f"gradient norm is inf at step {step_of(entry)}, images: " in message
    assert NAMES[entry] in message
    assert message.count(".png") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do fp16")
def test_fp16_without_a_gpu_is_refused(tmp_path: Path, brand: Path, styletune: Command) -> None:
    """With what to choose instead, and nothing is written."""
    with pytest.raises(BadInput) as caught:
        make_accelerator(TrainSection(mixed_precision="fp16"), Run(tmp_path / "run"))
    assert "fp16 needs a GPU" in str(caught.value)
    assert caught.value.where == "[train] mixed_precision"
    assert '"bf16"' in caught.value.fix
    answer = styletune(
        "train",
        brand,
        "--run-dir",
        tmp_path / "run",
        "--runs-dir",
        tmp_path,
        "--set=train.mixed_precision=fp16",
    )
    assert answer.code != 0
    assert "fp16 needs a GPU" in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "run").exists()
