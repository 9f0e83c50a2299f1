"""The golden run: short trainings and one published job, as numbers and hashes.

    PYTHONPATH=scripts python tests/golden_run.py             # what differs from golden.json
    PYTHONPATH=scripts python tests/golden_run.py --record    # write it anew
    PYTHONPATH=scripts python tests/golden_run.py --demo      # the same for the demo, demo.json

A refactor changes nothing in it. A change of behavior records it again, and its commit says which
values changed and why. Kernels round differently on other processors, so the file also names the
kernels it was recorded with: the last digits are compared on those, the first ones everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from job_parts import Finished, call, finished_job, one_thread, write_brand

FILE = Path(__file__).parent / "golden" / "golden.json"
DEMO_FILE = Path(__file__).parent / "golden" / "demo.json"
DEMO = Path(__file__).parent.parent / "recipes" / "mini-horizon.toml"
STEPS = 12
# Between them: every way to a loss, most optimizers, masks, both priors, text encoders, new words.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "lora, adamw, min-snr, ema, accumulation": (
        'adapter.block_ranks={"*attn2*" = 4}',
        "optimizer.ema_decay=0.9",
        "optimizer.schedule=cosine",
        "optimizer.warmup_steps=3",
        "train.gradient_accumulation_steps=2",
        "train.noise_offset=0.1",
    ),
    "velocity, huber, debiased, text encoders, new words": (
        "train.prediction_type=v_prediction",
        "train.zero_terminal_snr=true",
        "train.weighting=debiased",
        "train.loss=huber",
        "train.pyramid_noise=0.3",
        "train.input_perturbation=0.1",
        "train.timestep_sampling=logit-normal",
        "adapter.text_encoders=both",
        'adapter.new_tokens=["<horizon>"]',
        "optimizer.name=adafactor",
    ),
    "dora, lion, prior by prediction, mask, validation": (
        "adapter.kind=dora",
        "publish.plain_lora_rank=8",
        "optimizer.name=lion",
        "optimizer.learning_rate=3e-4",
        "dreambooth.prior=prediction",
        'dreambooth.class_prompt="the sea at noon"',
        "data.mask=alpha",
        "data.mask_floor=0.2",
        "train.validation_every=6",
    ),
    "loha, prodigy, prior by images, flip, variants": (
        "adapter.kind=loha",
        "publish.plain_lora_rank=8",
        "optimizer.name=prodigy",
        "optimizer.learning_rate=1.0",
        "dreambooth.prior=images",
        'dreambooth.class_prompt="the sea at noon"',
        "dreambooth.num_class_images=2",
        "data.flip=true",
        "data.caption_variants=3",
        "data.caption_shuffle=true",
        "data.extra_resolutions=[64]",
    ),
}
SHORT = (
    f"train.steps={STEPS}",
    f"train.checkpoint_every={STEPS}",
    "train.batch_size=2",
    "train.log_every=1",
    "preview.prompts=[]",
    "adapter.rank=2",
    "adapter.target=style-block",
    "data.holdout=0.5",
)
# What a published version says in words; everything else in it is weights and numbers.
WORDS = ("README.md", "NOTICE.md", "LICENSE", "eval/report.html", "SHA256SUMS")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def kernels() -> str:
    """A hash of what this machine's kernels make of fixed inputs: equal, and so are all bytes."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 32, 24, 24, generator=generator)
    weight = torch.randn(64, 32, 3, 3, generator=generator, requires_grad=True)
    tokens = torch.randn(2, 4, 77, 48, generator=generator)
    out = F.silu(F.group_norm(F.conv2d(image, weight, padding=1), 8))
    attended = F.scaled_dot_product_attention(tokens, tokens, tokens)
    mixed = attended.flatten(0, 2) @ torch.randn(48, 640, generator=generator)
    (out.square().mean() + out.exp().mean()).backward()
    assert weight.grad is not None
    parts = (out.detach(), attended, mixed, weight.grad, mixed.softmax(-1).log())
    arrays = [part.numpy() for part in parts]
    arrays.append(arrays[2].astype("float64").T @ arrays[2].astype("float64"))
    return sha256(b"".join(array.tobytes() for array in arrays))


def machine() -> str:
    """For people: whose kernels these are."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {capability}, torch {torch.__version__}"


def tensors_sha256(file: Path) -> str:
    """Names, shapes and bytes of a safetensors file, without its header's texts."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(str(file), framework="numpy") as reader:
        for name in sorted(reader.keys()):
            tensor = reader.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode() + tensor.tobytes())
    return digest.hexdigest()


def log_lines(file: Path) -> list[dict[str, Any]]:
    """A run's log without how fast it went."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]


def short_training(folder: Path, options: tuple[str, ...]) -> dict[str, Any]:
    """Losses and adapter of one configuration."""
    recipe = write_brand(folder)
    run_dir = folder / "run"
    sets = [word for option in (*SHORT, *options) for word in ("--set", option)]
    answer = call("train", recipe, "--run-dir", run_dir, "--runs-dir", folder / "runs", *sets)
    assert answer.code == 0, answer.out + answer.err
    adapter = run_dir / "checkpoints" / f"step-{STEPS:06d}" / "adapter.safetensors"
    return {
        "log": log_lines(run_dir / "log.jsonl"),
        "adapter": sha256(adapter.read_bytes()),
        "tensors": tensors_sha256(adapter),
    }


def job_facts(done: Finished, folder: Path) -> dict[str, Any]:
    """Log, scores and every file of the version of a finished job; pulled into ``folder``."""
    import pyarrow.parquet as pq

    pulled = call("pull", "small@1.0.0", "--json", "--registry", done.registry, "--to", folder)
    version = Path(pulled.json["dir"])
    manifest = json.loads((version / "manifest.json").read_text())
    summary = json.loads((done.run_dir / "scores" / "summary.json").read_text())
    table = pq.read_table(done.run_dir / "scores" / "scores.parquet").to_pydict()
    files = {entry["path"]: entry for entry in manifest["files"]}
    return {
        "log": log_lines(done.run_dir / "log.jsonl"),
        "chosen": summary["chosen"]["checkpoint"],
        "scores": scores(summary),
        "rows": sha256(json.dumps(table, sort_keys=True).encode()),
        "files": sorted(files),
        "weights": {p: tensors_sha256(version / p) for p in files if p.endswith(".safetensors")},
        "bytes": {p: e["sha256"] for p, e in sorted(files.items()) if p not in WORDS},
        "words": {p: files[p]["sha256"] for p in WORDS},
        "recipe_hash": manifest["recipe_hash"],
        "data_fingerprint": manifest["data_fingerprint"],
    }


def scores(summary: Mapping[str, Any]) -> dict[str, float]:
    """``checkpoint/metric/value`` of a summary, for base, references and every checkpoint.

    Other strengths than 1 have names of their own; what a confirmation measured does too.
    """
    columns = {
        "base": summary["anchors"]["base"],
        "real": summary["anchors"]["real"],
        **{
            c["checkpoint"] + ("" if c["strength"] == 1 else f" at {c['strength']}"): c["metrics"]
            for c in summary["checkpoints"]
        },
    }
    if confirmed := summary["confirmed"]:
        columns |= {"confirmed": confirmed["metrics"], "confirmed base": confirmed["base"]}
    return {
        f"{name}/{metric}/{part}": value
        for name, metrics in columns.items()
        for metric, estimate in metrics.items()
        for part, value in estimate.items()
    }


def demo(folder: Path) -> dict[str, Any]:
    """Train and score the demo's recipe on one thread: its log, scores and chosen adapter."""
    with one_thread():
        answer = call("run", DEMO, "--json", "--runs-dir", folder)
    assert answer.code == 0, answer.out + answer.err
    return demo_facts(Path(answer.json["run_dir"]))


def demo_facts(run_dir: Path) -> dict[str, Any]:
    """Log, scores and chosen adapter of the demo's run."""
    summary = json.loads((run_dir / "scores" / "summary.json").read_text())
    chosen = summary["chosen"]["checkpoint"]
    return {
        "strength": summary["chosen"]["strength"],
        "kernels": kernels(),
        "machine": machine(),
        "log": log_lines(run_dir / "log.jsonl"),
        "chosen": chosen,
        "scores": scores(summary),
        "adapter": sha256((run_dir / "checkpoints" / chosen / "adapter.safetensors").read_bytes()),
    }


def measure(folder: Path, done: Finished) -> dict[str, Any]:
    """The whole golden run, in this process on one thread."""
    with one_thread():
        runs = {
            name: short_training(folder / f"short-{i}", options)
            for i, (name, options) in enumerate(CONFIGURATIONS.items())
        }
        return {
            "kernels": kernels(),
            "machine": machine(),
            "runs": runs,
            "job": job_facts(done, folder / "pulled"),
        }


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """``a/b/0`` to value."""
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    else:
        return {path: tree}
    return {k: v for key, value in items for k, v in flat(value, f"{path}/{key}").items()}


def differences(golden: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """Every value that is another; on other kernels numbers may differ by rounding, hashes may."""
    same_kernels = golden["kernels"] == measured["kernels"]
    old, new = flat(golden), flat(measured)
    found = [f"{path}: only on one side" for path in sorted(old.keys() ^ new.keys())]
    for path in sorted(old.keys() & new.keys() - {"/kernels", "/machine"}):
        before, after = old[path], new[path]
        if before == after or (not same_kernels and may_differ(path, before, after)):
            continue
        found.append(f"{path}: was {before}, is {after}")
    return found


def may_differ(path: str, before: Any, after: Any) -> bool:
    """Whether rounding alone explains it: a number near by, or a hash of numbers."""
    if isinstance(before, float) and isinstance(after, float):
        return abs(before - after) <= 0.02 * max(abs(before), 0.05)
    decided_by_inputs = path.endswith(("recipe_hash", "data_fingerprint", "chosen")) or (
        path.startswith("/job/files")
    )
    return isinstance(before, str) and isinstance(after, str) and not decided_by_inputs


def main() -> None:
    """Compare, or record."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    file = DEMO_FILE if "--demo" in sys.argv else FILE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["STYLETUNE_CACHE"] = f"{name}/cache"
        if file == DEMO_FILE:
            measured = demo(folder)
        else:
            measured = measure(folder, finished_job(folder / "finished"))
    old = json.loads(file.read_text()) if file.is_file() else {}
    found = differences(old, measured) if old else ["nothing was recorded yet"]
    print("\n".join(found) or "as recorded")  # noqa: T201
    if "--record" in sys.argv:
        file.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    elif found:
        sys.exit(1)


if __name__ == "__main__":
    main()
