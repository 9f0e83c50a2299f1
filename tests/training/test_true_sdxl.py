"""SDXL's true configuration with random bf16 weights, on the CPU, through the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from styletune.adapters.export import check_exports, diffusers_file, kohya_file
from styletune.adapters.file import load_adapter
from styletune.adapters.header import FileLabels, TrainedOn, kohya_header
from styletune.models.meta import meta_unet
from styletune.models.sdxl import SDXL
from styletune.runs import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole diffusers folder, seven gigabytes, as the benchmarks make it."""
    folder = tmp_path_factory.mktemp("sdxl") / "base"
    script = Path(__file__).parents[2] / "scripts" / "bench" / "random_sdxl.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


def styletune(command: str, recipe: Path, folder: Path, *options: str) -> tuple[str, int]:
    """What a command printed, and the most memory that it ever had resident, in bytes."""
    line = [
        sys.executable,
        "-m",
        "styletune",
        command,
        str(recipe),
        "--run-dir",
        str(folder / "run"),
        "--runs-dir",
        str(folder),
        *options,
    ]
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        # Freed blocks go back to the system at once: glibc would keep half a gibibyte of them.
        process = subprocess.Popen(
            line, stdout=out, stderr=err, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
        )
        # The children's maximum would be that of all of them, the making of the base included.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, (folder / "err").read_text()[-3000:]
    return (folder / "out").read_text(), usage.ru_maxrss * 1024


RECIPE = """
[base]
model = "{base}"
[data]
path = "{images}"
resolution = {side}
holdout = 0.0
[adapter]
rank = 16
[train]
steps = 2
batch_size = 1
checkpoint_every = 1
log_every = 1
mixed_precision = "bf16"
gradient_checkpointing = "full"
"""


@pytest.mark.parametrize("side", [256, 512])
def test_true_sdxl_trains_resumes_and_exports(
    side: int, base: Path, brand: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Load, cache, step, checkpoint, resume, export; the peak is within 15 % of the prediction."""
    images = tmp_path / "images"
    shutil.copytree(brand.parent / "brand", images)
    for file in sorted(images.glob("*.png"))[2:]:
        file.unlink()
    lines = (images / "metadata.jsonl").read_text().splitlines()[:2]
    (images / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    from PIL import Image

    for file in images.glob("*.png"):
        Image.open(file).resize((side, side)).save(file)
    recipe = tmp_path / "true.toml"
    recipe.write_text(RECIPE.format(base=base, images=images, side=side))
    plan = json.loads(styletune("plan", recipe, tmp_path, "--json")[0])
    _, peak = styletune("train", recipe, tmp_path)
    run = Run(tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in run.log_file.read_text().splitlines()]
    assert run.checkpoint_steps() == [1, 2]

    # On a CPU what a card would be spared lies in the same memory: text encoders, the VAE, torch.
    parts = plan["memory"]["phases"]["step"] - plan["memory"]["parts"]["overhead"]
    host = sum(
        f.stat().st_size
        for n in ("text_encoder", "text_encoder_2")
        for f in (base / n).glob("*.safetensors")
    )
    vae = 2 * sum(f.stat().st_size for f in (base / "vae").glob("*.safetensors"))
    predicted = parts + host + vae + LIBRARIES_BYTES
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{side} px: peak {peak / 2**30:.2f} GiB, predicted {predicted / 2**30:.2f} GiB, "
            f"losses {losses}"
        )
    assert peak == pytest.approx(predicted, rel=0.15)

    wanted = run.adapter_file(2).read_bytes()
    shutil.rmtree(run.checkpoint_dir(2))
    styletune("train", recipe, tmp_path)
    assert run.adapter_file(2).read_bytes() == wanted

    tensors, spec = load_adapter(run.adapter_file(2))
    assert len(tensors) == 2 * 560
    assert any(t.abs().max() > 0 for n, t in tensors.items() if "lora_B" in n)
    labels = FileLabels("t 1.0.0", "t", "CC0-1.0", description="", trigger="")
    header = kohya_header(spec, 1.0, labels, TrainedOn("sdxl", SDXL.words, side))
    diffusers, kohya = diffusers_file(tensors, spec), kohya_file(tensors, spec, header, SDXL)
    check_exports(tensors, spec, diffusers, kohya, SDXL)
    for name, content in (("d.safetensors", diffusers), ("k.safetensors", kohya)):
        (tmp_path / name).write_bytes(content)
        assert int.from_bytes(content[:8], "little") < 2**20
    assert all(
        re.match(r"unet\..+\.lora_[AB]\.weight$", n) for n in load_file(tmp_path / "d.safetensors")
    )
    from diffusers import StableDiffusionXLPipeline

    converted, _ = StableDiffusionXLPipeline.lora_state_dict(
        str(tmp_path / "k.safetensors"), unet_config=meta_unet(SDXL.unet).config
    )
    assert len({n.rsplit(".", 2)[0] for n in converted if "lora" in n}) == 560


LIBRARIES_BYTES = int(0.9 * 2**30)  # torch, diffusers, datasets and the rest, before any weight
