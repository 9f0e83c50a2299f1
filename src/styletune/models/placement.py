"""Models that are on a device only while they are needed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# A cache of up to this size is kept on the device, a larger one in the host's pinned memory.
RESIDENT_BYTES = 2**29


@contextlib.contextmanager
def placed(
    module: Any, device: str | torch.device, dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Temporarily move a frozen model to a device, and to ``dtype`` if given.

    Afterwards it has its old tensors, to the bit: a visit in a smaller dtype must not round them.
    """
    kept = [(t, t.data) for t in itertools.chain(module.parameters(), module.buffers())]
    module.to(device=device, dtype=dtype)
    try:
        yield
    finally:
        for tensor, values in kept:
            tensor.data = values
