"""Every error that styletune raises on purpose.

    StyletuneError
    ├── CheckFailed      exit 1   a check or a release gate said no
    ├── BadInput         exit 2   something given cannot be used
    │   ├── RecipeError           a recipe, suite or card: unknown key, wrong value
    │   ├── DataError             images, captions, metadata
    │   ├── BaseModelError        the base model cannot be loaded
    │   └── OutputError           the place to write to: full, read-only
    ├── NotFound         exit 3   a file, folder, version or model is not there
    ├── IntegrityError   exit 4   bytes are not what their checksum says
    └── Conflict         exit 5   it exists already, or belongs to something else

A message says what is wrong; ``where`` says in which file, section or key; ``fix`` is the
nearest thing to do about it. The command line prints the three and exits with the code.
"""

from __future__ import annotations

from typing import ClassVar


class StyletuneError(Exception):
    """Base of the tree; ``kind`` and ``exit_code`` are stable and documented."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n  fix: {self.fix}" if self.fix else head

    def as_json(self) -> dict[str, dict[str, str]]:
        """The document that ``--json`` prints instead of a result."""
        return {
            "error": {
                "kind": self.kind,
                "message": self.message,
                "where": self.where,
                "fix": self.fix,
            }
        }


class CheckFailed(StyletuneError):
    """A check or a release gate did not pass: the input was read, and the answer is no."""

    kind = "check_failed"
    exit_code = 1


class BadInput(StyletuneError):
    """Something the user gave cannot be used: an option, a file, a combination of them."""

    kind = "bad_input"
    exit_code = 2


class RecipeError(BadInput):
    """A recipe, suite or card has an unknown key or a wrong value; ``where`` names the key."""

    kind = "recipe"


class DataError(BadInput):
    """Images, captions or metadata cannot be trained on; ``where`` names the file or row."""

    kind = "data"


class BaseModelError(BadInput):
    """The base model cannot be loaded, or does not fit the recipe."""

    kind = "base_model"


class OutputError(BadInput):
    """The place to write to is full, read-only, or not a folder."""

    kind = "output"


class NotFound(StyletuneError):
    """A file, folder, version or model is not there."""

    kind = "not_found"
    exit_code = 3


class IntegrityError(StyletuneError):
    """Bytes are not what their checksum, header or schema says: damaged, or changed by hand."""

    kind = "integrity"
    exit_code = 4


class Conflict(StyletuneError):
    """It exists already, or belongs to something else; nothing was overwritten."""

    kind = "conflict"
    exit_code = 5
