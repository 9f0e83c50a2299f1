"""Going on from an adapter, of this tool or another: nothing of it is lost in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from job_parts import Answer
from styletune.adapters.export import diffusers_file, kohya_file
from styletune.adapters.file import load_adapter
from styletune.adapters.names import kohya_name
from styletune.adapters.updates import weight_updates
from styletune.models.sdxl import SDXL
from styletune.runs import Run

Command = Callable[..., Answer]
# So small a rate that what comes out is what went in.
STILL = (
    "train.steps=1",
    "train.checkpoint_every=1",
    "train.batch_size=1",
    "preview.prompts=[]",
    "optimizer.learning_rate=1e-12",
    "optimizer.weight_decay=0.0",
    "adapter.rank=4",
    "adapter.target=style-block",
)
WORD = 'adapter.new_tokens=["<acme>"]'


@pytest.fixture
def train(brand: Path, styletune: Command, tmp_path: Path) -> Callable[..., tuple[Answer, Run]]:
    def go(name: str, *options: str) -> tuple[Answer, Run]:
        run = Run(tmp_path / "runs" / name)
        answer = styletune(
            "train",
            brand,
            "--run-dir",
            run.dir,
            "--runs-dir",
            tmp_path / "runs",
            "--json",
            *(f"--set={o}" for o in (*STILL, *options)),
        )
        return answer, run

    return go


def given(folder: Path, run: Run, layout: str) -> None:
    """The run's adapter with random values as ``given.safetensors`` beside the recipe."""
    tensors, spec = load_adapter(run.adapter_file(1))
    generator = torch.Generator().manual_seed(1)
    shaken = {
        k: 0.1 * torch.randn(v.shape, generator=generator) if "lora_B" in k else v
        for k, v in tensors.items()
    }
    write: dict[str, Callable[[], bytes]] = {
        "diffusers": lambda: diffusers_file(shaken, spec),
        "kohya": lambda: kohya_file(shaken, spec, {}, SDXL),
    }
    (folder / "given.safetensors").write_bytes(write[layout]())


def updates(tensors: dict[str, Tensor], run: Run) -> dict[str, Tensor]:
    _, spec = load_adapter(run.adapter_file(1))
    return dict(weight_updates({k: v for k, v in tensors.items() if "lora_" in k}, spec))


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_published_files_are_gone_on_from_under_their_own_recipe(
    train: Callable[..., tuple[Answer, Run]], brand: Path, layout: str
) -> None:
    """Ranks by block, rsLoRA and another alpha come back as the updates that they were."""
    options = (
        'adapter.block_ranks={"*attn2*"=2}',
        "adapter.rslora=true",
        "adapter.alpha=3.0",
        "adapter.text_encoders=first",
        "adapter.text_encoder_target=all",
    )
    answer, first = train("first", *options)
    assert answer.code == 0, answer.err
    given(brand.parent, first, layout)
    answer, again = train("again", *options, 'adapter.start_from="given.safetensors"')
    assert answer.code == 0, answer.err
    tensors, _ = load_adapter(again.adapter_file(1))
    found = updates(tensors, again)
    file = load_file(brand.parent / "given.safetensors")
    for module, update in found.items():
        if layout == "diffusers":
            wanted = file[f"{module}.lora_B.weight"] @ file[f"{module}.lora_A.weight"]
        else:
            name = kohya_name(module, SDXL)
            down, up = file[f"{name}.lora_down.weight"], file[f"{name}.lora_up.weight"]
            wanted = float(file[f"{name}.alpha"]) / down.shape[0] * up @ down
        assert torch.allclose(update, wanted, atol=1e-6), module
    assert any("mlp.fc1" in module for module in found)
    # Every component can still learn: none is zero on both sides.
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            assert bool((a.any(dim=1) | b.any(dim=0)).all()), name


def test_a_new_component_starts_anew_beside_the_old(
    train: Callable[..., tuple[Answer, Run]], brand: Path
) -> None:
    """A plain UNet adapter goes on with a text encoder and a word that it did not have."""
    _, first = train("first")
    given(brand.parent, first, "kohya")
    answer, again = train(
        "again", 'adapter.start_from="given.safetensors"', "adapter.text_encoders=second", WORD
    )
    assert answer.code == 0, answer.err
    tensors, _ = load_adapter(again.adapter_file(1))
    assert {name.partition(".")[0] for name in tensors} == {
        "unet",
        "text_encoder_2",
        "clip_l",
        "clip_g",
    }
    unet = {k: v for k, v in tensors.items() if k.startswith("unet.")}
    assert all(update.abs().max() > 1e-3 for update in updates(unet, again).values())
    fresh = [v for k, v in tensors.items() if "text_encoder_2" in k and "lora_B" in k]
    assert max(float(v.abs().max()) for v in fresh) < 1e-6


def test_new_words_go_on_or_are_refused(
    train: Callable[..., tuple[Answer, Run]], brand: Path
) -> None:
    """Their rows are taken over; other words, none, or a file without the rows are refused."""
    answer, first = train("first", WORD)
    assert answer.code == 0, answer.err
    tensors, _ = load_adapter(first.adapter_file(1))
    start = f'adapter.start_from="{first.adapter_file(1)}"'
    answer, again = train("again", WORD, start)
    assert answer.code == 0, answer.err
    kept, _ = load_adapter(again.adapter_file(1))
    assert torch.allclose(kept["clip_g"], tensors["clip_g"], atol=1e-6)

    answer, _ = train("none", start)
    assert answer.code == 2
    assert answer.json["error"]["fix"] == 'new_tokens = ["<acme>"]'
    answer, _ = train("other", start, 'adapter.new_tokens=["<other>"]')
    assert answer.code == 2
    assert "<acme>" in answer.json["error"]["message"]
    stripped = {k: v for k, v in load_file(first.adapter_file(1)).items() if "clip" not in k}
    save_file(
        stripped | {"clip_l": tensors["clip_l"], "clip_g": tensors["clip_g"]},
        brand.parent / "foreign.safetensors",
    )
    answer, _ = train("foreign", 'adapter.start_from="foreign.safetensors"')
    assert answer.code == 2
    assert "new words" in answer.json["error"]["message"]
