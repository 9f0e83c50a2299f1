"""The least time that a step can take: its FLOPs over what a card can do at best.

Nobody reaches it. 40 to 50 % of it is good; small batches on large cards wait for the host and
see far less. A measured time below the floor is a wrong measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from styletune.errors import BadInput


@dataclass(frozen=True, slots=True)
class Gpu:
    """``tflops`` dense, 16-bit inputs, float32 sums, as the maker gives it; ``memory_gib``."""

    name: str
    tflops: float
    memory_gib: int


# NVIDIA's architecture papers and data sheets. On GeForce cards products with float32 sums run
# at half the rate of those with 16-bit sums; the lower one is what training uses.
GPUS: tuple[Gpu, ...] = (
    Gpu("T4", 65.0, 16),
    Gpu("RTX 3060", 25.6, 12),
    Gpu("RTX 3080", 59.5, 10),
    Gpu("RTX 3090", 71.0, 24),
    Gpu("RTX 4060", 30.2, 8),
    Gpu("RTX 4070", 58.3, 12),
    Gpu("RTX 4080", 97.5, 16),
    Gpu("RTX 4090", 165.2, 24),
    Gpu("L40S", 362.0, 48),
    Gpu("A100 40GB", 312.0, 40),
    Gpu("A100 80GB", 312.0, 80),
    Gpu("H100", 989.0, 80),
    Gpu("H200", 989.0, 141),
)


def find_gpu(name: str) -> Gpu:
    """The card that a device name such as "NVIDIA GeForce RTX 4090" means.

    Raises:
        BadInput: none of the known cards.
    """
    words = name.upper().replace("-", " ").split()
    joined = " ".join(words)
    hits = [g for g in GPUS if set(g.name.upper().split()) <= set(words)]
    if not hits:
        raise BadInput(
            f"no figures are known for {name!r}",
            where="GPU",
            fix=f"known: {', '.join(g.name for g in GPUS)}",
        )
    variants = {"TI", "SUPER", "LAPTOP", "MOBILE", "NVL"} & set(words)
    if variants:
        raise BadInput(f"{joined} is another card than the {hits[0].name}", where="GPU")
    return hits[-1]


def floor_s(flops: int, gpu: Gpu) -> float:
    """Seconds below which this many FLOPs cannot be done on the card."""
    return flops / (gpu.tflops * 1e12)
