"""What every tokenizer offers, and the decoder that turns a stream of ids into whole characters."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from nano_ds.errors import UserError


class Codec(ABC):
    """Text to ids and back, as far as those need it who talk with a model: what a model file holds, too."""

    special: Mapping[str, int]  # tokens that a user's own text never becomes

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int:
        """The token that ends a document."""
        if "<|eos|>" not in self.special:
            raise UserError("this vocabulary has no special token <|eos|>, which ends every document; build another")
        return self.special["<|eos|>"]

    @property
    def bos_ids(self) -> list[int]:
        """What the model expects before every prompt: one id, or none."""
        return []

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer: the end of a document, and padding."""
        return [self.special[t] for t in ("<|eos|>", "<|padding|>") if t in self.special]

    @abstractmethod
    def encode_array(self, text: str | bytes, allow_special: bool = False) -> np.ndarray:
        """The ids of ``text`` as uint32. Only with ``allow_special`` does "<|eos|>" in it become that token."""

    def encode(self, text: str | bytes, allow_special: bool = False) -> list[int]:
        ids: list[int] = self.encode_array(text, allow_special).tolist()
        return ids

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """What one token stands for."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.token_bytes(int(i)) for i in ids)

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text; bytes that are no UTF-8 become U+FFFD, or stay with ``errors="surrogateescape"``."""
        return self.decode_bytes(ids).decode("utf-8", errors)


class Tokenizer(Codec):
    """A vocabulary that can be kept. A token is a run of bytes; ``decode`` joins them and reads the result as UTF-8."""

    tokens: list[str]  # by id; a byte above 0x7F that stands alone is "\udc80".."\udcff" (PEP 383)
    special: dict[str, int]

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides how text is encoded."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Writes ``tokenizer.json``."""


class StreamDecoder:
    """Ids in, text out, as soon as a character is complete."""

    def __init__(self, tokenizer: Codec):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, id: int) -> str:
        """The characters that this token completes (often all of it, sometimes none)."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def finish(self) -> str:
        """U+FFFD if the last character never became complete, else nothing."""
        return self._decoder.decode(b"", final=True)
