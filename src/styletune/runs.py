"""The run folder: the only module that knows the names of the files in it.

Every file is written to a temporary name in the same folder, flushed and renamed, so a
reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from styletune.errors import IntegrityError, NotFound, OutputError


@dataclass(frozen=True, slots=True)
class Run:
    """Paths inside one run folder."""

    dir: Path

    @property
    def recipe_file(self) -> Path:
        return self.dir / "recipe.toml"

    @property
    def facts_file(self) -> Path:
        """``run.json``: hashes of recipe, data, base and code; versions; device."""
        return self.dir / "run.json"

    @property
    def log_file(self) -> Path:
        """``log.jsonl``: one line a logged step."""
        return self.dir / "log.jsonl"

    @property
    def lock_file(self) -> Path:
        """Locked for as long as a process trains; empty, and left there."""
        return self.dir / ".lock"

    @property
    def trainer_file(self) -> Path:
        """Who holds the lock; the processes of one training know by it that they share a disk."""
        return self.dir / ".trainer"

    @property
    def checkpoints_dir(self) -> Path:
        return self.dir / "checkpoints"

    @property
    def previews_dir(self) -> Path:
        return self.dir / "previews"

    @property
    def class_images_dir(self) -> Path:
        """What the base model drew of the class, for prior preservation."""
        return self.dir / "class_images"

    @property
    def scores_file(self) -> Path:
        """``scores/scores.parquet``, long form."""
        return self.dir / "scores" / "scores.parquet"

    @property
    def summary_file(self) -> Path:
        return self.dir / "scores" / "summary.json"

    @property
    def report_file(self) -> Path:
        return self.dir / "report.html"

    @property
    def picture_file(self) -> Path:
        """``picture.png``: base, chosen checkpoint and references side by side."""
        return self.dir / "picture.png"

    def checkpoint_dir(self, step: int) -> Path:
        return self.checkpoints_dir / f"step-{step:06d}"

    def adapter_file(self, step: int) -> Path:
        return self.checkpoint_dir(step) / "adapter.safetensors"

    def state_file(self, step: int) -> Path:
        return self.checkpoint_dir(step) / "state.safetensors"

    def state_facts_file(self, step: int) -> Path:
        """``state.json``, written last: a checkpoint without it is not complete."""
        return self.checkpoint_dir(step) / "state.json"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.checkpoints_dir.is_dir():
            return []
        steps = [
            int(p.name.removeprefix("step-"))
            for p in self.checkpoints_dir.glob("step-*")
            if p.name.removeprefix("step-").isdigit()
        ]
        return sorted(s for s in steps if self.state_facts_file(s).is_file())

    def remove_leftovers(self) -> None:
        """Delete the temporary files of checkpoints whose writing a kill interrupted."""
        for file in self.checkpoints_dir.glob("step-*/.*"):
            file.unlink(missing_ok=True)

    def samples_dir(self, suite_hash: str, column: str) -> Path:
        """Images of one column ("base", "step-000200") of one suite."""
        return self.dir / "samples" / suite_hash[:12] / column


@contextlib.contextmanager
def output_errors(
    path: Path, fix: str = "free some space, or choose another place to write to"
) -> Iterator[None]:
    """Turn a full disk or a read-only place into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        # Some libraries wrap the number away and leave only the text.
        text = str(error)
        reasons = {
            errno.ENOSPC: "no space left on the device",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "no permission to write",
            errno.EPERM: "no permission to write",
            errno.ENOTDIR: "a part of the path is a file",
            errno.EEXIST: "a file is where a folder should be",
        }
        reason = reasons.get(error.errno or 0, text)
        raise OutputError(
            f"cannot write: {reason}",
            where=str(path),
            fix=fix,
        ) from error


def make_dir(path: Path) -> Path:
    """Create a folder and its parents. Raises OutputError."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of ``path`` for writing; rename it when all went well."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_write(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write canonical, readable JSON (NaN is refused: it is not JSON)."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON that we wrote. Raises NotFound or IntegrityError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound("no such file", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"not readable as JSON: {error}", where=str(path)) from None


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
