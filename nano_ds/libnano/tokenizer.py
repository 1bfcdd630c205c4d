"""The vocabulary inside a model file, with the face of the package's tokenizers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nano_ds.tokenizer.base import Codec

if TYPE_CHECKING:
    from nano_ds.libnano.model import Model


class ModelTokenizer(Codec):
    """Encodes and decodes with the C library. Keeps its model open."""

    def __init__(self, model: Model):
        self.model = model

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @cached_property
    def special(self) -> dict[str, int]:  # type: ignore[override]
        return {self.model.token_bytes(i).decode("utf-8", "surrogateescape"): i for i in self.model.special_ids()}

    @cached_property
    def stop_ids(self) -> list[int]:
        return self.model.stop_ids()

    @property
    def eos_id(self) -> int:
        named = self.model.metadata.get("tokenizer.ggml.eos_token_id")
        return int(named) if named is not None else super().eos_id

    @property
    def bos(self) -> int | None:
        """The token that a chat template calls bos, whether or not it stands before every text."""
        named = self.model.metadata.get("tokenizer.ggml.bos_token_id")
        return int(named) if named is not None else self.model.bos

    @property
    def bos_ids(self) -> list[int]:
        return [] if self.model.bos is None else [self.model.bos]

    @property
    def chat_template(self) -> str | None:
        """As the file has it (Jinja)."""
        text = self.model.metadata.get("tokenizer.chat_template")
        return text if isinstance(text, str) else None

    def encode_array(self, text: str | bytes, allow_special: bool = False) -> np.ndarray:
        return self.model.tokenize_array(text, allow_special)

    def token_bytes(self, id: int) -> bytes:
        return self.model.token_bytes(id)
