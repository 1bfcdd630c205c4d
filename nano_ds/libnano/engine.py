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
    """Continues texts with a model file. A prompt that goes on where the last one ended computes only what is new."""

    def __init__(self, model: Model, adapter: Adapter | None = None, threads: int = 0):
        self.model = model
        self._adapter, self._threads = adapter, threads
        self._session: Session | None = None
        self._held: list[int] = []  # the ids that the session has evaluated
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
            self._feed(session, new[at : at + PIECE])
        timing.prompt_tokens, timing.prefill_s = len(new), time.perf_counter() - started
        for i in range(max_new):
            started = time.perf_counter()
            token = session.sample()
            if token in stop:
                return
            timing.new_tokens += 1
            yield token
            if i + 1 < max_new:
                self._feed(session, [token])
                timing.decode_s += time.perf_counter() - started

    def position_wise(self, ids: Sequence[int]) -> list[int]:
        session, _ = self._ready([], len(ids))
        out: list[int] = session.eval(ids, all_logits=True).argmax(-1).tolist()
        return out

    def _feed(self, session: Session, ids: list[int]) -> None:
        session.feed(ids)
        self._held += ids

    def _ready(self, prompt: list[int], need: int) -> tuple[Session, list[int]]:
        """A session with room for ``need`` tokens, and what of ``prompt`` it has yet to evaluate."""
        session = self._session
        if session is None or session.context < need:
            # Twice as much as is asked for: the next turn of a conversation then finds its beginning computed.
            session = self._open(min(self.block_size, max(2 * need, SMALLEST)))
        held = len(self._held)
        # An interrupted call may have left tokens in the session that are not in the list: then it starts afresh.
        if not (self.is_causal and 0 < held == session.length and prompt[:held] == self._held):
            session.reset()
            self._held, held = [], 0
        return session, prompt[held:]

    def _open(self, context: int) -> Session:
        if self._session is not None:
            self._session.close()
            self._session = None
        session = Session(self.model, context, self._threads)
        if self._adapter is not None:
            session.set_adapter(self._adapter)
        self._session, self._held = session, []
        return session
