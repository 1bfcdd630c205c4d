"""The tokenizers of SmolLM2 and Qwen3, where NANO_DATA names a folder that holds them, here and in `tokenizers`."""

from __future__ import annotations

import os
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from nano_ds.interop.hf_tokenizer import read_hf_tokenizer
from nano_ds.tokenizer import BPETokenizer
from nano_ds.tokenizer.byte_chars import read


def data_folder() -> Path:
    """The folder of real models and texts; skips the test where there is none."""
    where = os.environ.get("NANO_DATA")
    if not where:
        pytest.skip("NANO_DATA does not name a folder with real models and texts")
    return Path(where)


def find(name: str) -> Path:
    found = sorted(data_folder().rglob(name))
    if not found:
        pytest.skip(f"no {name} under NANO_DATA")
    return found[0]


def lines(count: int) -> list[str]:
    """``count`` lines, an equal share of each corpus there, spread over all of it."""
    files = sorted(data_folder().glob("corpus_*.txt"))
    if not files:
        pytest.skip("no corpus_*.txt under NANO_DATA")
    chosen = []
    for file in files:
        every = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines(True) if line.strip()]
        share = count // len(files)
        chosen += every[:: max(1, len(every) // share)][:share]
    return chosen


@cache
def qwen() -> tuple[BPETokenizer, tokenizers.Tokenizer]:
    folder = find("tokenizer-qwen3") / "package" / "models"
    return read_hf_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@cache
def smollm() -> tuple[BPETokenizer, tokenizers.Tokenizer]:
    """From the metadata of the GGUF file; the pre-tokeniser is that of its tokenizer.json."""
    facts = gguf_facts(find("SmolLM2-*.gguf"))
    spelled, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    ids = {t: i for i, t in enumerate(spelled)}
    special = [i for i, kind in enumerate(kinds) if kind == 3]
    pairs = [entry.split(" ") for entry in facts["tokenizer.ggml.merges"]]
    tokens = [
        t if kinds[i] == 3 else (read(t) or b"").decode("utf-8", "surrogateescape") for i, t in enumerate(spelled)
    ]
    ours = BPETokenizer(
        tokens,
        [[ids[a], ids[b]] for a, b in pairs],
        facts["tokenizer.ggml.pre"],
        special=special,
        eos=facts["tokenizer.ggml.eos_token_id"],
        chat_template=facts["tokenizer.chat_template"],
    )
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[tuple(p) for p in pairs]))
    cuts = tokenizers.pre_tokenizers
    theirs.pre_tokenizer = cuts.Sequence([cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)])
    theirs.add_special_tokens([tokenizers.AddedToken(spelled[i], normalized=False, special=True) for i in special])
    return ours, theirs


SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def gguf_facts(path: Path) -> dict[str, Any]:
    """The key-value pairs of a GGUF file that is trusted to be well-formed."""
    data = memoryview(path.read_bytes()[: 1 << 24])
    at = 8

    def number(code: str) -> Any:
        nonlocal at
        at += struct.calcsize("<" + code)
        return struct.unpack_from("<" + code, data, at - struct.calcsize("<" + code))[0]

    def value(kind: int) -> Any:
        nonlocal at
        if kind == 8:
            size = number("Q")
            at += size
            return bytes(data[at - size : at]).decode()
        if kind == 9:
            inner, count = number("I"), number("Q")
            return [value(inner) for _ in range(count)]
        return number(SIZES[kind])

    number("Q")  # tensors
    return {value(8): value(number("I")) for _ in range(number("Q"))}
