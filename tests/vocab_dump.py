"""Byte-level BPE vocabularies for runtime_c/tests/encode_texts.c, and texts that are hard to cut."""

from __future__ import annotations

import random
import struct
import subprocess
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # GGUF's token types
PRE = {"gpt-2": 0, "smollm": 1, "llama-bpe": 2, "qwen2": 3}  # pretoken.h
NFC, WHOLE_FIRST = 1, 2
NO_ID = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a file says of a vocabulary with merges: tokens and their types by id, "left right" by priority."""

    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    pre: str
    nfc: bool = False
    whole_first: bool = False

    def write(self, path: Path) -> Path:
        """The dump that runtime_c/tests/vocab_dump.h describes."""
        flags = NFC * self.nfc + WHOLE_FIRST * self.whole_first
        parts = [struct.pack("<14I", len(self.tokens), len(self.merges), PRE[self.pre], flags, NO_ID, 0, *[NO_ID] * 8)]
        for token, kind in zip(self.tokens, self.types, strict=True):
            parts.append(struct.pack("<II", kind, len(token.encode())) + token.encode())
        parts += [struct.pack("<I", len(merge.encode())) + merge.encode() for merge in self.merges]
        path.write_bytes(b"".join(parts))
        return path


def encode_texts(
    program: Path, dump: Path, texts: Iterable[str | bytes], allow_special: bool = False
) -> list[list[int]]:
    """The ids of each text, by the C program."""
    data = [t.encode() if isinstance(t, str) else t for t in texts]
    sent = b"".join(struct.pack("<II", allow_special, len(t)) + t for t in data)
    done = subprocess.run([program, dump], input=sent, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    words = np.frombuffer(done.stdout, "<u4")
    ids, at = [], 0
    while at < len(words):
        n = int(words[at])
        ids.append(words[at + 1 : at + 1 + n].tolist())
        at += 1 + n
    assert len(ids) == len(data)
    return ids


ASSIGNED = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
MARKS = [c for c in ASSIGNED if unicodedata.combining(c)]
SPACES = [
    *" " * 12,
    *"\t\n\r\v\f" * 2,
    "\x1c",
    "\x85",
    "\xa0",
    "\u1680",
    "\u2003",
    "\u2028",
    "\u202f",
    "\u3000",
    "\u200b",
]
NUMBERS = [*"0123456789", "١", "٢", "०", "Ⅷ", "½", "²", "𝟗", "一", "〇", "㊿"]
PARTS = [
    *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:!?'\"()[]{}<>|_-+=/\\@#$%^&*~`",
    "'s", "'S", "'ſ", "'t", "'T", "'re", "'RE", "'Re", "'ve", "'VE", "'m", "'M", "'ll", "'LL", "'lL", "'d", "'D",
    "''", "’s", "the", " the", "and", "hello", " world", "don't", "it's", "I'LL", "naïve", "Straße", "ﬃ",
    "\u212b", "\u2126", "\u212a", "\u037e", "\u1fef",  # characters that NFC replaces by others
    "你好", "世界", "，", "。", "機械", "ひらがな", "カタカナ", "한국어", "ᄒ", "ᅡ", "ᆫ", "각", "가", "ᆨ", "ไทย",
    "हिन्दी", "العربية", "שלום", "😀", "👩‍👩‍👧", "🇩🇪", "❤️", "e\u0301", "\u0301", "\u0323", "\u0307", "\u0344",
    "\u0958", "\U0001d160", "\u0f73", "\u0f71",
    "\0", "\x01", "\x04", "\x7f", "\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\ue000", "\u200d",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool>", "</tool>", "<think>", "<|", "|>", "<|im_", "ool>",
]  # fmt: skip


def hard_text(rng: random.Random, longest: int = 40) -> str:
    """Random characters of all of Unicode, and those parts where tokenisers go wrong."""
    kinds = [ASSIGNED, MARKS, SPACES, NUMBERS, PARTS, PARTS]
    weights = [rng.random() ** 3 for _ in kinds]
    text = []
    for kind in rng.choices(kinds, weights, k=rng.randint(0, longest)):
        text.append(rng.choice(kind) * (rng.randint(2, 9) if rng.random() < 0.1 else 1))
    return "".join(text)
