"""The tensor types of GGUF in numpy: how many bytes, and back to float32. `docs/model_file.md` gives the layouts.

A type stores the weights of a row in blocks of neighbours. Nothing here trusts a count: callers pass whole blocks.
The arithmetic is float32, scale first, as every reader of these files does it, so that all of them see one model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

K_BLOCK = 256  # weights of a block of the K types


@dataclass(frozen=True)
class BlockType:
    """One tensor type: its number in a file, weights and bytes of a block."""

    name: str
    code: int
    weights: int
    bytes: int

    def row_bytes(self, row: int) -> int:
        """Bytes of a row of ``row`` weights, which must fill whole blocks."""
        assert row % self.weights == 0, (self.name, row)
        return row // self.weights * self.bytes


TYPES = {
    t.name: t
    for t in (
        BlockType("f32", 0, 1, 4),
        BlockType("f16", 1, 1, 2),
        BlockType("bf16", 30, 1, 2),
        BlockType("q8_0", 8, 32, 34),
        BlockType("q4_0", 2, 32, 18),
        BlockType("q4_1", 3, 32, 20),
        BlockType("q5_0", 6, 32, 22),
        BlockType("q5_1", 7, 32, 24),
        BlockType("q4_k", 12, K_BLOCK, 144),
        BlockType("q5_k", 13, K_BLOCK, 176),
        BlockType("q6_k", 14, K_BLOCK, 210),
    )
}
BY_CODE = {t.code: t for t in TYPES.values()}
# What other programs call the numbers that are not read here, for messages.
OTHERS = {10: "Q2_K", 11: "Q3_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"}
OTHERS |= {22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M"}
OTHERS |= {34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}


def dequantize(type: str, raw: np.ndarray) -> np.ndarray:
    """float32 weights, flat, of the bytes ``raw`` (uint8, whole blocks)."""
    t = TYPES[type]
    assert raw.dtype == np.uint8 and raw.size % t.bytes == 0, (type, raw.dtype, raw.size)
    if type == "f32":
        return np.frombuffer(raw.tobytes(), "<f4")
    if type == "f16":
        return np.frombuffer(raw.tobytes(), "<f2").astype(np.float32)
    if type == "bf16":
        return (np.frombuffer(raw.tobytes(), "<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale gives inf or NaN, not a warning
        return _UNPACK[type](raw.reshape(-1, t.bytes)).reshape(-1)


def f16(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte ``at`` of every block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(packed: np.ndarray) -> np.ndarray:
    """[n, b] bytes to [n, 2 b] values: first the low halves of all bytes, then the high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=1)


def k_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 6-bit scales and offsets, each uint8 [n, 8], in the 12 bytes [n, 12] of Q4_K and Q5_K (and of Nano's Q4K)."""
    low_s, low_m, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    s = np.concatenate((low_s & 63, (low_s >> 6) << 4 | rest & 15), axis=1)
    m = np.concatenate((low_m & 63, (low_m >> 6) << 4 | rest >> 4), axis=1)
    return s, m


def pack_k_scales(s: np.ndarray, m: np.ndarray) -> np.ndarray:
    """The inverse of ``k_scales``: uint8 [n, 12]."""
    low_s = s[:, 0:4] | (s[:, 4:8] >> 4) << 6
    low_m = m[:, 0:4] | (m[:, 4:8] >> 4) << 6
    return np.concatenate((low_s, low_m, s[:, 4:8] & 15 | (m[:, 4:8] & 15) << 4), axis=1)


def _bits(packed: np.ndarray) -> np.ndarray:
    """[n, b] bytes to [n, 8 b] bits, the lowest of each byte first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _q8_0(b: np.ndarray) -> np.ndarray:
    return f16(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(b: np.ndarray) -> np.ndarray:
    return f16(b, 0) * (nibbles(b[:, 2:]).astype(np.float32) - 8)


def _q4_1(b: np.ndarray) -> np.ndarray:
    return f16(b, 0) * nibbles(b[:, 4:]).astype(np.float32) + f16(b, 2)


def _q5_0(b: np.ndarray) -> np.ndarray:
    q = nibbles(b[:, 6:]) | _bits(b[:, 2:6]) << 4
    return f16(b, 0) * (q.astype(np.float32) - 16)


def _q5_1(b: np.ndarray) -> np.ndarray:
    q = nibbles(b[:, 8:]) | _bits(b[:, 4:8]) << 4
    return f16(b, 0) * q.astype(np.float32) + f16(b, 2)


def k_nibbles(packed: np.ndarray) -> np.ndarray:
    """[n, 128] bytes to [n, 8, 32] values: 32 bytes hold one group in their low halves, the next in their high ones."""
    groups = packed.reshape(-1, 4, 32)
    return np.stack((groups & 15, groups >> 4), axis=2).reshape(-1, 8, 32)


def _with_k_scales(b: np.ndarray, q: np.ndarray) -> np.ndarray:
    s, m = k_scales(b[:, 4:16])
    return (f16(b, 0) * s)[:, :, None] * q.astype(np.float32) - (f16(b, 2) * m)[:, :, None]


def _q4_k(b: np.ndarray) -> np.ndarray:
    return _with_k_scales(b, k_nibbles(b[:, 16:]))


def _q5_k(b: np.ndarray) -> np.ndarray:
    # Bit g of byte l is the fifth bit of weight l of group g.
    high = b[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & 1
    return _with_k_scales(b, k_nibbles(b[:, 48:]) | high << 4)


def _q6_k(b: np.ndarray) -> np.ndarray:
    # Each half of a block is 128 weights, 32 times four: the four low bits in 64 bytes, the two high ones in 32.
    low = b[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate((low & 15, low >> 4), axis=2).reshape(-1, 2, 4, 32)
    shift = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    q = low | (b[:, 128:192].reshape(-1, 2, 1, 32) >> shift & 3) << 4
    scales = f16(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    return scales[:, :, None] * (q.reshape(-1, 16, 16).astype(np.float32) - 32)


_UNPACK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "q8_0": _q8_0,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
