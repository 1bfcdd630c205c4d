"""Writes Nano's `.bin`, versions 2026.1 and 2024.10, float32, Q80 or Q4K, and adapters; one tensor at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from nano_ds.config import ModelConfig
from nano_ds.errors import UserError
from nano_ds.files import atomic_write
from nano_ds.interop.nano_bin_layout import (
    HEADER_BYTES,
    LORA,
    LORA_TARGETS,
    LORA_VERSION,
    MAGIC,
    NANO,
    Q4K_PREFIX_CODE,
    VERSIONS,
    Header,
    Segment,
    segments,
)
from nano_ds.interop.quantize import Q4K_ROW, quantize_q4k, quantize_q80
from nano_ds.interop.vocabulary import MAX_TOKEN, Vocabulary, build_field, token_problem
from nano_ds.model_dir import AdapterDir, ModelDir
from nano_ds.report import byte_bar

WRITABLE = {"2026.1": (2026, 1), "2024.10": (2024, 10)}
WRITABLE_GROUPS = (128, 64)  # what Nano's readers are known to take
CHUNK = 1 << 22  # weights quantised at once
BIN_QUANTS = ("f32", "q80", "q4k")
GGUF = "(a .gguf file has a place for it)"


def bin_problems(config: ModelConfig, allow_noncausal: bool = False) -> list[str]:
    """Every reason why a `.bin` file of type 0 cannot hold a model of this shape."""
    c = config
    checks = [
        (not c.tie_embeddings, "tie_embeddings: false; Nano's programs read an output matrix of its own wrongly"),
        (c.bias, "bias: true; the file has no biases"),
        (c.qkv_bias and not c.bias, "qkv_bias: true; the file has no biases"),
        (c.qk_norm, "qk_norm: true; the file has no norms of heads"),
        (not c.use_rope, "use_rope: false; the file has no learned positions"),
        (c.use_rope and c.rope_theta != 1e4, f"rope_theta: {c.rope_theta:g}; the file implies 10000"),
        (c.use_rope and not c.rope_interleaved, "rope_interleaved: false; the file implies pairs (2j, 2j+1)"),
        (c.norm_eps != 1e-5, f"norm_eps: {c.norm_eps:g}; the file implies 1e-05"),
        (
            c.head_width * c.n_head != c.n_embd,
            f"head_dim: {c.head_width}; the file implies n_embd / n_head = {c.n_embd / c.n_head:g}",
        ),
    ]
    problems = [f"{text} {GGUF}" for wrong, text in checks if wrong]
    if not c.is_causal and not allow_noncausal:
        problems.append(
            "is_causal: false; the file cannot say so and programs will run it as causal. "
            "--allow-noncausal writes it all the same; tell every reader of it"
        )
    return problems


def choose_group_size(config: ModelConfig, wanted: int | None = None) -> int:
    """The Q80 group size: 128 where it divides both widths, else 64."""
    c, f = config.n_embd, config.hidden
    allowed = WRITABLE_GROUPS if wanted is None else (wanted,)
    for size in allowed:
        if size in WRITABLE_GROUPS and c % size == 0 and f % size == 0:
            return size
    what = (
        "neither 128 nor 64 divides"
        if wanted is None
        else f"the group size must be 64 or 128 and divide, not {wanted},"
    )
    raise UserError(f"Q80: {what} both n_embd {c} and n_hidden {f}; export it with --quant f32")


def write_model(
    path: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    *,
    version: str = "2026.1",
    quant: str = "f32",
    group_size: int | None = None,
    allow_noncausal: bool = False,
    importance: Mapping[str, np.ndarray] | None = None,
) -> Header:
    """Writes a model file; the old file stays until the new one is complete.

    ``importance`` holds the mean squares of the inputs of each matrix (``importance.collect``); Q4K uses them.

    Raises:
        UserError: with every reason why the format cannot hold the model, before anything is written.
    """
    if version not in WRITABLE:
        raise UserError(f"cannot write .bin version {version}; choose {' or '.join(WRITABLE)}")
    if quant not in BIN_QUANTS:
        raise UserError(f"cannot write .bin quantisation {quant}; choose {', '.join(BIN_QUANTS)}")
    if quant not in VERSIONS[WRITABLE[version]].codes.values():
        raise UserError(f"version {version} of .bin has no {quant}; leave --bin-version out")
    problems = bin_problems(config, allow_noncausal) + _vocabulary_problems(config, vocabulary)
    if quant == "q4k" and (config.n_embd % Q4K_ROW or config.hidden % Q4K_ROW):
        problems.append(
            f"Q4K: n_embd {config.n_embd} and n_hidden {config.hidden} must be multiples of {Q4K_ROW}, other rows are "
            "damaged by Nano's programs; use --quant q80, or a .gguf file"
        )
    if problems:
        raise UserError(f"{path}: a .bin file cannot hold this model:" + "".join(f"\n  - {p}" for p in problems))
    header = Header(
        version=WRITABLE[version],
        kind=NANO,
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_kv_head=config.n_kv_head,
        n_hidden=config.hidden,
        head_dim=config.head_width,
        block_size=config.block_size,
        vocab_size=config.vocab_size,
        quant=quant,
        group_size=choose_group_size(config, group_size) if quant == "q80" else 0,
    )
    from nano_ds.model import rope_tables  # the very numbers the model was trained with, which are Nano's too

    cos, sin = (t.numpy() for t in rope_tables(config))
    tables = {"rope.cos": cos, "rope.sin": sin}

    def fetch(segment: Segment, name: str) -> np.ndarray:
        return tables[name] if name in tables else tensors[name]

    _write(Path(path), header, build_field(vocabulary), fetch, importance or {})
    return header


def write_adapter(path: str | Path, adapter: AdapterDir, base: ModelDir) -> Header:
    """Writes an adapter of ``base`` as a LoRA `.bin`; layers without one get zeros, which change nothing.

    Raises:
        UserError: the adapter belongs to another model, or the format cannot hold it.
    """
    adapter.check_base(base)
    config, alpha = base.config, adapter.config.alpha
    problems = []
    if other := sorted({name.rpartition(".")[2] for name in adapter.linears} - set(LORA_TARGETS)):
        problems.append(f"it adapts {', '.join(other)}; the file has {', '.join(LORA_TARGETS)} only {GGUF}")
    if alpha != int(alpha):
        problems.append(f"alpha: {alpha:g}; the file holds whole numbers")
    if config.head_width * config.n_head != config.n_embd:
        problems.append(f"head_dim: {config.head_width}; the file implies {config.n_embd / config.n_head:g} {GGUF}")
    if problems:
        raise UserError(f"{path}: a .bin file cannot hold this adapter:" + "".join(f"\n  - {p}" for p in problems))
    header = Header(
        version=LORA_VERSION,
        kind=LORA,
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_kv_head=config.n_kv_head,
        n_hidden=config.hidden,
        head_dim=config.head_width,
        rank=adapter.config.rank,
        alpha=int(alpha),
    )

    def fetch(segment: Segment, name: str) -> np.ndarray:
        return adapter.tensors[name] if name in adapter.tensors else np.zeros(segment.shape, np.float32)

    _write(Path(path), header, b"", fetch, {})
    return header


def header_bytes(header: Header) -> bytes:
    """The 256 bytes at the start of the file."""
    h, words = header, [0] * 64
    words[0:2] = MAGIC
    words[2:4] = h.version
    words[4] = h.kind
    words[5] = VERSIONS[h.version].config_bytes
    shape = [h.n_layer, h.n_embd, h.n_head, h.n_kv_head, h.n_hidden]
    if h.kind == LORA:
        words[6:13] = [h.rank, h.alpha, *shape]
    else:
        version = VERSIONS[h.version]
        words[6:14] = [h.block_size, h.vocab_size, *shape, int(h.tied)]
        if version.head_dim[h.kind] >= 0:
            words[version.head_dim[h.kind]] = h.head_dim
        at = version.quant[h.kind]
        words[at] = next(code for code, quant in version.codes.items() if quant == h.quant)
        words[at + 1] = h.group_size
    return struct.pack("<64I", *words)


def _vocabulary_problems(config: ModelConfig, vocabulary: Vocabulary) -> list[str]:
    tokens = vocabulary.tokens
    if len(tokens) != config.vocab_size:
        return [f"the tokenizer has {len(tokens)} tokens, the model {config.vocab_size}; they must be as many"]
    problems = []
    for i, token in enumerate(tokens):
        problem = token_problem(tuple(map(ord, token)))
        if len(token) > MAX_TOKEN:
            problem = f"is {len(token)} characters long; the file has room for {MAX_TOKEN} {GGUF}"
        if problem:
            problems.append(f"token {i} {problem}")
    return problems[:8]


def _write(
    path: Path,
    header: Header,
    tokenizer_field: bytes,
    fetch: Callable[[Segment, str], np.ndarray],
    importance: Mapping[str, np.ndarray],
) -> None:
    parts = segments(header)
    size = HEADER_BYTES + len(tokenizer_field) + sum(s.size for s in parts)
    with atomic_write(path) as f, byte_bar(path.name, size) as bar:
        bar.update(f.write(header_bytes(header) + tokenizer_field))
        for segment in parts:
            if segment.prefix:
                bar.update(f.write(struct.pack(Q4K_PREFIX_CODE, *segment.q4k_prefix())))
            for name in segment.names():
                weights = fetch(segment, name)
                if weights.shape != segment.shape:
                    raise UserError(f"{name}: shape {list(weights.shape)}, the file needs {list(segment.shape)}")
                if not np.isfinite(weights).all():
                    raise UserError(
                        f"{name}: holds numbers that are not finite; the training diverged before this step"
                    )
                for piece in _encoded(segment, weights, importance.get(name)):
                    bar.update(_put(f, piece))
        assert f.tell() == size, (f.tell(), size)


def _encoded(segment: Segment, weights: np.ndarray, importance: np.ndarray | None) -> Iterator[np.ndarray]:
    if segment.quant == "q4k":
        step = max(1, CHUNK // segment.shape[-1])
        for start in range(0, len(weights), step):
            yield quantize_q4k(weights[start : start + step], importance).view(np.uint8)
        return
    flat = np.ascontiguousarray(weights, "<f4").reshape(-1)
    if segment.quant == "f32":
        yield flat
        return
    assert segment.quant == "q80", segment.quant
    step = CHUNK // segment.group_size * segment.group_size
    scales = []
    for start in range(0, len(flat), step):
        q, s = quantize_q80(flat[start : start + step], segment.group_size)
        scales.append(s.astype("<f4"))
        yield q
    yield from scales


def _put(f: IO[Any], array: np.ndarray) -> int:
    return f.write(array.data) if array.size else 0
