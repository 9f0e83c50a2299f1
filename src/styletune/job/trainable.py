"""What training would refuse, asked before anything is encoded, generated or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from styletune.errors import BadInput
from styletune.files import require_space, require_writable
from styletune.recipe import Recipe
from styletune.recipe.training_sections import OptimizerSection
from styletune.runs import Run
from styletune.training.identity import Identity

if TYPE_CHECKING:
    from styletune.models.family import BaseConfigs

TrainedShapes = Mapping[str, tuple[int, ...]]


def check_trainable(recipe: Recipe, configs: BaseConfigs) -> TrainedShapes:
    """Refuse settings that the base, the installed libraries or the machine rule out.

    Args:
        recipe: all of it: what is trained, how fast, and in which precision.
        configs: of the base model; nothing of it is loaded.

    Returns:
        Shapes of everything that would be trained, by its name in an adapter file.

    Raises:
        RecipeError, BadInput: names the key; patterns that match nothing, ranks and block sizes
            that do not fit, rates that train nothing, libraries that are not installed.
    """
    from styletune.planning.memory import trained_shapes
    from styletune.training.tracker import check_machine

    check_machine(recipe.train)
    # The usual choices need no library beside torch, which takes seconds to import.
    if recipe.optimizer.name != "adamw":
        from styletune.training.optimizer import optimizer_library

        optimizer_library(recipe.optimizer.name)
    if recipe.base.quantization != "none":
        from styletune.models.meta import meta_unet
        from styletune.models.quantize import check_quantizable

        check_quantizable(meta_unet(configs.unet), recipe.base.quantization)
    trained = trained_shapes(recipe.adapter, configs)
    _refuse_frozen(recipe, configs, trained)
    return trained


def _refuse_frozen(recipe: Recipe, configs: BaseConfigs, trained: TrainedShapes) -> None:
    """Raise BadInput for a block pattern without a match, or if every rate is 0."""
    from styletune.training.groups import rate_factors

    rates = recipe.adapter.block_learning_rates
    if not any(rate_factors(recipe.optimizer, rates, trained, configs.family).values()):
        raise BadInput(
            "nothing would be trained: every learning rate is 0",
            where="[adapter] block_learning_rates" if rates else "[optimizer]",
            fix="give a part that is adapted a rate above 0",
        )


def check_resumable(run: Run, identity: Identity) -> None:
    """Refuse checkpoints that are damaged or another run's, before work is based on them.

    Raises:
        Conflict, IntegrityError: as ``check_receipt``.
    """
    steps = run.checkpoint_steps()
    if steps:
        from styletune.training.checkpoint import check_receipt

        for step in steps:
            check_receipt(run, step, identity)


def check_output(run: Run, optimizer: OptimizerSection, trained: TrainedShapes) -> None:
    """Refuse a place that cannot be written to, or that has no room for one checkpoint.

    Raises:
        OutputError: names the place.
    """
    from styletune.planning.memory import checkpoint_bytes

    place = require_writable(run.dir, "choose another --runs-dir")
    require_space(
        place,
        checkpoint_bytes(optimizer, trained),
        fix="free some space, or choose another --runs-dir",
    )
