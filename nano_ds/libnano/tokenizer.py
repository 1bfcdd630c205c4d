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
        ids = filter(self.model.is_special, range(self.vocab_size))
        return {self.model.token_bytes(i).decode("utf-8", "surrogateescape"): i for i in ids}

    @cached_property
    def stop_ids(self) -> list[int]:
        return list(filter(self.model.is_stop, range(self.vocab_size)))

    def encode_array(self, text: str | bytes, allow_special: bool = False) -> np.ndarray:
        return self.model.tokenize_array(text, allow_special)

    def token_bytes(self, id: int) -> bytes:
        return self.model.token_bytes(id)
