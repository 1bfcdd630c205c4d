"""Watches loss and gradient norm: a step that is not finite, or far above what was usual, must not move the weights.

The verdict is computed where the numbers are, so on a GPU nobody waits for it; what it was is read a step later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WARMUP = 50  # accepted steps before a spike can be told from the noise of the beginning
MEMORY = 100  # steps that the running statistics look back
# Least standard deviation that is believed: of the loss in nats, of the log of the gradient norm.
FLOOR = (0.125, 0.29)
FIELDS = 9  # numbers of the state


@dataclass(frozen=True)
class Verdict:
    """What the guard saw at the last step that is known."""

    skipped: bool
    in_a_row: int  # skipped steps up to this one, without one that counted between
    total: int  # skipped steps of the run
    loss: float
    norm: float
    loss_limit: float  # infinite while there is no limit
    norm_limit: float

    @property
    def why(self) -> str:
        """For the user: what was wrong."""
        for what, value, limit in (("loss", self.loss, self.loss_limit), ("gradient norm", self.norm, self.norm_limit)):
            if not math.isfinite(value):
                return f"{what} {value}"
            if value > limit:
                return f"{what} {value:.4g}, above {limit:.4g}"
        return ""


class Guard:
    """Running statistics of accepted steps. Its whole state is a vector of float64, saved with every checkpoint.

    state = [loss mean, loss variance, log-norm mean, log-norm variance, accepted steps, skipped in a row, skipped in
    all, last loss limit, last norm limit]
    """

    def __init__(self, z: float, device: torch.device):
        """``z``: standard deviations above the running mean that make a spike; 0: only non-finite values count."""
        self.z = z
        self.state = torch.zeros(FIELDS, dtype=torch.float64, device=device)
        self._seen = torch.zeros(FIELDS + 3, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._ready: torch.cuda.Event | None = torch.cuda.Event() if device.type == "cuda" else None
        self._floor = torch.tensor(FLOOR, dtype=torch.float64, device=device)

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1.0 when the step must be skipped, else 0.0 (float32 scalar on the device). Both are global, finite or not.

        The statistics are exponential averages (Welford's update with a rate that never falls below 1 / MEMORY), of the
        loss and of the log of the norm, since norms are spread evenly on a log scale.
        """
        s = self.state
        x = torch.stack((loss.double().reshape(()), norm.double().reshape(()).clamp_min(1e-30).log()))
        mean, variance, count = s[0:4:2], s[1:4:2], s[4]
        limit = mean + self.z * variance.sqrt().maximum(self._floor)
        if not self.z:
            limit = torch.full_like(limit, float("inf"))
        limit = torch.where(count >= WARMUP, limit, torch.inf)
        skip = ~(torch.isfinite(x) & (x <= limit)).all()
        rate = (1 / (count + 1)).clamp_min(1 / MEMORY)
        difference = torch.where(skip, 0.0, x - mean)
        keep = skip.double()
        new = torch.empty_like(s)
        new[0:4:2] = mean + rate * difference
        new[1:4:2] = torch.where(skip, variance, (1 - rate) * (variance + rate * difference**2))
        new[4] = count + 1 - keep
        new[5] = (s[5] + 1) * keep
        new[6] = s[6] + keep
        new[7], new[8] = limit[0], limit[1].exp()
        self.state = new
        self._seen.copy_(torch.cat((new, torch.stack((keep, x[0], norm.double().reshape(()))))), non_blocking=True)
        if self._ready is not None:
            self._ready.record()
        return keep.float()

    def verdict(self) -> Verdict:
        """The verdict on the step before; waits for no later work of the device."""
        if self._ready is not None:
            self._ready.synchronize()
        v = self._seen.tolist()
        return Verdict(bool(v[9]), int(v[5]), int(v[6]), v[10], v[11], v[7], v[8])

    def save(self) -> list[float]:
        """The state as JSON can hold it; the limits of the last step are left out, since they may be infinite."""
        saved: list[float] = self.state[:7].tolist()
        return saved

    def load(self, saved: list[float]) -> None:
        """Takes a saved state over; an empty one (of an older checkpoint) begins anew."""
        self.state = torch.zeros_like(self.state)
        if len(saved) == 7:
            self.state[:7] = torch.tensor(saved, dtype=torch.float64)
        self._seen.zero_()


@torch.no_grad()
def parameter_sums(parameters: dict[str, Tensor]) -> Tensor:
    """Per parameter the sum of its bits read as integers: int64 [parameters]. One changed bit changes a sum."""
    sums = []
    for p in parameters.values():
        bits = p.detach().view(torch.int16 if p.element_size() == 2 else torch.int32)
        sums.append(bits.sum(dtype=torch.int64))
    return torch.stack(sums)


def drifted(names: list[str], sums: list[list[int]]) -> tuple[list[int], str]:
    """The ranks whose parameters differ from what most ranks hold, and the first parameter that differs.

    With two ranks that differ nobody can tell which is right: both are named.
    """
    for i, name in enumerate(names):
        column = [s[i] for s in sums]
        if len(set(column)) > 1:
            most = max(set(column), key=column.count)
            if column.count(most) * 2 <= len(column):
                return list(range(len(column))), name
            return [r for r, value in enumerate(column) if value != most], name
    return [], ""
