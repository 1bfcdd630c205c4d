"""Attention that stays inside each document of a row, and positions that begin anew with each.

Rows are laid end to end and cut where documents begin, so no mask of T x T exists anywhere: on a CPU one call of the
attention kernel for each document, which costs less than causal attention over whole rows, since short documents leave
most of it out; on a GPU one call of the variable-length flash kernel for all of them, in bf16 and without dropout.

Shapes: B batch, T time, N = B T, H heads, D head width, L tokens of a document.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Where the documents of a batch lie. Every row begins one."""

    positions: Tensor  # int64 [B, T]: place of each token in its document
    bounds: Tensor  # int32 [documents + 1]: where each begins in the rows laid end to end, then N
    lengths: tuple[int, ...]  # of each document, on the host

    @classmethod
    def of(cls, positions: np.ndarray) -> Documents:
        """From positions [B, T] that are 0 where a document begins, as at the beginning of every row."""
        begins = np.flatnonzero(positions.reshape(-1) == 0)
        assert (positions[:, 0] == 0).all(), "every row begins a document"
        bounds = np.append(begins, positions.size).astype(np.int32)
        lengths = tuple(b - a for a, b in pairwise(bounds.tolist()))
        return cls(torch.from_numpy(np.ascontiguousarray(positions, np.int64)), torch.from_numpy(bounds), lengths)

    def to(self, device: torch.device) -> Documents:
        positions, bounds = (t.to(device, non_blocking=True) for t in (self.positions, self.bounds))
        return Documents(positions, bounds, self.lengths)

    def pin_memory(self) -> Documents:
        return Documents(self.positions.pin_memory(), self.bounds.pin_memory(), self.lengths)


@torch.compiler.disable
def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents, causal: bool, dropout: float) -> Tensor:
    """Attention of q, k, v, each [B, T, H, D], every document by itself; [B, T, H, D].

    Not compiled: the documents' lengths are other ones in every batch.
    """
    if _has_varlen(q, dropout):
        return _varlen(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), documents, causal).view_as(q)
    out = []
    for part in zip(*(t.flatten(0, 1).split(documents.lengths) for t in (q, k, v)), strict=True):
        q_HLD, k_HLD, v_HLD = (t.transpose(0, 1).unsqueeze(0) for t in part)
        out.append(F.scaled_dot_product_attention(q_HLD, k_HLD, v_HLD, dropout_p=dropout, is_causal=causal))
    return torch.cat(out, dim=2)[0].transpose(0, 1).view_as(q)


def _has_varlen(q: Tensor, dropout: float) -> bool:
    """Flash attention of variable length wants 16 bits, Ampere or later, and has no dropout."""
    if q.device.type != "cuda" or dropout or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(q.device)[0] >= 8


def _varlen(q: Tensor, k: Tensor, v: Tensor, documents: Documents, causal: bool) -> Tensor:
    """[N, H, D] of each [N, H, D]."""
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = documents.bounds, max(documents.lengths)
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0) if causal else (-1, -1))
    assert isinstance(out, Tensor)
    return out
