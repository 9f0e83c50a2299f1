"""Cards, and the least time that a step can take on them: its FLOPs over the card's best rate.

Nobody reaches it. 40 to 50 % of it is good; small batches on large cards wait for the host and
see far less. A measured time below the floor is a wrong measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from styletune.errors import BadInput

GIB = 2**30
# Of what is printed on the box, what the driver lets programs see: 11.75 of 12 GiB.
VISIBLE_SHARE = 0.98


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card: ``tflops`` dense, 16-bit inputs, float32 sums, as the maker gives it.

    None for a card whose figure is not known. ``memory_bytes`` is what programs see of it.
    """

    name: str
    tflops: float | None
    memory_bytes: int


def _card(name: str, tflops: float, memory_gib: int) -> Gpu:
    return Gpu(name, tflops, int(memory_gib * GIB * VISIBLE_SHARE))


# NVIDIA's architecture papers and data sheets. On GeForce cards products with float32 sums run
# at half the rate of those with 16-bit sums; the lower one is what training uses.
GPUS: tuple[Gpu, ...] = (
    _card("T4", 65.0, 16),
    _card("RTX 3060", 25.6, 12),
    _card("RTX 3080", 59.5, 10),
    _card("RTX 3090", 71.0, 24),
    _card("RTX 4060", 30.2, 8),
    _card("RTX 4070", 58.3, 12),
    _card("RTX 4080", 97.5, 16),
    _card("RTX 4090", 165.2, 24),
    _card("L40S", 362.0, 48),
    _card("A100 40GB", 312.0, 40),
    _card("A100 80GB", 312.0, 80),
    _card("H100", 989.0, 80),
    _card("H200", 989.0, 141),
)


def find_gpu(name: str) -> Gpu:
    """The card that a device name such as "NVIDIA GeForce RTX 4090" means.

    Raises:
        BadInput: none of the known cards.
    """
    words = name.upper().replace("-", " ").split()
    hits = [g for g in GPUS if set(g.name.upper().split()) <= set(words)]
    if not hits:
        raise BadInput(
            f"no figures are known for {name!r}",
            where="GPU",
            fix=f"known: {', '.join(g.name for g in GPUS)}",
        )
    variants = {"TI", "SUPER", "LAPTOP", "MOBILE", "NVL"} & set(words)
    if variants:
        raise BadInput(
            f"no figures are known for {name!r}, which is another card than the {hits[0].name}",
            where="GPU",
            fix=f"known: {', '.join(g.name for g in GPUS)}",
        )
    return hits[-1]


def floor_s(flops: int, gpu: Gpu) -> float | None:
    """Seconds below which this many FLOPs cannot be done on the card; None if it is not known."""
    return None if gpu.tflops is None else flops / (gpu.tflops * 1e12)
