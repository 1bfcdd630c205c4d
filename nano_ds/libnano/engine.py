"""The C engine behind the inference scripts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from nano_ds.generate_base import Timing
from nano_ds.libnano.model import Adapter, Model
from nano_ds.libnano.session import Session
from nano_ds.sampling import SamplerParams

PIECE = 32  # prompt tokens a call: between two calls Ctrl-C is heard
SMALLEST = 256  # tokens that a session has room for, where the model's context is no shorter


class CEngine:
    """Continues texts with a model file. A prompt that begins as the last text did computes only what is new."""

    def __init__(self, model: Model, adapter: Adapter | None = None, threads: int = 0):
        self.model = model
        self._adapter, self._threads = adapter, threads
        self._session: Session | None = None
        self._open(1)  # an adapter that does not fit is refused now, not after the first question

    @property
    def block_size(self) -> int:
        return self.model.config.block_size

    @property
    def is_causal(self) -> bool:
        return self.model.config.causal

    @property
    def about(self) -> str:
        return f"C engine, {self._session.threads if self._session else self._threads} threads"

    def stream(
        self,
        prompt: Sequence[int],
        params: SamplerParams,
        max_new: int,
        stop: Sequence[int] = (),
        timing: Timing | None = None,
    ) -> Iterator[int]:
        timing = timing or Timing()
        session, new = self._ready(list(prompt), len(prompt) + max_new)
        session.set_sampler(params)
        started = time.perf_counter()
        for at in range(0, len(new), PIECE):
            session.feed(new[at : at + PIECE])
        timing.prompt_tokens, timing.prefill_s = len(new), time.perf_counter() - started
        left = max_new
        while left > 0:
            started, before = time.perf_counter(), session.length
            ids = session.next_tokens(left)
            timing.decode_s += time.perf_counter() - started
            given, appended = 0, session.length - before
            if len(ids) > appended and ids[-1] not in stop:  # it ends a text for the model, but not for the caller
                session.feed(ids[-1:])
                appended += 1
            left -= len(ids)
            try:
                for token in ids:
                    if token in stop:
                        return
                    given += 1
                    timing.new_tokens += 1
                    yield token
            finally:
                if given < appended and session.length == before + appended:
                    session.rewind(before + given)

    def position_wise(self, ids: Sequence[int]) -> list[int]:
        session, _ = self._ready([], len(ids))
        out: list[int] = session.eval(ids, all_logits=True).argmax(-1).tolist()
        return out

    def _ready(self, prompt: list[int], need: int) -> tuple[Session, list[int]]:
        """A session with room for ``need`` tokens, and what of ``prompt`` it has yet to evaluate."""
        session = self._session
        if session is None or session.context < need:
            # Twice as much as is asked for: the next turn of a conversation then finds its beginning computed.
            session = self._open(min(self.block_size, max(2 * need, SMALLEST)))
        return session, prompt[session.keep(prompt) :]

    def _open(self, context: int) -> Session:
        if self._session is not None:
            self._session.close()
            self._session = None
        session = Session(self.model, context, self._threads)
        if self._adapter is not None:
            session.set_adapter(self._adapter)
        self._session = session
        return session
