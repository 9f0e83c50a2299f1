"""styletune: a brand's visual style as a versioned, measured, rights-aware SDXL LoRA.

The functions here are those of ``styletune.api``, imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from styletune.api import (
        check_data,
        generate,
        load,
        load_data,
        load_recipe,
        plan,
        publish,
        pull,
        score,
        train,
    )

__all__ = [
    "__version__",
    "check_data",
    "generate",
    "load",
    "load_data",
    "load_recipe",
    "plan",
    "publish",
    "pull",
    "score",
    "train",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the public face when one of its functions is asked for."""
    if name in __all__:
        from styletune import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
