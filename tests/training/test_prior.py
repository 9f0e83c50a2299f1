"""Prior preservation in the loop and in whole jobs on the mini base."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from loop_parts import (
    NAMES,
    lines_of,
    norm,
    part_of,
    squares,
    train,
    trainee,
    watched,
)

from job_parts import Answer
from styletune.errors import BadInput
from styletune.job.prepare import prepare
from styletune.recipe import load_recipe
from styletune.runs import Run
from styletune.training.images import Cache, Prior, TrainingImages

Command = Callable[..., Answer]
UNCLIPPED = {"optimizer": {"max_grad_norm": 1e9}}
PRIOR = ["dreambooth.prior=prediction", 'dreambooth.class_prompt="the sea at noon"']


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return squares(tmp_path_factory.mktemp("prior") / "images")


def test_the_prior_is_added_with_its_weight(cache: Cache, tmp_path: Path) -> None:
    """Three times the weight adds three times the gradient; the log has the bare loss."""
    shown = TrainingImages(cache, cache.text_rows, NAMES)
    gradients, logged = [], []
    for weight in (None, 1.0, 3.0):
        prior = Prior(weight, shown, shown.texts, shown.texts, nullcontext) if weight else None
        who = trainee(UNCLIPPED)
        with watched(who) as steps:
            run = train(who, shown, tmp_path / f"{weight}", steps=1, batch_size=2, prior=prior)
        gradients.append(steps[0].gradients)
        logged.append(lines_of(run)[0])
    none, once, thrice = gradients
    added = {name: once[name] - none[name] for name in none}
    assert norm(added.values()) > 1e-3
    difference = norm(thrice[name] - none[name] - 3 * added[name] for name in none)
    assert difference < 1e-4 * norm(added.values())
    assert [line["loss"] for line in logged] == pytest.approx([logged[0]["loss"]] * 3, rel=1e-5)
    assert logged[1]["prior_loss"] == pytest.approx(logged[2]["prior_loss"], rel=1e-5)


def test_class_images_have_noise_of_their_own(cache: Cache, tmp_path: Path) -> None:
    """An image that is its own class image is not seen twice in the same noise."""
    one = part_of(cache, [0])
    shown = TrainingImages(one, one.text_rows, NAMES[:1])
    prior = Prior(1.0, shown, shown.texts, shown.texts, nullcontext)
    run = train(trainee({}), shown, tmp_path / "run", steps=1, batch_size=1, prior=prior)
    (line,) = lines_of(run)
    assert line["prior_loss"] != pytest.approx(line["loss"], rel=1e-2)


def test_a_prior_of_another_prediction_is_refused(brand: Path, tmp_path: Path) -> None:
    """The noise-predicting base's answer is no target for velocity; for noise it is."""
    for kind, fits in (("v_prediction", False), ("epsilon", True)):
        options = [*PRIOR, f"train.prediction_type={kind}"]
        loaded = load_recipe(brand, options)
        if fits:
            assert prepare(loaded, runs_dir=tmp_path, run_dir=None, show_progress=False)
            continue
        with pytest.raises(BadInput, match="predicts epsilon") as caught:
            prepare(loaded, runs_dir=tmp_path, run_dir=None, show_progress=False)
        assert caught.value.where == "[dreambooth] prior"
        assert 'prior = "images"' in caught.value.fix


def test_the_prior_follows_trained_text_encoders(
    brand: Path, styletune: Command, tmp_path: Path
) -> None:
    """Its loss starts at 0 and grows as the class's words drift, whichever parts drift."""
    for trained in (
        ["optimizer.text_encoder_learning_rate=0.0"],
        ["optimizer.learning_rate=1e-9", "optimizer.text_encoder_learning_rate=5e-2"],
    ):
        run = Run(tmp_path / trained[0])
        answer = styletune(
            "train",
            brand,
            "--run-dir",
            run.dir,
            "--runs-dir",
            tmp_path,
            *(
                f"--set={o}"
                for o in (
                    *PRIOR,
                    *trained,
                    "adapter.text_encoders=first",
                    "train.steps=10",
                    "train.batch_size=2",
                    "train.log_every=1",
                    "preview.prompts=[]",
                )
            ),
        )
        assert answer.code == 0, answer.err
        drift = [line["prior_loss"] for line in lines_of(run)]
        assert drift[0] < 1e-8
        assert drift[-1] > 1e-5, trained
