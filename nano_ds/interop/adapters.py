"""Adapters of any container behind one interface, and a model with one merged into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from nano_ds.config import ModelConfig
from nano_ds.errors import UserError
from nano_ds.interop.gguf_adapter import read_adapter
from nano_ds.interop.gguf_file import is_gguf
from nano_ds.interop.nano_bin import NanoBin
from nano_ds.interop.nano_bin_import import check_base_shape
from nano_ds.model_dir import AdapterDir, ModelDir, expected_shapes
from nano_ds.tensors import PIECE, TensorFile


class Adapter:
    """An adapter directory, a LoRA `.bin` or a LoRA `.gguf`: rank, alpha, and the two matrices of every layer."""

    def __init__(self, path: str | Path, base: ModelDir | None, config: ModelConfig | None = None):
        """Opens it; ``config`` says what model it is for where there is no ``base``.

        Raises:
            UserError: it is damaged, does not fit ``base``, or was made for another model.
        """
        self.path = Path(path)
        self._read: Callable[[str], np.ndarray]
        if self.path.is_dir():
            folder = AdapterDir(self.path)
            if base is not None:
                folder.check_base(base)
            self.rank, self.alpha, self.linears = folder.config.rank, folder.config.alpha, folder.linears
            self._read = folder.tensors.__getitem__
        elif not self.path.exists():
            raise UserError(f"{path}: no such file; expected an adapter")
        elif is_gguf(self.path):
            found = read_adapter(self.path)
            config = base.config if base is not None else config
            assert config is not None, "the order of rotary rows depends on the model"
            found.check(expected_shapes(config), str(base.path) if base is not None else "this model")
            self.rank, self.alpha, self.linears = found.rank, found.alpha, found.linears
            self._read = found.reader(config)
        else:
            file = NanoBin(self.path)
            if not file.is_lora:
                raise UserError(f"{path}: is a model, not an adapter")
            if base is not None:
                check_base_shape(file, base)
            self.rank, self.alpha = file.header.rank, float(file.header.alpha)
            self.linears = [n.removesuffix(".lora_a") for n in file.names if n.endswith(".lora_a")]
            self._read = file.tensor

    def matrix(self, linear: str, part: str) -> np.ndarray:
        """``lora_a`` [r, in] or ``lora_b`` [out, r], float32."""
        return self._read(f"{linear}.{part}")


class Merged(TensorFile):
    """A model's weights with an adapter added as each is read: W + alpha / r B A."""

    def __init__(self, base: TensorFile, adapter: Adapter):
        self.__dict__.update(base.__dict__)
        self._adapter, self._adapted = adapter, set(adapter.linears)

    def __getitem__(self, name: str) -> np.ndarray:
        weights, linear = super().__getitem__(name), name.removesuffix(".weight")
        if linear not in self._adapted:
            return weights
        a, b = self._adapter.matrix(linear, "lora_a"), self._adapter.matrix(linear, "lora_b")
        return weights + np.float32(self._adapter.alpha / self._adapter.rank) * (b @ a)

    def pieces(self, name: str, count: int = PIECE) -> Iterator[np.ndarray]:
        whole = self[name].reshape(-1)
        for at in range(0, whole.size, count):
            yield whole[at : at + count]
