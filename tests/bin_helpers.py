"""Small models, and `.bin` files put together by hand from docs/model_file.md, independent of the package's writer."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from nano_ds.config import ModelConfig
from nano_ds.interop.nano_bin import NanoBin
from nano_ds.interop.nano_bin_import import import_model
from nano_ds.interop.vocabulary import Vocabulary
from nano_ds.model_dir import ModelDir, expected_shapes, new_meta, write_model_dir

TOKENS = ["<|padding|>", "<|unknown|>", "<|bos|>", "<|eos|>", "a", "ab", "\n", "精", "é", "ß", "\U00020bb7x"]
SPECIAL = [0, 1, 2, 3]


def golden(name: str = "") -> Path:
    """A file that Nano's own programs wrote; skips the test where the folder is not at hand."""
    root = os.environ.get("NANO_GOLDEN")
    if not root:
        pytest.skip("NANO_GOLDEN is not set: no files of Nano's own programs to compare with")
    return Path(root) / name


def import_golden(name: str, out: Path, causal: bool = True) -> ModelDir:
    """One of those files as a model directory."""
    import_model(NanoBin(golden(name), causal=causal), out)
    return ModelDir(out)


def small_config(**more: object) -> ModelConfig:
    shape = {"block_size": 16, "vocab_size": len(TOKENS), "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64}
    return ModelConfig(**{**shape, "n_hidden": 128, **more})  # type: ignore[arg-type]


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in expected_shapes(config).items()}


def vocabulary() -> Vocabulary:
    return Vocabulary(list(TOKENS), list(SPECIAL))


def make_model_dir(path: Path, config: ModelConfig | None = None, seed: int = 0) -> ModelDir:
    config = config or small_config()
    tensors = random_tensors(config, seed)
    with write_model_dir(path, config, vocabulary(), new_meta(step=7)) as writer:
        for name in writer.names:
            writer.write(name, tensors[name])
    return ModelDir(path)


def header(version: tuple[int, int], kind: int, *words: int) -> bytes:
    text = struct.pack("<6I", 0x42443453, 0x55524C4D, *version, kind, 32) + struct.pack(f"<{len(words)}I", *words)
    return text.ljust(256, b"\0")


def tokenizer_field(tokens: list[str] = TOKENS, special: list[int] = SPECIAL) -> bytes:
    body = b""
    for i, token in enumerate(tokens):
        body += bytes([len(token), int(i in special), 0xFF, 0xFF]) + struct.pack("<I", i)
        for c in token:
            body += struct.pack("<I", ord(c))
    return struct.pack("<II", 8 + len(body), len(tokens)) + body


def scored_field(tokens: list[bytes]) -> bytes:
    body = b"".join(struct.pack("<fI", -float(i), len(t)) + t for i, t in enumerate(tokens))
    return struct.pack("<II", 8 + len(body), max(map(len, tokens))) + body


def tables(block: int, head_dim: int, theta: float = 1e4) -> list[np.ndarray]:
    angles = [[pos * theta ** (-2 * j / head_dim) for j in range(head_dim // 2)] for pos in range(block)]
    return [np.array([[f(a) for a in row] for row in angles], "<f4") for f in (math.cos, math.sin)]


class ByHand:
    """A file's parameters by short name, ``[L, out, in]`` where there are layers, as the specification lists them."""

    def __init__(self, B=8, V=11, L=2, E=8, H=2, KV=1, F=12, D=None, seed=1):
        self.B, self.V, self.L, self.E, self.H, self.KV, self.F = B, V, L, E, H, KV, F
        self.D = D = D or E // H
        rng = np.random.default_rng(seed)
        Q, K = H * D, KV * D
        shapes = {
            "tok_emb": (V, E),
            "attn_norm": (L, E),
            "wq": (L, Q, E),
            "wk": (L, K, E),
            "wv": (L, K, E),
            "wo": (L, E, Q),
            "ffn_norm": (L, E),
            "w1": (L, F, E),
            "w2": (L, E, F),
            "w3": (L, F, E),
            "final_norm": (E,),
            "bq": (L, Q),
            "bk": (L, K),
            "bv": (L, K),
            "q_norm": (L, D),
            "k_norm": (L, D),
            "output": (V, E),
        }
        self.p = {n: rng.normal(0, 1, s).astype("<f4") for n, s in shapes.items()}
        self.tables = tables(B, D)

    @property
    def counts(self) -> tuple[int, ...]:
        return (self.B, self.V, self.L, self.E, self.H, self.KV, self.F)

    def f32(self, *names: str) -> bytes:
        return b"".join(self.p[n].tobytes() for n in names)

    def q80(self, group: int, *names: str) -> bytes:
        """Quantises in plain Python; ``self.p`` becomes what a reader must get back."""
        out = b""
        for n in names:
            whole = self.p[n] if self.p[n].ndim == 3 else self.p[n][None]
            back = np.empty_like(whole)
            for i, matrix in enumerate(whole):
                values, scales, restored = [], [], []
                flat = [np.float32(x) for x in matrix.reshape(-1)]
                for g in range(0, len(flat), group):
                    part = flat[g : g + group]
                    scale = np.float32(max(abs(x) for x in part)) / np.float32(127)
                    q = [round(float(x / scale)) for x in part]
                    values += q
                    scales.append(scale)
                    restored += [np.float32(v) * scale for v in q]
                out += np.array(values, "i1").tobytes() + np.array(scales, "<f4").tobytes()
                back[i] = np.array(restored).reshape(matrix.shape)
            self.p[n] = back.reshape(self.p[n].shape)
        return out

    def q4k(self, *names: str) -> bytes:
        """Random Q4K tensors; ``self.p`` becomes their values, decoded one weight at a time."""
        rng = np.random.default_rng(9)
        out = b""
        for n in names:
            shape = self.p[n].shape
            row = shape[-1]
            blocks, values = b"", []
            for _ in range(math.prod(shape[:-1])):
                for start in range(0, row, 256):
                    length = min(256, row - start)
                    s, b = rng.integers(0, 64, 8).tolist(), rng.integers(0, 64, 8).tolist()
                    q = rng.integers(0, 16, 256).tolist()
                    s_scale, b_scale = np.float32(rng.random() / 63), np.float32(rng.random() / 63)
                    sb = [(s[k] | (s[4 + k] >> 4) << 6) for k in range(4)]
                    sb += [(b[k] | (b[4 + k] >> 4) << 6) for k in range(4)]
                    sb += [((s[4 + k] & 15) | (b[4 + k] & 15) << 4) for k in range(4)]
                    packed = bytes(q[2 * i] | q[2 * i + 1] << 4 for i in range(128))
                    blocks += struct.pack("<IIIff", 0x42, length, 0, s_scale, b_scale) + bytes(sb) + packed
                    values += [q[i] * s[i // 32] * s_scale - b[i // 32] * b_scale for i in range(length)]
            count = len(blocks) // 160
            dims = [*shape, *[0] * (6 - len(shape))]
            out += struct.pack("<QII6II", 44 + len(blocks), 0x42, len(shape), *dims, count) + blocks
            self.p[n] = np.array(values, np.float32).reshape(shape)
        return out

    def check(self, file: NanoBin, atol: float = 0.0) -> None:
        """Every tensor of ``file`` is what was put in."""
        where = {"wq": "attn.", "wk": "attn.", "wv": "attn.", "wo": "attn.", "w1": "ffn.", "w2": "ffn.", "w3": "ffn."}
        where |= {"q_norm": "attn.", "k_norm": "attn."}
        bias = {"bq": "wq", "bk": "wk", "bv": "wv"}
        expected: dict[str, np.ndarray] = {}
        for n, value in self.p.items():
            if n in ("tok_emb", "final_norm"):
                expected[f"{n}.weight"] = value
            elif n == "output":
                expected["head.weight"] = value
            else:
                for i in range(self.L):
                    name = f"attn.{bias[n]}.bias" if n in bias else f"{where.get(n, '')}{n}.weight"
                    expected[f"blocks.{i}.{name}"] = value[i]
        got = dict(file.tensors())
        assert set(got) <= set(expected)
        assert set(got) == set(expected_shapes(file.config))
        for name, value in got.items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=atol, err_msg=name)
