"""Models that visit a device for the moment they are needed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch

# A cache of up to this size lies on the device, a larger one in the host's pinned memory.
RESIDENT_BYTES = 2**29


@contextlib.contextmanager
def placed(
    module: Any, device: str | torch.device, dtype: torch.dtype | None = None
) -> Iterator[None]:
    """A frozen model on a device, and in ``dtype`` if given, for a while.

    Afterwards it holds the tensors it held before, to the bit: a visit in a smaller dtype must
    not round them.
    """
    kept = [(t, t.data) for t in itertools.chain(module.parameters(), module.buffers())]
    module.to(device=device, dtype=dtype)
    try:
        yield
    finally:
        for tensor, values in kept:
            tensor.data = values
