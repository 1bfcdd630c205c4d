"""Model files and adapters, opened by the C library."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nano_ds.errors import UserError
from nano_ds.libnano.handle import Closing, Handle, u32
from nano_ds.libnano.native import META_ARRAY, META_BOOL, META_NUMBER, META_SIGNED, META_TEXT, library, values
from nano_ds.tokenizer.trie import to_bytes

if TYPE_CHECKING:
    from mmap import mmap

    from nano_ds.libnano.tokenizer import ModelTokenizer

    Source = str | os.PathLike[str] | bytes | bytearray | memoryview | mmap


class Facts:
    """The members of one of the library's structures, all of them, as attributes."""

    def __init__(self, members: Mapping[str, Any]):
        self.__dict__.update(members)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


class Config(Facts):
    """nano_config. Enums (``arch``, ``quant``) are numbers, as in ``nano.h``; this names the members most asked for."""

    block_size: int  # longest context, in tokens
    vocab_size: int
    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    head_dim: int
    n_hidden: int
    causal: bool
    n_params: int
    file_bytes: int


class AdapterConfig(Facts):
    """nano_adapter_config."""

    rank: int
    alpha: float
    n_layer: int
    n_params: int


def _text(at: int | None, n: int) -> str:
    return ctypes.string_at(at, n).decode("utf-8", "surrogateescape") if at else ""


def _plain(value: Any) -> int | float | bool | str:
    """What a nano_meta holds."""
    if value.type == META_TEXT:
        return _text(value.text, value.text_length)
    if value.type == META_NUMBER:
        return float(value.number)
    if value.type == META_BOOL:
        return bool(value.whole)
    return int(ctypes.c_int64(value.whole).value if value.type == META_SIGNED else value.whole)


def file_name(path: str | os.PathLike[str]) -> bytes:
    """As the library wants it."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise UserError(f"{os.fspath(path)!r}: a file's name cannot hold a zero byte")
    return encoded


def open_handle(
    source: Source,
    from_file: Callable[..., int],
    from_memory: Callable[..., int],
    close: Callable[[int], None],
    *more: object,
) -> tuple[Handle, str]:
    """A handle on a file, or on bytes, which stay borrowed for as long as it lives; and what to call it in messages."""
    out = ctypes.c_void_p()
    kept: tuple[object, ...] = ()
    if isinstance(source, (str, os.PathLike)):
        name, path = os.fspath(source), file_name(source)
        status = from_file(ctypes.byref(out), path, *more)
    else:
        try:
            data = np.frombuffer(source, np.uint8)
        except (TypeError, ValueError, BufferError) as e:
            raise UserError(
                f"a model file is named by its path or given as bytes, not as {type(source).__name__} ({e})"
            ) from None
        name, kept = f"<{data.size} bytes>", (data,)
        status = from_memory(ctypes.byref(out), data.ctypes.data, data.size, *more)
    library().check(status, name)
    assert out.value is not None
    return Handle(out.value, close, *kept), name


class Model(Closing):
    """A model file: weights and vocabulary, read-only, for any number of sessions and threads."""

    def __init__(self, handle: Handle, name: str):
        self._handle, self.name = handle, name

    @classmethod
    def open(cls, source: Source, non_causal: bool = False, kernels: str | None = None) -> Model:
        """Maps the file of this name, or uses bytes (anything with a buffer) in place; both must stay as they are.

        ``non_causal``: the model attends to all positions, where its file cannot say so. ``kernels``: the instructions
        to use, by default the best that the machine has ("avx512", "dotprod", "scalar", ...); "exact" is the reference,
        which computes in float32 with the weights as they lie in the file.

        Raises:
            UserError: no such kernels; the file cannot be read, or is no model; nothing in it is believed unchecked.
            RunFailure: out of memory.
        """
        lib = library()
        params = lib.nano_model_default_params()
        if non_causal:
            params.non_causal = True
        if kernels is not None:
            named = ctypes.create_string_buffer(kernels.encode())
            params.kernels = ctypes.addressof(named)
        openers = (lib.nano_model_open_file, lib.nano_model_open_memory, lib.nano_model_close)
        return cls(*open_handle(source, *openers, ctypes.byref(params)))

    @property
    def kernels(self) -> str:
        """The name of the instructions in use."""
        return str(library().nano_model_kernels(self._owner().pointer).decode())

    @cached_property
    def config(self) -> Config:
        owner = self._owner()
        return Config(values(library().nano_model_config(owner.pointer).contents))

    @cached_property
    def metadata(self) -> dict[str, int | float | bool | str]:
        """The keys of a GGUF file, without its arrays; a `.bin` file has none."""
        lib, owner = library(), self._owner()
        value, out = lib.layout["nano_meta"](), {}
        index = 0
        while lib.nano_model_meta(owner.pointer, index, ctypes.byref(value)):
            if value.type != META_ARRAY:
                out[_text(value.key, value.key_length)] = _plain(value)
            index += 1
        return out

    @property
    def tokenizer(self) -> ModelTokenizer:
        """Its vocabulary with the face that the package's tokenizers have."""
        from nano_ds.libnano.tokenizer import ModelTokenizer

        return ModelTokenizer(self)

    def tokenize(self, text: str | bytes, special: bool = False) -> list[int]:
        """The ids of ``text``. Only with ``special`` does "<|eos|>" in it become that token: not for users' text."""
        ids: list[int] = self.tokenize_array(text, special).tolist()
        return ids

    def tokenize_array(self, text: str | bytes, special: bool = False) -> np.ndarray:
        """The same as uint32 [tokens]."""
        lib, owner = library(), self._owner()
        data = text if isinstance(text, bytes) else to_bytes(text)
        ids, n = ctypes.POINTER(ctypes.c_uint32)(), ctypes.c_size_t()
        lib.check(lib.nano_tokenize(owner.pointer, data, len(data), special, ctypes.byref(ids), ctypes.byref(n)))
        try:
            return np.ctypeslib.as_array(ids, (n.value,)).copy() if n.value else np.zeros(0, np.uint32)
        finally:
            lib.nano_free(ids)

    def token_bytes(self, id: int) -> bytes:
        """What one token stands for: often, not always, whole characters. Raises UserError if there is no such id."""
        owner, n = self._owner(), ctypes.c_size_t()
        at = library().nano_token_bytes(owner.pointer, u32(id, "token id"), ctypes.byref(n))
        if at is None:
            raise UserError(f"token id {id} is not in the vocabulary of {self.config.vocab_size}")
        return ctypes.string_at(at, n.value)

    @property
    def bos(self) -> int | None:
        """The token with which every text begins for this model (``tokenize`` does not put it there), or None."""
        owner, id = self._owner(), ctypes.c_uint32()
        return id.value if library().nano_token_bos(owner.pointer, ctypes.byref(id)) else None

    def is_special(self, id: int) -> bool:
        owner = self._owner()
        return bool(library().nano_token_is_special(owner.pointer, u32(id, "token id")))

    def is_stop(self, id: int) -> bool:
        """Does this token end a text?"""
        owner = self._owner()
        return bool(library().nano_token_is_stop(owner.pointer, u32(id, "token id")))

    def special_ids(self) -> list[int]:
        """Every token that ``is_special``."""
        owner, is_special = self._owner(), library().nano_token_is_special
        return [i for i in range(self.config.vocab_size) if is_special(owner.pointer, i)]

    def stop_ids(self) -> list[int]:
        """Every token that ``is_stop``."""
        owner, is_stop = self._owner(), library().nano_token_is_stop
        return [i for i in range(self.config.vocab_size) if is_stop(owner.pointer, i)]

    def __repr__(self) -> str:
        return f"Model({self.name!r}{', closed' if self.closed else ''})"


class Adapter(Closing):
    """A LoRA file, for ``Session.set_adapter``."""

    def __init__(self, handle: Handle, name: str):
        self._handle, self.name = handle, name

    @classmethod
    def open(cls, source: Source) -> Adapter:
        """As ``Model.open``.

        Raises:
            UserError: it cannot be read, or is no adapter.
        """
        if isinstance(source, (str, os.PathLike)) and (Path(source) / "adapter.json").is_file():
            raise UserError(
                f"{source}: is an adapter directory, the C engine reads files; "
                f"`nano-ds export BASE_MODEL_DIR --lora {source} -o adapter.bin` writes one"
            )
        lib = library()
        return cls(
            *open_handle(source, lib.nano_adapter_open_file, lib.nano_adapter_open_memory, lib.nano_adapter_close)
        )

    @cached_property
    def config(self) -> AdapterConfig:
        owner = self._owner()
        return AdapterConfig(values(library().nano_adapter_get_config(owner.pointer).contents))

    def __repr__(self) -> str:
        return f"Adapter({self.name!r}{', closed' if self.closed else ''})"
