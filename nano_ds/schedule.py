"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from nano_ds.config import OptimConfig


def learning_rate(optim: OptimConfig, step: int, max_steps: int) -> float:
    """The rate of optimiser step ``step`` (the first is 0).

    Linear warm-up to ``lr``, then ``cosine`` (Loshchilov & Hutter 2017, SGDR) down to ``min_lr``; ``wsd``: constant,
    then linear to ``min_lr`` over the last ``wsd_decay`` of the steps (Hu et al. 2024, MiniCPM); or ``constant``.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    end = optim.decay_steps or max_steps
    if step >= end:
        return optim.min_lr
    start = optim.warmup_steps
    if optim.schedule == "wsd":
        start = max(start, end - round(end * optim.wsd_decay))
        if step < start:
            return optim.lr
        shape = 1.0 - (step - start) / max(1, end - start)
    else:
        shape = 0.5 * (1.0 + math.cos(math.pi * (step - start) / max(1, end - start)))
    return optim.min_lr + (optim.lr - optim.min_lr) * shape
