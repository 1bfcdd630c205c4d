"""A running text in the C engine.

n tokens of a call, V vocab_size
"""

from __future__ import annotations

import ctypes
import os
import threading
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from nano_ds.errors import UserError
from nano_ds.libnano.handle import Closing, Handle, u32
from nano_ds.libnano.model import Adapter, Model, file_name
from nano_ds.libnano.native import ERR_MISMATCH, library, values
from nano_ds.sampling import SamplerParams

Ids = Sequence[int] | np.ndarray
CACHES = ("auto", "f16", "f32")  # nano_cache
DRAFTS = ("auto", "off", "always")  # nano_draft
AT_ONCE = 16  # tokens asked of the library in a call: it gives no more than half of that


class Piece(NamedTuple):
    """A token of a continuation and the characters that it completes; the last piece may have text but no token."""

    id: int | None
    text: str


class Stats(NamedTuple):
    """nano_session_stats: what ``next_tokens`` and ``generate`` have done so far."""

    generated: int  # tokens appended
    evals: int  # passes through the model for them
    drafted: int  # guesses computed
    accepted: int  # those that came true
    seconds: float  # for all of it


class Session(Closing):
    """KV cache, worker threads and sampler of one text. Belongs to one thread at a time.

    ``context`` is the room for tokens (0: as many as the model allows); ``threads`` 0 takes one for each fast core that
    the process may use. ``cache`` says how keys and values are kept: "f16", "f32" or "auto", which is f32 for float32
    weights and the exact kernels. ``draft`` says whether tokens are guessed from what was said before and
    computed several at once: "auto" (where it pays), "off" or "always"; the text is the same.

    Raises:
        UserError: more context or threads than there can be, no such cache or draft.
        RunFailure: out of memory, or the system gives no threads.
    """

    def __init__(self, model: Model, context: int = 0, threads: int = 0, cache: str = "auto", draft: str = "auto"):
        for what, value, known in (("cache", cache, CACHES), ("draft", draft, DRAFTS)):
            if value not in known:
                raise UserError(f"{what} {value!r}: must be one of {', '.join(known)}")
        lib, owner = library(), model._owner()
        params = lib.nano_session_default_params()
        params.context, params.threads = u32(context, "context"), u32(threads, "threads")
        params.cache, params.draft = CACHES.index(cache), DRAFTS.index(draft)
        out = ctypes.c_void_p()
        lib.check(lib.nano_session_open(ctypes.byref(out), owner.pointer, ctypes.byref(params)))
        assert out.value is not None
        self._handle = Handle(out.value, lib.nano_session_close, owner, None)
        self._in_use = threading.Lock()
        self.model = model
        self._vocab_size = model.config.vocab_size

    def eval(self, ids: Ids, all_logits: bool = False) -> np.ndarray:
        """Appends ``ids`` and computes the logits after the last of them, float32 [V]; or after each, [n, V].

        The numbers depend neither on how a text is split over calls nor on the number of threads. A non-causal model
        takes its whole input at once.

        Raises:
            UserError: an id that there is not, more tokens than the context holds, no tokens; nothing is appended then.
        """
        fits = len(ids) <= self.context - self.length  # else the library says so: no memory for what will not come
        rows = np.empty((len(ids), self._vocab_size), np.float32) if all_logits and fits else None
        self._append(ids, rows)
        return self.logits if rows is None else rows

    def feed(self, ids: Ids) -> None:
        """``eval`` for those who do not look at the logits, because they sample."""
        self._append(ids, None)

    def _append(self, ids: Ids, rows: np.ndarray | None) -> None:
        tokens = _tokens(ids)
        into = None if rows is None else rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        lib = library()
        with self._using() as pointer:
            at = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
            lib.check(lib.nano_session_eval(pointer, at, len(tokens), into))

    @property
    def logits(self) -> np.ndarray:
        """After the last token: float32 [V], a copy. Raises UserError before the first, after ``rewind``, ``load``."""
        with self._using() as pointer:
            at = library().nano_session_logits(pointer)
            if not at:
                raise UserError("there are no logits yet: evaluate some tokens first")
            return np.ctypeslib.as_array(at, (self._vocab_size,)).copy()

    def set_adapter(self, adapter: Adapter | None) -> None:
        """For the tokens evaluated from now on. Raises UserError if it is not for this model; nothing changes then."""
        mine, other = self._owner(), None if adapter is None else adapter._owner()
        lib = library()
        with self._using() as pointer:
            status = lib.nano_session_set_adapter(pointer, None if other is None else other.pointer)
            lib.check(status, adapter.name if adapter is not None and status == ERR_MISMATCH else None)
            mine.needs[1] = other

    def set_sampler(self, params: SamplerParams) -> None:
        """How ``sample`` chooses; starts its random numbers from the seed."""
        lib = library()
        wanted = lib.nano_sampler_default_params()
        for name, value in asdict(params).items():
            # there is no vocabulary that a top-k beyond 32 bits could cut
            setattr(wanted, name, min(value, (1 << 32) - 1) if name == "top_k" else value)
        with self._using() as pointer:
            lib.check(lib.nano_session_set_sampler(pointer, ctypes.byref(wanted)))

    @property
    def sampler(self) -> SamplerParams:
        """How ``sample`` chooses; the seed goes on with the random numbers from here: setting this changes nothing."""
        with self._using() as pointer:
            params = library().nano_session_sampler(pointer)
        return SamplerParams(**values(params))

    def sample(self) -> int:
        """The next token, chosen from the last logits; it is not appended. Raises UserError before the first eval."""
        lib, id = library(), ctypes.c_uint32()
        with self._using() as pointer:
            lib.check(lib.nano_session_sample(pointer, ctypes.byref(id)))
        return id.value

    def next_tokens(self, most: int) -> list[int]:
        """Chooses and appends the next 1 to ``most`` tokens: those that ``sample`` and ``feed`` in turn would give.

        A token that ends a text comes last and is not appended.

        Raises:
            UserError: before the first eval, and when the context is full.
        """
        lib, n = library(), ctypes.c_size_t()
        room = (ctypes.c_uint32 * max(0, min(most, AT_ONCE)))()
        with self._using() as pointer:
            lib.check(lib.nano_session_generate(pointer, room, len(room), ctypes.byref(n)))
        return room[: n.value]

    @property
    def stats(self) -> Stats:
        with self._using() as pointer:
            return Stats(**values(library().nano_session_get_stats(pointer)))

    @property
    def tokens(self) -> list[int]:
        """Those evaluated so far."""
        lib = library()
        with self._using() as pointer:
            at: list[int] = lib.nano_session_tokens(pointer)[: lib.nano_session_length(pointer)]
            return at

    def rewind(self, n: int) -> None:
        """Drops all tokens but the first ``n``; it is then as if they had never been.

        There are no ``logits`` until the next eval; ``sample`` and ``next_tokens`` compute them again. Tokens of the
        last ``next_tokens`` give back their random numbers. Raises UserError for a part of a non-causal model's input.
        """
        lib = library()
        with self._using() as pointer:
            lib.check(lib.nano_session_rewind(pointer, u32(n, "tokens to keep")))

    def keep(self, ids: Ids) -> int:
        """Drops what is not a beginning of ``ids``; how many tokens are left. Evaluate the rest of them, if any."""
        tokens, kept, lib = _tokens(ids), ctypes.c_uint32(), library()
        with self._using() as pointer:
            at = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
            lib.check(lib.nano_session_keep(pointer, at, len(tokens), ctypes.byref(kept)))
        return kept.value

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes tokens, keys and values, and sampler to a file, whole or not at all.

        Raises:
            UserError: it cannot be written; tokens computed with different adapters; a non-causal model.
        """
        lib, named = library(), file_name(path)
        with self._using() as pointer:
            lib.check(lib.nano_session_save_file(pointer, named))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on where the session of this file was saved: tokens and sampler are replaced.

        Raises:
            UserError: it cannot be read or is damaged, is of another model, adapter or kind of cache, or has more
                tokens than there is room for. The session is as before then.
        """
        lib, named = library(), file_name(path)
        with self._using() as pointer:
            lib.check(lib.nano_session_load_file(pointer, named))

    def reset(self) -> None:
        """Forgets all tokens. Sampler and adapter stay."""
        with self._using() as pointer:
            library().nano_session_reset(pointer)

    @property
    def length(self) -> int:
        """Tokens evaluated so far."""
        with self._using() as pointer:
            return int(library().nano_session_length(pointer))

    @property
    def context(self) -> int:
        """Tokens it has room for."""
        with self._using() as pointer:
            return int(library().nano_session_context(pointer))

    @property
    def threads(self) -> int:
        with self._using() as pointer:
            return int(library().nano_session_threads(pointer))

    def generate(
        self,
        prompt: str | bytes | Ids,
        max_new: int | None = None,
        params: SamplerParams | None = None,
        special: bool = False,
    ) -> Iterator[Piece]:
        """Continues with ``prompt``, then token by token until a stop token, ``max_new`` or the context's end.

        Text is encoded (``special`` as in ``Model.tokenize``). ``params`` None leaves the sampler as it is. Errors are
        those of ``eval`` and come with the first piece. A session that holds tokens goes on after them. What was
        yielded is in the session, and nothing else: what was computed ahead is taken back if nobody asks for it.
        """
        if params is not None:
            self.set_sampler(params)
        ids = self.model.tokenize_array(prompt, special) if isinstance(prompt, (str, bytes)) else _tokens(prompt)
        if len(ids) or not self.length:
            self.feed(ids)
        decoder = getincrementaldecoder("utf-8")("replace")
        for id in self.stream(max_new):
            if self.model.is_stop(id):
                break
            yield Piece(id, decoder.decode(self.model.token_bytes(id)))
        if tail := decoder.decode(b"", final=True):
            yield Piece(None, tail)

    def stream(self, max_new: int | None = None) -> Iterator[int]:
        """The next tokens, one by one, up to ``max_new`` or the context's end; a stop token is the last of them."""
        left = self.context - self.length
        left = left if max_new is None else min(max_new, left)
        while left > 0:
            before = self.length
            ids = self.next_tokens(left)
            given, appended = 0, self.length - before
            left -= appended
            try:
                for id in ids:
                    given += 1
                    yield id
            finally:
                if given < appended and not self.closed and self.length == before + appended:
                    self.rewind(before + given)
            if len(ids) > appended:
                return

    @contextmanager
    def _using(self) -> Iterator[int]:
        """The pointer, for one call of the library."""
        owner = self._owner()
        if owner.pid != os.getpid():
            raise RuntimeError("a session does not live on after a fork: open one in this process")
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError("two threads use this session at once: give each its own, they may share the model")
        try:
            yield owner.pointer
        finally:
            self._in_use.release()


def _tokens(ids: Ids) -> np.ndarray:
    """As uint32 [n]; the library knows which of them are in the vocabulary."""
    tokens = np.asarray(ids)
    if not tokens.size:
        return np.zeros(0, np.uint32)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UserError(f"token ids are a row of whole numbers, not {tokens.dtype} {list(tokens.shape)}")
    u32(int(tokens.min()), "token id")
    u32(int(tokens.max()), "token id")
    return np.ascontiguousarray(tokens, np.uint32)
