import numpy as np
import pytest

from nano_ds.interop.quantize import dequantize_q80, quantize_q80


@pytest.mark.parametrize("group", [1, 64, 128])
def test_q80_is_within_half_a_step(group):
    w = np.random.default_rng(0).normal(0, 0.02, (6, 256)).astype(np.float32)
    q, scales = quantize_q80(w, group)
    assert q.dtype == np.int8 and q.shape == (w.size,) and scales.dtype == np.float32
    error = np.abs(dequantize_q80(q, scales) - w.reshape(-1)).reshape(-1, group)
    assert (error <= scales[:, None] * 0.5001).all()
    assert np.abs(q.reshape(-1, group)).max(axis=1).tolist() == [127] * len(scales)


def test_q80_rounds_half_to_even_and_keeps_zero_groups():
    w = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, -127, *[0.0] * 8], np.float32)
    q, scales = quantize_q80(w, 8)
    assert scales.tolist() == [1.0, 0.0]
    assert q.tolist() == [127, 0, 2, 2, 0, -2, -126, -127, *[0] * 8]
    assert dequantize_q80(q, scales)[8:].tolist() == [0.0] * 8


def test_q80_twice_is_once():
    w = np.random.default_rng(1).normal(0, 1, 4096).astype(np.float32)
    q, scales = quantize_q80(w, 64)
    again, _ = quantize_q80(dequantize_q80(q, scales), 64)
    assert (q == again).all()


def test_q80_of_denormal_weights_does_not_wrap_round():
    w = np.array([200, -200, 100, 1], np.float32) * np.float32(1.4e-45)
    q, _ = quantize_q80(w, 4)
    assert (np.sign(q[:3]) == [1, -1, 1]).all()


def test_q80_scales_at_the_edges_of_float32():
    w = np.array([3.4e38, -3.4e38, 0, 1], np.float32)
    q, scales = quantize_q80(w, 4)
    assert q.tolist() == [127, -127, 0, 0] and np.isfinite(scales).all()
