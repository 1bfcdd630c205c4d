"""Reads Nano's `.bin`: every version that `docs/model_file.md` lists, one tensor at a time from a memory map.

Nothing in a file is believed before it is checked: a damaged one ends in UserError, never in a crash or in numbers that
were not there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds.config import ModelConfig, from_tree
from nano_ds.errors import UserError
from nano_ds.interop.nano_bin_layout import (
    COUNTS,
    HEADER_BYTES,
    KINDS,
    LORA,
    LORA_COUNTS,
    LORA_VERSION,
    MAGIC,
    NANO,
    Q4K_PREFIX,
    Q4K_PREFIX_CODE,
    QWEN2,
    QWEN3,
    VERSIONS,
    Header,
    Segment,
    segments,
)
from nano_ds.interop.quantize import (
    Q4K_BLOCK,
    Q4K_TAG,
    dequantize_q4k,
    dequantize_q80,
    q4k_lengths,
)
from nano_ds.interop.vocabulary import Vocabulary, parse_field, parse_scored_field

GROUP_SIZES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
THETAS = (1e4, 1e6, 5e5)  # tried against the file's rotary tables
OF_THE_TYPE = {NANO: 1e4, QWEN2: 1e4, QWEN3: 1e6}


class NanoBin:
    """An open `.bin` file, a model or an adapter (``is_lora``).

    ``config`` (models only) says what Nano's programs assume where the file is silent: epsilon 1e-5, causal attention.
    ``remarks`` are what the user should know: a header that lies, rotary tables of an unknown base.
    """

    def __init__(self, path: str | Path, causal: bool = True):
        self.path = Path(path)
        self.remarks: list[str] = []
        self._map = _open(self.path)
        self.header = self._read_header()
        self.vocabulary = Vocabulary([])
        start = HEADER_BYTES
        if not self.is_lora:
            start = self._read_tokenizer()
        self._locate(start)
        self._read_q4k_prefixes()
        if not self.is_lora:
            self.config = self._config(causal)

    @property
    def is_lora(self) -> bool:
        return self.header.kind == LORA

    @property
    def names(self) -> list[str]:
        """State-dict names in the order of the file; the rotary tables are not among them."""
        return [name for name in self._pieces if not name.startswith("rope.")]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._pieces[name][0].shape

    def tensor(self, name: str) -> np.ndarray:
        """float32 weights; those stored as float32 are a read-only view of the file."""
        segment, at = self._pieces[name]
        raw = self._map[at : at + segment.piece_bytes]
        if segment.quant == "f32":
            return raw.view("<f4").reshape(segment.shape)
        if segment.quant == "q80":
            q, scales = raw[: segment.count].view(np.int8), raw[segment.count :]
            return dequantize_q80(q, np.frombuffer(scales.tobytes(), "<f4")).reshape(segment.shape)
        blocks = np.frombuffer(raw.tobytes(), Q4K_BLOCK)
        self._check_q4k(name, segment, blocks)
        return dequantize_q4k(blocks, segment.shape)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        for name in self.names:
            yield name, self.tensor(name)

    def _fail(self, problem: str) -> UserError:
        return UserError(f"{self.path}: {problem}")

    def _read_header(self) -> Header:
        size = len(self._map)
        if size < HEADER_BYTES:
            raise self._fail(f"{size} bytes; a .bin file begins with a header of {HEADER_BYTES}")
        words: tuple[int, ...] = struct.unpack("<64I", self._map[:HEADER_BYTES].tobytes())
        if words[:2] != MAGIC:
            raise self._fail(
                f"no Nano .bin file: it begins with {words[0]:#x} {words[1]:#x}, not 0x42443453 0x55524c4d"
            )
        number = (words[2], words[3])
        if number not in VERSIONS:
            known = ", ".join(f"{a}.{b}" for a, b in VERSIONS)
            raise self._fail(f"header words 2 and 3: version {number[0]}.{number[1]}; this program reads {known}")
        if words[4] == LORA:
            return self._read_lora_header(words, number)
        version, kind = VERSIONS[number], words[4]
        if kind not in version.quant:
            allowed = [*version.quant, *([LORA] if number == LORA_VERSION else [])]
            names = ", ".join(f"{k} {KINDS[k]}" for k in allowed)
            raise self._fail(f"header word 4: model type {kind}; version {number[0]}.{number[1]} has {names}")
        counts: dict[str, Any] = dict(zip(COUNTS, words[6:14], strict=True))
        tied = counts.pop("tied")
        if tied > 1:
            raise self._fail(f"header word 13: tied is {tied}, it must be 0 or 1")
        code = words[version.quant[kind]]
        if code not in version.codes:
            known = ", ".join(f"{c} {q}" for c, q in version.codes.items())
            where = f"version {number[0]}.{number[1]} has {known}"
            raise self._fail(f"header word {version.quant[kind]}: quantisation {code}; {where}")
        head_word = version.head_dim[kind]
        head_dim = words[head_word] if head_word >= 0 else None
        config = from_tree(ModelConfig, {**counts, "head_dim": head_dim}, f"{self.path}: header")
        quant = version.codes[code]
        group_size = words[version.quant[kind] + 1] if quant == "q80" else 0
        shape = {**counts, "head_dim": config.head_width}
        return Header(number, kind, tied=bool(tied), quant=quant, group_size=group_size, **shape)

    def _read_lora_header(self, words: tuple[int, ...], number: tuple[int, int]) -> Header:
        if number != LORA_VERSION:
            raise self._fail(f"an adapter of version {number[0]}.{number[1]}; adapters always have version 2024.10")
        counts: dict[str, Any] = dict(zip(LORA_COUNTS, words[6:13], strict=True))
        rank, alpha = counts.pop("rank"), counts.pop("alpha")
        if not 1 <= rank <= 1 << 16 or not 1 <= alpha <= 1 << 24:
            raise self._fail(
                f"header words 6 and 7: rank {rank}, alpha {alpha}; they must be from 1 to {1 << 16} and {1 << 24}"
            )
        config = from_tree(ModelConfig, counts, f"{self.path}: header")
        return Header(number, LORA, head_dim=config.head_width, rank=rank, alpha=alpha, **counts)

    def _read_tokenizer(self) -> int:
        left = len(self._map) - HEADER_BYTES
        field = struct.unpack("<I", self._map[HEADER_BYTES : HEADER_BYTES + 4].tobytes())[0] if left >= 4 else 0
        if not 8 <= field <= left:
            raise self._fail(f"tokenizer field of {field} bytes at 256; it must be from 8 to the {left} that follow")
        data = memoryview(self._map[HEADER_BYTES : HEADER_BYTES + field].tobytes())
        scored = self.header.kind == QWEN3 or (self.header.kind == QWEN2 and data[10:12] != b"\xff\xff")
        parse = parse_scored_field if scored else parse_field
        self.vocabulary = parse(data, self.header.vocab_size, str(self.path))
        return HEADER_BYTES + field

    def _locate(self, start: int) -> None:
        """Finds the true group size and the place of every piece; the sizes must add up to the file's."""
        space = len(self._map) - start
        if self.header.quant == "q80":
            self._recover_group_size(space)
        self._segments = segments(self.header)
        need = sum(s.size for s in self._segments)
        if need != space:
            what = f"{need - space} bytes are missing" if need > space else f"{space - need} bytes too many"
            raise self._fail(
                f"the parameters that the header describes take {need} bytes, the file has {space}: {what}"
            )
        self._pieces: dict[str, tuple[Segment, int]] = {}
        for s in self._segments:
            for i, name in enumerate(s.names()):
                self._pieces[name] = (s, start + s.prefix + i * s.piece_bytes)
            start += s.size

    def _recover_group_size(self, space: int) -> None:
        said = self.header.group_size
        for size in (said, *GROUP_SIZES) if said > 0 else GROUP_SIZES:
            found = segments(replace(self.header, group_size=size))
            if all(s.count % size == 0 for s in found if s.quant == "q80") and sum(s.size for s in found) == space:
                if size != said:
                    self.remarks.append(f"its header says Q80 groups of {said}, its size says {size}: read as {size}")
                self.header = replace(self.header, group_size=size)
                return
        raise self._fail(
            f"no Q80 group size from 1 to 256 makes the parameters that the header describes fill the {space} bytes "
            "behind the tokenizer; the file is cut or its header is wrong"
        )

    def _read_q4k_prefixes(self) -> None:
        for s in self._segments:
            if s.quant != "q4k":
                continue
            at = self._pieces[s.names()[0]][1] - Q4K_PREFIX
            stored = struct.unpack(Q4K_PREFIX_CODE, self._map[at : at + Q4K_PREFIX].tobytes())
            expected = s.q4k_prefix()
            if stored != expected:
                raise self._fail(f"Q4K tensor {s.key} at byte {at}: begins with {stored}, expected {expected}")

    def _check_q4k(self, name: str, segment: Segment, blocks: np.ndarray) -> None:
        lengths = np.array(q4k_lengths(segment.shape[-1]), np.uint32)
        bad = (blocks["tag"] != Q4K_TAG) | (blocks["length"].reshape(-1, len(lengths)) != lengths).reshape(-1)
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            tag, length = int(blocks["tag"][i]), int(blocks["length"][i])
            expected = int(lengths[i % len(lengths)])
            raise self._fail(f"{name}: Q4K block {i} says tag {tag}, length {length}; expected {Q4K_TAG}, {expected}")

    def _config(self, causal: bool) -> ModelConfig:
        h = self.header
        tree: dict[str, Any] = {
            "block_size": h.block_size,
            "vocab_size": h.vocab_size,
            "n_layer": h.n_layer,
            "n_head": h.n_head,
            "n_kv_head": h.n_kv_head,
            "n_embd": h.n_embd,
            "n_hidden": h.n_hidden,
            "head_dim": None if h.head_dim * h.n_head == h.n_embd else h.head_dim,
            "qkv_bias": h.kind == QWEN2,
            "qk_norm": h.kind == QWEN3,
            "rope_interleaved": h.kind != QWEN3,
            "is_causal": causal,
            "tie_embeddings": h.tied,
        }
        config = from_tree(ModelConfig, tree, f"{self.path}: header")
        return replace(config, rope_theta=self._theta(config))

    def _theta(self, config: ModelConfig) -> float:
        """The rotary base: the type's own, or one that the stored tables show."""
        from nano_ds.model import rope_tables

        kind = self.header.kind
        cos, sin = (self.tensor(f"rope.{t}") for t in ("cos", "sin"))
        for theta in (OF_THE_TYPE[kind], *THETAS):
            expected = rope_tables(replace(config, rope_theta=theta))
            if all(
                np.allclose(stored, e.numpy(), rtol=0, atol=1e-3)
                for stored, e in zip((cos, sin), expected, strict=True)
            ):
                if theta != OF_THE_TYPE[kind]:
                    self.remarks.append(f"its rotary tables are those of base {theta:g}: read as such")
                return theta
        self.remarks.append(
            f"its rotary tables fit no known base; {OF_THE_TYPE[kind]:g} is assumed, as Nano's programs do"
        )
        return OF_THE_TYPE[kind]


def _open(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty; expected a Nano .bin file")
        if path.is_dir():
            raise UserError(f"{path}: is a folder; expected a Nano .bin file")
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a Nano .bin file") from None
    except OSError as e:
        raise UserError(f"{path}: cannot read it: {e.strerror}") from None
