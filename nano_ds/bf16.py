"""bfloat16, which numpy lacks: the upper half of a float32 (8 exponent bits, 7 of mantissa), held here as uint16."""

from __future__ import annotations

import numpy as np


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """float32 of the same shape; exact."""
    return (bits.astype("<u4") << 16).view("<f4")


def to_bf16(array: np.ndarray) -> np.ndarray:
    """uint16 of the same shape: rounded to the nearest, halves to the even one; a NaN stays one."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype("<u4")) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype("<u2")
