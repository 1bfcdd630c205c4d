"""The number formats of model files, in numpy. `docs/model_file.md` gives the layouts; the C kernels must agree."""

from __future__ import annotations

import numpy as np

from nano_ds.interop.block_search import CHUNK, column_weights, k_search, refuse_giants
from nano_ds.interop.blocks import k_scales, pack_k_scales

Q4K_TAG = 0x42
Q4K_ROW = 256  # weights of a block; a row is padded to whole blocks
Q4K_BLOCK = np.dtype(
    [
        ("tag", "<u4"),
        ("length", "<u4"),
        ("zero", "<u4"),
        ("s_scale", "<f4"),
        ("b_scale", "<f4"),
        ("sb", "u1", 12),
        ("q", "u1", Q4K_ROW // 2),
    ]
)
assert Q4K_BLOCK.itemsize == 160


def quantize_q80(weights: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and float32 scales of the flattened tensor, one scale per ``group_size`` neighbours.

    scale = max|w| / 127 and q = w / scale rounded half to even; a group of zeros has scale 0.
    """
    groups = np.asarray(weights, np.float32).reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    divisor = np.where(scales > 0, scales, np.float32(1))[:, None]
    # A denormal scale is too coarse to hold max|w| / 127: clip, or int8 would wrap round.
    q = np.rint(groups / divisor).clip(-127, 127) * (scales > 0)[:, None]
    return q.astype(np.int8).reshape(-1), scales


def dequantize_q80(q: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 weights, flat."""
    values = q.reshape(len(scales), -1).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale gives inf, not a warning
        values *= scales.astype(np.float32, copy=False)[:, None]
    return values.reshape(-1)


def q4k_blocks(shape: tuple[int, ...]) -> int:
    """Blocks of a tensor: every row takes whole ones."""
    rows = 1
    for n in shape[:-1]:
        rows *= n
    return rows * -(-shape[-1] // Q4K_ROW)


def q4k_lengths(row: int) -> list[int]:
    """The weights in each block of a row, which the blocks repeat in ``length``."""
    return [min(Q4K_ROW, row - start) for start in range(0, row, Q4K_ROW)]


def dequantize_q4k(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 weights of ``shape`` from its blocks (dtype ``Q4K_BLOCK``), which the caller has checked.

    A block has 8 groups of 32 four-bit values, each group with a 6-bit scale and a 6-bit offset:
    value = q s s_scale - b b_scale.
    """
    n = len(blocks)
    s, b = k_scales(blocks["sb"])
    q = np.empty((n, Q4K_ROW // 2, 2), np.float32)
    q[..., 0] = blocks["q"] & 15
    q[..., 1] = blocks["q"] >> 4
    values = q.reshape(n, 8, 32)
    with np.errstate(over="ignore", invalid="ignore"):
        values *= (s * blocks["s_scale"][:, None])[:, :, None]
        values -= (b * blocks["b_scale"][:, None])[:, :, None]
    per_row = -(-shape[-1] // Q4K_ROW)
    rows = values.reshape(-1, per_row * Q4K_ROW)[:, : shape[-1]]
    return rows.reshape(shape)


def quantize_q4k(rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Blocks (dtype ``Q4K_BLOCK``) of ``rows`` [r, c], c a multiple of 256, with the scales that lose least.

    Args:
        importance: mean square of each input [c], where it is known.
    """
    assert rows.ndim == 2 and rows.shape[1] % Q4K_ROW == 0, rows.shape
    refuse_giants(rows, "Q4K")
    weights = column_weights(importance, rows.shape[1])
    blocks = np.zeros(rows.size // Q4K_ROW, Q4K_BLOCK)
    blocks["tag"], blocks["length"] = Q4K_TAG, Q4K_ROW
    step, at = max(1, CHUNK // rows.shape[1]), 0
    for start in range(0, len(rows), step):
        part = np.asarray(rows[start : start + step], np.float32)
        x = np.ascontiguousarray(part.reshape(-1, Q4K_ROW).T)
        w = np.ascontiguousarray(np.tile(weights.reshape(-1, Q4K_ROW).T, (1, len(part))))
        s_scale, b_scale, s, b, q = k_search(x, w, lambda scale: scale.astype(np.float32))
        here = blocks[at : at + x.shape[1]]
        here["s_scale"], here["b_scale"] = s_scale, b_scale
        here["sb"] = pack_k_scales(s.T, b.T)
        here["q"] = (q[0::2] | q[1::2] << 4).T
        at += x.shape[1]
    return blocks
