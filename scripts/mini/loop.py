"""A training loop that stops anywhere and goes on with the same numbers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

SAVE_EVERY_S = 300.0
WARMUP_STEPS = 200
DECAY_SHARE = 0.25
MAX_GRAD_NORM = 1.0


class Loop:
    """Optimizer, learning rate, average weights and checkpoints of one stage.

    The learning rate rises over ``WARMUP_STEPS``, stays, and falls to zero over the last
    ``DECAY_SHARE`` of the steps, so that a stage given more steps can go on from a checkpoint
    of its constant part. Draw a step's data from ``step`` alone: a resumed stage then sees
    what an unbroken one would have seen.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        out: Path,
        steps: int,
        lr: float,
        weight_decay: float = 1e-4,
        ema_decay: float = 0.999,
    ) -> None:
        self.name, self.module, self.steps, self.lr = name, module, steps, lr
        self.ema_decay, self.step = ema_decay, 0
        self.file = out / f"{name}.train.pt"
        trained = [p for p in module.parameters() if p.requires_grad]
        self.trained = trained
        self.optimizer = torch.optim.AdamW(
            trained, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        self.ema: dict[str, Tensor] = {
            k: v.detach().clone() for k, v in module.state_dict().items()
        }
        if self.file.is_file():
            state = torch.load(self.file, weights_only=True)
            self.step, self.ema = state["step"], state["ema"]
            module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            print(f"{name}: resumed at step {self.step}", flush=True)

    def __iter__(self) -> Iterator[int]:
        """Yield steps, 1 to ``steps``; call ``update`` with the loss of each."""
        first, start, saved, said = self.step, time.time(), time.time(), 0.0
        while self.step < self.steps:
            step = self.step + 1
            torch.manual_seed(step)
            self.shown: dict[str, float] = {}
            yield step
            self.step = step
            now = time.time()
            if now - said > 20 or step == self.steps:
                said, rate = now, (now - start) / (step - first)
                values = " ".join(f"{k} {v:.4f}" for k, v in self.shown.items())
                left = (self.steps - step) * rate / 60
                print(
                    f"{self.name} {step}/{self.steps} {values} {rate:.2f} s/step, {left:.0f} min left",
                    flush=True,
                )
            if now - saved > SAVE_EVERY_S or step == self.steps:
                saved = now
                self.save()
        self.module.load_state_dict(self.ema)

    def learning_rate(self, step: int) -> float:
        """The rate of a step, from 1."""
        rising = min(1.0, step / WARMUP_STEPS)
        falling = min(1.0, (self.steps - step + 1) / (self.steps * DECAY_SHARE))
        return self.lr * rising * falling

    def update(self, loss: Tensor, **shown: float) -> None:
        """Take one step down this loss; the rest is to be printed."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step + 1)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        self.shown = {"loss": loss.item(), **shown}

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        for key, value in self.module.state_dict().items():
            if value.dtype.is_floating_point:
                self.ema[key].lerp_(value, 1 - decay)
            else:
                self.ema[key].copy_(value)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average weights in place inside the block."""
        live = {k: v.clone() for k, v in self.module.state_dict().items()}
        self.module.load_state_dict(self.ema)
        try:
            yield
        finally:
            self.module.load_state_dict(live)

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        part = self.file.with_suffix(".part")
        state = {
            "step": self.step,
            "ema": self.ema,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, part)
        part.replace(self.file)
