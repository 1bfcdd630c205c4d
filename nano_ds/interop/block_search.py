"""float32 weights into the tensor types of GGUF, choosing scales that lose least.

A block is stored as a scale (and an offset) and small whole numbers. The obvious scale, the largest weight over the
largest number, is seldom the best: here several are tried for every block, each is improved by least squares for the
numbers it gave, and the one with the smallest weighted squared error is kept. The weight of an error is the mean square
of the input that meets the weight (`importance`, per column), so that what is kept small is the error of the layer's
output, not of its weights; without one all columns count the same.

Shapes: k weights of a block, n blocks. Arrays are [k, n], so that the sums over a block run along contiguous memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nano_ds.errors import UserError
from nano_ds.interop.blocks import K_BLOCK, TYPES, pack_k_scales

CHUNK = 1 << 16  # weights worked on at once: small enough that a dozen arrays of them stay in the processor's cache
TINY = np.float32(1e-30)
SYMMETRIC_TRIES = (0.8, 0.85, 0.89, 0.925, 0.95, 0.975, 1.0, 1.03, 1.06, 1.1)  # of the obvious inverse scale
MIRRORED_TRIES = (0.94, 1.0, 1.06)  # of the one whose largest weight takes the other sign
RANGE_TRIES = tuple(np.linspace(-1.5, 5, 20))  # added to the steps that the range of a group is cut into
NEIGHBOURS = ((-1, -1), (-1, 0), (0, -1), (0, 1), (1, 0), (1, 1))  # steps of a 6-bit scale and offset tried at the end

Encoder = Callable[[np.ndarray, np.ndarray], np.ndarray]


def quantize(type: str, rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """The bytes (uint8, flat) of ``rows`` [r, c], whose length must fill whole blocks of ``type``.

    Args:
        importance: mean square of each input [c]; None: all alike.

    Raises:
        UserError: a weight does not fit the type's largest number.
    """
    t = TYPES[type]
    assert rows.ndim == 2 and rows.shape[1] % t.weights == 0, (type, rows.shape)
    rows = np.ascontiguousarray(rows, "<f4")
    if type == "f32":
        return rows.reshape(-1).view(np.uint8)
    if type == "f16":
        with np.errstate(over="ignore"):
            return _finite(rows.reshape(-1).astype("<f2"), type).view(np.uint8)
    if type == "bf16":
        return to_bf16(rows).view(np.uint8)
    refuse_giants(rows, type)
    weights = column_weights(importance, rows.shape[1])
    step = max(1, CHUNK // rows.shape[1])
    parts = []
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        x = np.ascontiguousarray(part.reshape(-1, t.weights).T)
        w = np.ascontiguousarray(np.tile(weights.reshape(-1, t.weights).T, (1, len(part))))
        parts.append(_ENCODERS[type](x, w))
    return np.concatenate(parts).reshape(-1)


def refuse_giants(rows: np.ndarray, type: str) -> None:
    """Raises UserError for weights beyond float16, whose squares would spoil every sum here."""
    if rows.size and np.abs(rows).max() > np.finfo(np.float16).max:
        raise UserError(f"a weight is too large for {type}; use --quant f32")


def to_bf16(values: np.ndarray) -> np.ndarray:
    """uint16, rounded to nearest, halves to even."""
    bits = np.ascontiguousarray(values, "<f4").view(np.uint32).reshape(-1)
    return _finite_bf16(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2"))


def _finite(values: np.ndarray, type: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError(f"a weight (or a block's scale) is too large for {type}; use --quant bf16 or f32")
    return values


def _finite_bf16(bits: np.ndarray) -> np.ndarray:
    if (bits & 0x7F80 == 0x7F80).any():
        raise UserError("a weight is too large for bf16; use --quant f32")
    return bits


def column_weights(importance: np.ndarray | None, columns: int) -> np.ndarray:
    """float32 [columns], mean 1; a column that calibration never saw still counts a little."""
    if importance is None:
        return np.ones(columns, np.float32)
    assert importance.shape == (columns,), (importance.shape, columns)
    mean = float(importance.mean(dtype=np.float64))
    if not mean > 0:
        return np.ones(columns, np.float32)
    return (importance / mean + 1e-3).astype(np.float32)


def _half(values: np.ndarray, type: str) -> np.ndarray:
    """float16 of scales, refused where they overflow."""
    with np.errstate(over="ignore"):
        return _finite(values.astype("<f2"), type)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale, and 0 where the scale is 0 (a block of zeros)."""
    flat = np.abs(scale) < TINY
    return np.where(flat, 0, 1 / np.where(flat, 1, scale)).astype(np.float32)


def _round(x: np.ndarray, low: float, high: float) -> np.ndarray:
    np.rint(x, out=x)
    return np.clip(x, low, high, out=x)


def symmetric_scales(x: np.ndarray, w: np.ndarray, low: int, high: int, tries: int = 0) -> np.ndarray:
    """The scales [n] with which x [k, n] is nearest to scale * q, q in low..high; may be negative.

    Args:
        tries: how many of the candidates to look at, 0: all.
    """
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    base = _inverse(extreme) * np.float32(low)
    factors = [*SYMMETRIC_TRIES[-tries:], *(f * high / low for f in MIRRORED_TRIES[: tries or None])]
    wx = w * x
    best = np.zeros(x.shape[1], np.float32)
    best_gain = np.full(x.shape[1], -1, np.float32)
    for factor in factors:
        q = _round(x * (base * np.float32(factor)), low, high)
        along = np.einsum("kn,kn->n", wx, q)
        q *= q
        length = np.maximum(np.einsum("kn,kn->n", w, q), TINY)
        scale = along / length
        gain = along * scale  # the error is sum w x^2 less this
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        best = np.where(better, scale, best)
    return best


def affine_scales(x: np.ndarray, w: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and offsets, [n] and not negative, with which x [k, n] is nearest to scale * q - offset, q in 0..top."""
    low = np.minimum(x.min(axis=0), 0)
    span = _inverse(np.maximum(x.max(axis=0), 0) - low)
    moved = x - low
    wx = w * x
    sums = (w.sum(axis=0), wx.sum(axis=0))
    square = np.einsum("kn,kn->n", wx, x)
    best_s, best_m, best_error = np.zeros_like(low), np.zeros_like(low), square.copy()
    for more in RANGE_TRIES:
        q = _round(moved * (span * np.float32(top + more)), 0, top)
        s, m, error = _fit(q, w, wx, *sums, square)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_s, best_m = np.where(better, s, best_s), np.where(better, m, best_m)
    return best_s, best_m


def _fit(
    q: np.ndarray, w: np.ndarray, wx: np.ndarray, sum_w: np.ndarray, sum_wx: np.ndarray, square: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of x ~ s q - m for given q, m >= 0: s, m and the weighted squared error, each [n]."""
    wq = w * q
    sum_q = wq.sum(axis=0)
    sum_qx = np.einsum("kn,kn->n", wx, q)
    sum_qq = np.einsum("kn,kn->n", wq, q)
    det = sum_w * sum_qq - sum_q * sum_q
    solvable = det > 1e-6 * sum_w * sum_qq
    det = np.where(solvable, det, 1)
    s = (sum_w * sum_qx - sum_wx * sum_q) / det
    m = (sum_q * sum_qx - sum_qq * sum_wx) / det
    through_zero = ~solvable | (m < 0)
    s = np.where(through_zero, sum_qx / np.maximum(sum_qq, TINY), s)
    flat = sum_qq == 0  # a group of one negative number: all offset
    m = np.where(through_zero, np.where(flat, np.maximum(-sum_wx / sum_w, 0), 0), m)
    error = square - 2 * s * sum_qx + 2 * m * sum_wx + s * s * sum_qq - 2 * s * m * sum_q + m * m * sum_w
    return np.maximum(s, 0), m, np.where(s < 0, square, error)


def _q8_0(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    d = _half(np.abs(x).max(axis=0) / np.float32(127), "q8_0")
    q = _round(x * _inverse(d.astype(np.float32)), -127, 127).astype(np.int8)
    return np.concatenate((_columns(d), q.T.view(np.uint8)), axis=1)


def _q4_0(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    d = _half(symmetric_scales(x, w, -8, 7), "q4_0")
    q = (_round(x * _inverse(d.astype(np.float32)), -8, 7) + 8).astype(np.uint8)
    return np.concatenate((_columns(d), _halves(q)), axis=1)


def _q5_0(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    d = _half(symmetric_scales(x, w, -16, 15), "q5_0")
    q = (_round(x * _inverse(d.astype(np.float32)), -16, 15) + 16).astype(np.uint8)
    fifth = np.packbits(q >> 4, axis=0, bitorder="little").T
    return np.concatenate((_columns(d), fifth, _halves(q & 15)), axis=1)


def _q4_k(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Bytes [n, 144] of x [256, n]."""
    d, dmin, s, m, q = k_search(x, w, lambda v: _half(v, "q4_k").astype(np.float32))
    packed = q.reshape(4, 2, 32, -1)
    nibbles = (packed[:, 0] | packed[:, 1] << 4).reshape(128, -1).T
    scales = pack_k_scales(s.T, m.T)
    return np.concatenate((_columns(d.astype("<f2")), _columns(dmin.astype("<f2")), scales, nibbles), axis=1)


def k_search(
    x: np.ndarray, w: np.ndarray, stored: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fits x [256, n] by d s[g] q - dmin m[g] with s, m in 0..63 and q in 0..15, g one of 8 groups of 32.

    Args:
        stored: what a scale becomes when it is written (rounded to float16 or not), as float32.

    Returns:
        d, dmin float32 [n] as stored; s, m uint8 [8, n]; q uint8 [256, n].
    """
    n = x.shape[1]
    # [32, 8 n]: the groups of a block side by side.
    g = np.ascontiguousarray(x.reshape(8, 32, n).transpose(1, 0, 2)).reshape(32, 8 * n)
    gw = np.ascontiguousarray(w.reshape(8, 32, n).transpose(1, 0, 2)).reshape(32, 8 * n)
    scale, offset = affine_scales(g, gw, 15)
    wx = gw * g
    sum_w, sum_wx, square = gw.sum(axis=0), wx.sum(axis=0), np.einsum("kn,kn->n", wx, g)

    best: tuple[np.ndarray, ...] = ()
    for _ in range(3):
        d = stored(scale.reshape(8, n).max(axis=0) / np.float32(63))
        dmin = stored(offset.reshape(8, n).max(axis=0) / np.float32(63))
        s = _round(scale.reshape(8, n) * _inverse(d), 0, 63)
        m = _round(offset.reshape(8, n) * _inverse(dmin), 0, 63)
        error, q = _group_errors(g, gw, s * d, m * dmin)
        now = (error.sum(axis=0), d, dmin, error, s, m, q)
        best = now if not best else tuple(np.where(now[0] < best[0], a, b) for a, b in zip(now, best, strict=True))
        scale, offset, _ = _fit(q.reshape(32, 8 * n), gw, wx, sum_w, sum_wx, square)
    _, d, dmin, error, s, m, q = best
    for step_s, step_m in NEIGHBOURS:
        s_now, m_now = np.clip(s + step_s, 0, 63), np.clip(m + step_m, 0, 63)
        error_now, q_now = _group_errors(g, gw, s_now * d, m_now * dmin)
        better = error_now < error
        error, s, m = (np.where(better, a, b) for a, b in ((error_now, error), (s_now, s), (m_now, m)))
        q = np.where(better, q_now, q)
    whole = q.transpose(1, 0, 2).reshape(K_BLOCK, n).astype(np.uint8)
    return d, dmin, s.astype(np.uint8), m.astype(np.uint8), whole


def _group_errors(g: np.ndarray, gw: np.ndarray, s: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest q [32, 8, n] of g [32, 8 n] ~ s q - m, s and m [8, n], and the weighted squared errors [8, n]."""
    real_s, real_m = s.reshape(-1), m.reshape(-1)
    q = _round((g + real_m) * _inverse(real_s), 0, 15)
    off = real_s * q
    off -= real_m
    off -= g
    off *= off
    return np.einsum("kn,kn->n", gw, off).reshape(s.shape), q.reshape(32, *s.shape)


def _q6_k(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Bytes [n, 210] of x [256, n]: 16 groups of 16, an int8 scale each."""
    n = x.shape[1]
    g = np.ascontiguousarray(x.reshape(16, 16, n).transpose(1, 0, 2)).reshape(16, 16 * n)
    gw = np.ascontiguousarray(w.reshape(16, 16, n).transpose(1, 0, 2)).reshape(16, 16 * n)
    scale = symmetric_scales(g, gw, -32, 31, tries=5).reshape(16, n)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=0)[None], axis=0)[0]
    d = _half(largest / np.float32(-128), "q6_k")
    s = _round(scale * _inverse(d.astype(np.float32)), -128, 127)
    q = _round(g * _inverse((s * d.astype(np.float32)).reshape(-1)), -32, 31) + 32
    q = q.reshape(16, 16, n).transpose(1, 0, 2).reshape(2, 4, 32, n).astype(np.uint8)
    low = q & 15
    low = np.stack((low[:, 0] | low[:, 2] << 4, low[:, 1] | low[:, 3] << 4), axis=1).reshape(128, n)
    top = q >> 4
    high = (top[:, 0] | top[:, 1] << 2 | top[:, 2] << 4 | top[:, 3] << 6).reshape(64, n)
    return np.concatenate((low.T, high.T, s.T.astype(np.int8).view(np.uint8), _columns(d)), axis=1)


def _columns(values: np.ndarray) -> np.ndarray:
    """[n] numbers as their bytes [n, size]."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)


def _halves(q: np.ndarray) -> np.ndarray:
    """[32, n] four-bit values to bytes [n, 16]: weight i beside weight i + 16."""
    return (q[:16] | q[16:] << 4).T


_ENCODERS: dict[str, Encoder] = {"q8_0": _q8_0, "q4_0": _q4_0, "q5_0": _q5_0, "q4_k": _q4_k, "q6_k": _q6_k}
WRITABLE = ("f32", "f16", "bf16", *_ENCODERS)


def quantises_with_importance(quant: str) -> bool:
    """Whether a format of `nano-ds export` chooses its numbers by what the inputs are."""
    return quant in ("q4_0", "q4_k", "q4k")
