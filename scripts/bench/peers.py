"""Time and memory of a LoRA run of styletune beside two other trainers', on equal settings.

    python scripts/bench/peers.py --base BASE --diffusers-script FILE --sd-scripts DIR --repeats 5

Every tool is a process of its own, run in turn (A B C, A B C, …), on the same weights, the same
image bytes and the same number of trained parameters; scripts/bench/step_times.py notes when each
optimizer step ends, so nothing that a tool prints is read. docs/benchmarks/peers.md says what is
equal, what is not, and how to get the other tools.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import psutil
import torch
from PIL import Image

from styletune.adapters.export import kohya_file
from styletune.adapters.file import AdapterSpec
from styletune.adapters.inject import (
    adapter_parameters,
    inject_adapter,
    target_modules,
)
from styletune.models.meta import meta_unet
from styletune.models.sdxl import SDXL
from styletune.recipe.training_sections import AdapterSection
from styletune.training.groups import FACTOR_B
from world import HORIZON, TIMES, View, caption, render

HERE = Path(__file__).resolve().parent
WARM_UP_STEPS, MEASURED_STEPS = 2, 6
# The state is saved after the last measured step; one more step ends the run.
SAVED_AT = WARM_UP_STEPS + MEASURED_STEPS
STEPS = SAVED_AT + 1
SAMPLE_EVERY_S = 0.1
# A run during which other programs took more of the machine than this is left out of the table.
QUIET = 0.05
# CLIP's tokenizers under the names that sd-scripts looks for before it asks the Hub.
TOKENIZERS = {
    "tokenizer": "openai_clip-vit-large-patch14",
    "tokenizer_2": "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k",
}
SCENES = ("mountains", "sea", "city", "desert")
CARD = """
name = "Peers"
holder = "The styletune authors"
license = "CC0-1.0"
source = "rendered"
consent = "ours"
"""
RECIPE = """
[base]
model = "{base}"
[data]
path = "images"
resolution = {side}
holdout = 0.0
[adapter]
rank = {rank}
[optimizer]
learning_rate = 1e-4
[train]
steps = {steps}
batch_size = 1
checkpoint_every = {saved_at}
log_every = 1
mixed_precision = "bf16"
gradient_checkpointing = "full"
weighting = "none"
caption_dropout = 0.0
"""


@dataclass(frozen=True, slots=True)
class Tool:
    """How to start a trainer in ``folder``, and how to let it go on from its saved state."""

    name: str
    folder: Path
    images_hash: str
    first: list[str]
    again: list[str]
    python_path: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: seconds, and bytes of the whole process tree."""

    tool: str
    start_up_s: float  # process start to the end of the first step
    step_s: list[float]
    restart_s: float  # process start to the end of the first step after the saved one
    peak_bytes: int
    peak_stepping_bytes: int
    private_stepping_bytes: int  # without file pages that other processes could share
    gpu_peak_bytes: int
    whole_s: float
    others_share: float  # of all cores' time, what other processes took during both runs
    facts: dict[str, Any] = field(default_factory=dict)


# -- what every tool is given ---------------------------------------------------------------------


def write_images(folder: Path, side: int, *, sidecars: bool) -> str:
    """Four renders with captions, as a metadata.jsonl or as .txt files; a hash of the images."""
    folder.mkdir(parents=True)
    lines, digest = [], hashlib.sha256()
    for i, scene in enumerate(SCENES):
        view, file = View(scene, TIMES[i], (), 900 + i), folder / f"{i:02d}.png"
        Image.fromarray(render(view, HORIZON, side)).save(file)
        digest.update(file.read_bytes())
        lines.append(json.dumps({"file_name": file.name, "text": caption(view, 0)}) + "\n")
        if sidecars:
            file.with_suffix(".txt").write_text(caption(view, 0))
    if not sidecars:
        (folder / "metadata.jsonl").write_text("".join(lines))
    return digest.hexdigest()


def write_start(file: Path, rank: int) -> None:
    """An untrained attention adapter in kohya's layout; sd-scripts takes its targets from it."""
    unet = meta_unet(SDXL.unet)
    modules = {"unet": target_modules(unet, "attention", SDXL)}
    inject_adapter({"unet": unet}, AdapterSection(rank=rank), modules, seed=0)
    tensors = {
        name: (torch.zeros if FACTOR_B in name else torch.randn)(parameter.shape) / rank
        for name, parameter in adapter_parameters({"unet": unet}).items()
    }
    file.write_bytes(kohya_file(tensors, AdapterSpec(rank, float(rank)), {}, SDXL))


def styletune_tool(work: Path, base: Path, side: int, rank: int) -> Tool:
    folder = work / "styletune"
    images = write_images(folder / "images", side, sidecars=False)
    (folder / "images" / "dataset.toml").write_text(CARD)
    (folder / "recipe.toml").write_text(
        RECIPE.format(base=base, side=side, rank=rank, steps=STEPS, saved_at=SAVED_AT)
    )
    command = ["-m", "styletune", "train", "recipe.toml", "--run-dir", "run", "--runs-dir", "."]
    return Tool("styletune", folder, images, command, command)


def diffusers_tool(work: Path, base: Path, side: int, rank: int, script: Path) -> Tool:
    folder = work / "diffusers"
    images = write_images(folder / "images", side, sidecars=False)
    command = [
        str(script),
        "--pretrained_model_name_or_path",
        str(base),
        "--train_data_dir",
        "images",
        "--cache_dir",
        "cache",
        "--output_dir",
        "out",
        "--resolution",
        str(side),
        "--center_crop",
        "--rank",
        str(rank),
        "--train_batch_size",
        "1",
        "--gradient_checkpointing",
        "--mixed_precision",
        "bf16",
        "--learning_rate",
        "1e-4",
        "--lr_scheduler",
        "constant",
        "--lr_warmup_steps",
        "0",
        "--max_train_steps",
        str(STEPS),
        "--checkpointing_steps",
        str(SAVED_AT),
        "--seed",
        "0",
    ]
    return Tool(
        "diffusers script",
        folder,
        images,
        command,
        [*command, "--resume_from_checkpoint", f"checkpoint-{SAVED_AT}"],
    )


def sd_scripts_tool(
    work: Path, base: Path, side: int, rank: int, checkout: Path, own_base: Path, libraries: str
) -> Tool:
    folder = work / "sd-scripts"
    images = write_images(folder / "images" / "1_brand", side, sidecars=True)
    write_start(folder / "start.safetensors", rank)
    for ours, theirs in TOKENIZERS.items():
        shutil.copytree(base / ours, folder / "tokenizers" / theirs)
    command = [
        str(checkout / "sdxl_train_network.py"),
        "--pretrained_model_name_or_path",
        str(own_base),
        "--train_data_dir",
        "images",
        "--caption_extension",
        ".txt",
        "--tokenizer_cache_dir",
        "tokenizers",
        "--output_dir",
        "out",
        "--output_name",
        "peer",
        "--save_model_as",
        "safetensors",
        "--resolution",
        f"{side},{side}",
        "--train_batch_size",
        "1",
        "--cache_latents",
        "--cache_latents_to_disk",
        "--no_half_vae",
        "--cache_text_encoder_outputs",
        "--cache_text_encoder_outputs_to_disk",
        "--network_train_unet_only",
        "--network_module",
        "networks.lora",
        "--network_weights",
        "start.safetensors",
        "--dim_from_weights",
        "--optimizer_type",
        "AdamW",
        "--learning_rate",
        "1e-4",
        "--lr_scheduler",
        "constant",
        "--mixed_precision",
        "bf16",
        "--gradient_checkpointing",
        "--sdpa",
        "--max_data_loader_n_workers",
        "0",
        "--max_train_steps",
        str(STEPS),
        "--save_every_n_steps",
        str(SAVED_AT),
        "--save_state",
        "--seed",
        "0",
    ]
    state = f"out/peer-step{SAVED_AT:08d}-state"
    again = [*command, "--resume", state]
    return Tool("sd-scripts", folder, images, command, again, libraries)


# -- running them ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    monotonic_s: float
    resident_bytes: int
    private_bytes: int


def tree_memory(process: psutil.Process) -> tuple[int, int]:
    """Resident and private bytes of a process and its children."""
    resident = private = 0
    for one in (process, *process.children(recursive=True)):
        try:
            memory = one.memory_info()
        except psutil.NoSuchProcess:
            continue
        resident += memory.rss
        private += memory.rss - memory.shared
    return resident, private


def busy_s() -> float:
    """Core-seconds that this machine has worked, or that its host has taken."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "steal", 0.0))


def own_s() -> float:
    """Core-seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


@dataclass(frozen=True, slots=True)
class Finished:
    started_s: float
    whole_s: float
    others_s: float
    steps: list[dict[str, Any]]
    samples: list[Sample]


def run_tool(tool: Tool, command: Sequence[str], stop_after: int, label: str) -> Finished:
    """One process from start to end.

    Raises:
        SystemExit: the tool failed; its output is beside the images.
    """
    out, log = tool.folder / f"{label}.jsonl", tool.folder / f"{label}.log"
    line = [sys.executable, str(HERE / "step_times.py"), str(out), str(stop_after), *command]
    paths = [tool.python_path, os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    samples = []
    with log.open("w") as output:
        started, others = time.monotonic(), busy_s() - own_s()
        child = subprocess.Popen(  # noqa: S603 - tools named on the command line
            line, cwd=tool.folder, env=environment, stdout=output, stderr=output
        )
        watched = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                samples.append(Sample(time.monotonic(), *tree_memory(watched)))
            except psutil.NoSuchProcess:
                break
            time.sleep(SAMPLE_EVERY_S)
        code = child.wait()
    whole, others = time.monotonic() - started, busy_s() - own_s() - others
    if code != 0 or not out.is_file():
        raise SystemExit(f"{tool.name} ended with {code}, see {log}\n{log.read_text()[-2000:]}")
    steps = [json.loads(text) for text in out.read_text().splitlines()]
    return Finished(started, whole, others, steps, samples)


def measure(tool: Tool) -> Measured:
    """A run from nothing, then one that goes on from its saved state, up to one step."""
    run = run_tool(tool, tool.first, 0, "first")
    ends = [s["monotonic_s"] for s in run.steps]
    if len(ends) != STEPS:
        raise SystemExit(f"{tool.name} made {len(ends)} steps instead of {STEPS}")
    step_s = [b - a for a, b in itertools.pairwise(ends)][WARM_UP_STEPS - 1 : SAVED_AT - 1]
    stepping = [s for s in run.samples if ends[0] <= s.monotonic_s <= ends[SAVED_AT - 1]]
    if tool.name == "styletune":
        # The same command again goes on from the newest checkpoint; the run's end is not it.
        shutil.rmtree(tool.folder / "run" / "checkpoints" / f"step-{STEPS:06d}")
    again = run_tool(tool, tool.again, 1, "again")
    return Measured(
        tool=tool.name,
        start_up_s=ends[0] - run.started_s,
        step_s=step_s,
        restart_s=again.steps[0]["monotonic_s"] - again.started_s,
        peak_bytes=max(s.resident_bytes for s in run.samples),
        peak_stepping_bytes=max(s.resident_bytes for s in stepping),
        private_stepping_bytes=max(s.private_bytes for s in stepping),
        gpu_peak_bytes=max(s["gpu_peak_bytes"] for s in run.steps),
        whole_s=run.whole_s,
        others_share=(run.others_s + again.others_s)
        / ((run.whole_s + again.whole_s) * (os.cpu_count() or 1)),
        facts={
            **{k: v for k, v in run.steps[0].items() if k not in ("monotonic_s", "gpu_peak_bytes")},
            "images": tool.images_hash,
        },
    )


def warm_file_cache(*places: Path) -> None:
    """Read the weights once, so that no tool pays for the disk and another does not."""
    for place in places:
        for file in [place] if place.is_file() else sorted(place.rglob("*.safetensors")):
            with file.open("rb") as stream:
                while stream.read(1 << 24):
                    pass


def check_parity(results: Sequence[Measured]) -> None:
    """Raises SystemExit where the rows would not say the same thing."""
    for what in ("parameters", "learning_rate", "device", "images"):
        found = {r.tool: r.facts[what] for r in results}
        if len(set(found.values())) != 1:
            raise SystemExit(f"not the same {what} for all: {found}")


# -- the table ------------------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int) -> str:
    """Median and, from two values on, the range."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) < 2:
        return middle
    return f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(results: Sequence[Measured]) -> str:
    gib = 2**30
    heads = [
        "tool",
        "s/step",
        "fastest step s",
        "start-up s",
        "restart s",
        "peak stepping GiB",
        "private of it",
        "peak of the run GiB",
        "whole run s",
        "adapter",
        "others' CPU %",
    ]
    if any(r.gpu_peak_bytes for r in results):
        heads.append("GPU peak GiB")
    heads.append("runs")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for tool in dict.fromkeys(r.tool for r in results):
        every = [r for r in results if r.tool == tool]
        mine = [r for r in every if r.others_share <= QUIET]
        if not mine:
            lines.append(f"| {tool} | no quiet run of {len(every)} |")
            continue
        cells = [
            tool,
            spread([statistics.median(r.step_s) for r in mine], 2),
            f"{min(s for r in mine for s in r.step_s):.2f}",
            spread([r.start_up_s for r in mine], 1),
            spread([r.restart_s for r in mine], 1),
            spread([r.peak_stepping_bytes / gib for r in mine], 2),
            spread([r.private_stepping_bytes / gib for r in mine], 2),
            spread([r.peak_bytes / gib for r in mine], 2),
            spread([r.whole_s for r in mine], 0),
            ", ".join(mine[0].facts["parameter_dtypes"]).replace("torch.", ""),
            spread([100 * r.others_share for r in mine], 0),
        ]
        if "GPU peak GiB" in heads:
            cells.append(spread([r.gpu_peak_bytes / gib for r in mine], 2))
        cells.append(f"{len(mine)} of {len(every)}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="SDXL as a diffusers folder")
    parser.add_argument("--diffusers-script", type=Path, help="train_text_to_image_lora_sdxl.py")
    parser.add_argument("--sd-scripts", type=Path, help="checkout of kohya-ss/sd-scripts")
    parser.add_argument("--sd-base", type=Path, help="the same base as one file, for sd-scripts")
    parser.add_argument("--sd-libraries", default="", help="folders put before its imports")
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(gettempdir()) / "styletune-peers")
    parser.add_argument("--out", type=Path, help="JSON of every run; adds to what is there")
    args = parser.parse_args()
    base = args.base.resolve()
    own_base = (args.sd_base or base).resolve()
    libraries = os.pathsep.join(str(Path(p).resolve()) for p in args.sd_libraries.split(":") if p)
    results: list[Measured] = []
    if args.out is not None and args.out.is_file():
        results = [Measured(**row) for row in json.loads(args.out.read_text())]
    for repeat in range(args.repeats):
        work = args.work.resolve() / str(repeat)
        shutil.rmtree(work, ignore_errors=True)
        tools = [styletune_tool(work, base, args.side, args.rank)]
        if args.diffusers_script is not None:
            script = args.diffusers_script.resolve()
            tools.append(diffusers_tool(work, base, args.side, args.rank, script))
        if args.sd_scripts is not None:
            checkout = args.sd_scripts.resolve()
            tools.append(
                sd_scripts_tool(work, base, args.side, args.rank, checkout, own_base, libraries)
            )
        for tool in tools:
            warm_file_cache(own_base if tool.name == "sd-scripts" else base)
            results.append(measure(tool))
            print(json.dumps(asdict(results[-1])), file=sys.stderr, flush=True)
            check_parity(results)
            if args.out is not None:
                args.out.write_text(json.dumps([asdict(r) for r in results], indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
