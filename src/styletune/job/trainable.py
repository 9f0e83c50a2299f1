"""What training would refuse, asked before anything is encoded, generated or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from styletune.errors import BadInput
from styletune.files import require_writable
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
        TrainedShapes of everything that would be trained, by its name in an adapter file.

    Raises:
        RecipeError, BadInput: names the key; patterns that match nothing, ranks and block sizes
            that do not fit, rates that train nothing, libraries that are not installed.
    """
    from styletune.models.meta import meta_unet
    from styletune.models.quantize import check_quantizable
    from styletune.planning.memory import trained_shapes
    from styletune.training.optimizer import optimizer_library
    from styletune.training.processes import check_machine

    check_machine(recipe.train)
    optimizer_library(recipe.optimizer.name)
    if recipe.base.quantization != "none":
        check_quantizable(meta_unet(configs.unet), recipe.base.quantization)
    trained = trained_shapes(recipe.adapter, configs)
    _refuse_frozen(recipe, configs, trained)
    return trained


def _refuse_frozen(recipe: Recipe, configs: BaseConfigs, trained: TrainedShapes) -> None:
    """Raise BadInput for a block pattern without a match, or if every rate is 0."""
    import torch
    from torch import nn

    from styletune.training.groups import parameter_groups

    shapes = {
        name: nn.Parameter(torch.empty(shape, device="meta")) for name, shape in trained.items()
    }
    rates = recipe.adapter.block_learning_rates
    groups = parameter_groups(recipe.optimizer, rates, shapes, configs.family)
    if all(group.rate_factor == 0 for group in groups):
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
    from styletune.training.checkpoint import check_receipt

    for step in run.checkpoint_steps():
        check_receipt(run, step, identity)


def check_output(run: Run, optimizer: OptimizerSection, trained: TrainedShapes) -> None:
    """Refuse a place that cannot be written to, or that has no room for one checkpoint.

    Raises:
        OutputError: names the place.
    """
    from styletune.planning.memory import checkpoint_bytes
    from styletune.training.checkpoint import require_space

    place = require_writable(run.dir, "choose another --runs-dir")
    require_space(
        place,
        checkpoint_bytes(optimizer, trained),
        fix="free some space, or choose another --runs-dir",
    )
