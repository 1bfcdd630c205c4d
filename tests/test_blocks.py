"""The tensor types of GGUF: the bytes mean what every other reader says, and quantising loses no more than it must."""

import numpy as np
import pytest

from nano_ds.errors import UserError
from nano_ds.interop.block_search import WRITABLE, quantize, to_bf16
from nano_ds.interop.blocks import TYPES, dequantize, k_scales, pack_k_scales

# Relative RMS error of normal weights: what the bits allow, with a little room; half of it would be suspicious.
ERROR = {"q8_0": 0.0058, "q4_0": 0.086, "q5_0": 0.043, "q4_k": 0.072, "q6_k": 0.018, "f16": 3e-4, "bf16": 2.2e-3}


def normal(rows=64, columns=512, seed=0):
    return np.random.default_rng(seed).normal(0, 0.02, (rows, columns)).astype(np.float32)


def back(type, weights, importance=None):
    return dequantize(type, quantize(type, weights, importance)).reshape(weights.shape)


def error(got, wanted, weight=1.0):
    return float(np.sqrt((weight * np.square(got - wanted)).sum() / (weight * np.square(wanted)).sum()))


def one_by_one(type, block):
    """A block decoded a weight at a time, from the layouts in docs/model_file.md."""
    half = lambda at: float(np.frombuffer(block[at : at + 2], "<f2")[0])  # noqa: E731
    if type in ("q8_0", "q4_0", "q5_0"):
        d = half(0)
        if type == "q8_0":
            return [d * (b - 256 if b > 127 else b) for b in block[2:]]
        start = 2 if type == "q4_0" else 6
        q = [block[start + i % 16] >> 4 * (i // 16) & 15 for i in range(32)]
        if type == "q5_0":
            high = int.from_bytes(block[2:6], "little")
            q = [v | (high >> i & 1) << 4 for i, v in enumerate(q)]
        return [d * (v - (8 if type == "q4_0" else 16)) for v in q]
    if type in ("q4_1", "q5_1"):
        d, m, start = half(0), half(2), 4 if type == "q4_1" else 8
        q = [block[start + i % 16] >> 4 * (i // 16) & 15 for i in range(32)]
        if type == "q5_1":
            high = int.from_bytes(block[4:8], "little")
            q = [v | (high >> i & 1) << 4 for i, v in enumerate(q)]
        return [d * v + m for v in q]
    if type == "q6_k":
        d, out = half(208), []
        for i in range(256):
            h, j, n = i // 128, i % 128 // 32, i % 32
            low = block[64 * h + 32 * (j % 2) + n] >> 4 * (j // 2) & 15
            high = block[128 + 32 * h + n] >> 2 * j & 3
            scale = block[192 + i // 16]
            out.append(d * (scale - 256 if scale > 127 else scale) * ((low | high << 4) - 32))
        return out
    d, dmin, sb, out = half(0), half(2), block[4:16], []
    for i in range(256):
        g, start = i // 32, 16 if type == "q4_k" else 48
        if g < 4:
            s, m = sb[g] & 63, sb[4 + g] & 63
        else:
            s, m = sb[4 + g] & 15 | (sb[g - 4] >> 6) << 4, sb[4 + g] >> 4 | (sb[g] >> 6) << 4
        q = block[start + 32 * (g // 2) + i % 32] >> 4 * (g % 2) & 15
        if type == "q5_k":
            q |= (block[16 + i % 32] >> g & 1) << 4
        out.append(d * s * q - dmin * m)
    return out


@pytest.mark.parametrize("type", [t for t in TYPES if t[0] == "q"])
def test_blocks_are_decoded_as_the_specification_says(type):
    t = TYPES[type]
    raw = np.random.default_rng(1).integers(0, 256, (20, t.bytes), dtype=np.uint8)
    for at in {"q4_1": (0, 2), "q5_1": (0, 2), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}.get(type, (0,)):
        raw[:, at + 1] &= 0x3F  # scales of a size that a model has
    got = dequantize(type, raw.reshape(-1)).reshape(20, t.weights)
    for block, values in zip(raw, got, strict=True):
        np.testing.assert_allclose(values, one_by_one(type, block.tolist() and block.tobytes()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("type", TYPES)
def test_blocks_are_decoded_bit_for_bit_as_the_gguf_package_does(type):
    gguf = pytest.importorskip("gguf", reason="the `dev` extra has it")
    t = TYPES[type]
    raw = np.random.default_rng(2).integers(0, 256, (50, 3 * t.bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(t.code)).reshape(-1)
    assert np.array_equal(dequantize(type, raw.reshape(-1)), wanted, equal_nan=True)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(t.code)]
    assert (block, size) == (t.weights, t.bytes)


@pytest.mark.parametrize("type", ERROR)
def test_quantising_loses_what_the_bits_cost(type):
    got = error(back(type, normal()), normal())
    assert 0.5 * ERROR[type] < got < ERROR[type]


def test_float32_loses_nothing_and_bf16_rounds_to_even():
    assert (back("f32", normal()) == normal()).all()
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x80000000], np.uint32).view(np.float32)
    assert to_bf16(ties).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x8000]


@pytest.mark.parametrize("type", ["q4_0", "q5_0", "q4_k", "q6_k"])
def test_search_beats_the_obvious_scale(type):
    w = normal()
    if type == "q4_k":
        g = w.reshape(-1, 32)
        low = np.minimum(g.min(1, keepdims=True), 0)
        step = (g.max(1, keepdims=True) - low) / 15
        plain = np.rint((g - low) / step) * step + low
    else:
        k, top = {"q4_0": (32, 8), "q5_0": (32, 16), "q6_k": (16, 32)}[type]
        g = w.reshape(-1, k)
        step = np.take_along_axis(g, np.abs(g).argmax(1)[:, None], 1) / -top
        plain = np.rint(g / step).clip(-top, top - 1) * step
    assert error(back(type, w), w) < 0.97 * error(plain.reshape(w.shape), w)


@pytest.mark.parametrize("type", ["q4_0", "q5_0", "q4_k", "q6_k"])
def test_importance_moves_the_error_to_the_columns_that_matter_less(type):
    w = normal()
    importance = np.exp(np.random.default_rng(3).normal(0, 2, w.shape[1])).astype(np.float32)
    blind, seeing = back(type, w), back(type, w, importance)
    assert error(seeing, w, importance) < 0.9 * error(blind, w, importance)
    assert (back(type, w, np.zeros(w.shape[1], np.float32)) == blind).all()


@pytest.mark.parametrize("type", WRITABLE)
def test_extremes(type):
    w = np.zeros((4, 256), np.float32)
    w[1] = 1e-38
    w[2, 7], w[2, 8] = 3.0, -3.0
    w[3] = -0.5
    got = back(type, w)
    assert (got[0] == 0).all() and np.isfinite(got).all()
    assert np.abs(got - w).max() < 0.25
    if type not in ("f32", "bf16"):
        with pytest.raises(UserError, match="too large"):
            quantize(type, np.full((1, 256), 3e38, np.float32))


def test_twice_is_once_for_weights_on_the_grid():
    for type in ("q8_0", "q4_0", "q5_0", "q6_k"):
        once = back(type, normal())
        assert error(back(type, once), once) < 2e-3, type


def test_six_bit_scales_pack_and_unpack():
    rng = np.random.default_rng(4)
    s, m = (rng.integers(0, 64, (100, 8), dtype=np.uint8) for _ in range(2))
    for wanted, got in zip((s, m), k_scales(pack_k_scales(s, m)), strict=True):
        assert (wanted == got).all()
