"""The order of samples: which block of which set is the g-th sample, in constant memory.

A set is a row of blocks of ``block_size`` + 1 tokens; those of text overlap by one, those of packed documents
(shards.py) do not. In each epoch a keyed bijection shuffles them; several sets are mixed in exact proportions.
Everything follows from the seed and the number g of the sample, so step s of a run always sees samples
s x batch_size … whatever the number of devices, the micro batch or the restarts, and the whole state of a loader is one
integer.

    B batch size, T block size, N number of blocks, g global sample number
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from nano_ds.by_document import Documents
from nano_ds.errors import UserError
from nano_ds.model import IGNORE
from nano_ds.permutation import key_of, perm
from nano_ds.shards import Shard, TokenSet

PERIOD = 1024  # samples after which the sets have come in exactly their shares


def shares(weights: Sequence[float], total: int = PERIOD) -> list[int]:
    """``total`` slots divided by weight (largest remainder); a set with any weight gets at least one."""
    if len(weights) > total:
        raise UserError(f"data.sets: {len(weights)} sets, at most {total} can be mixed; join some of them")
    whole = sum(weights)
    exact = [w / whole * total for w in weights]
    slots = [int(e) for e in exact]
    order = sorted(range(len(weights)), key=lambda k: (-(exact[k] - slots[k]), k))
    for k in order[: total - sum(slots)]:
        slots[k] += 1
    for k, w in enumerate(weights):
        if w > 0 and not slots[k]:
            slots[slots.index(max(slots))] -= 1
            slots[k] = 1
    return slots


class BlockStream:
    """The endless stream of samples of one or several sets."""

    def __init__(
        self,
        sets: Sequence[TokenSet],
        block_size: int,
        weights: Sequence[float] = (),
        seed: int = 0,
        shuffle: bool = True,
        document_mask: bool = False,
    ):
        """``document_mask``: documents of text do not see one another either; packed ones never do."""
        weights = weights or [1.0] * len(sets)
        assert sets and len(weights) == len(sets), (len(sets), len(weights))
        used = [k for k, w in enumerate(weights) if w > 0]
        self.sets = [sets[k] for k in used]
        self.block_size, self.seed, self.shuffle = block_size, seed, shuffle
        self.slots = shares([weights[k] for k in used])
        for t in self.sets:
            if t.block_size not in (0, block_size):
                raise UserError(
                    f"{t.folder}: its documents are packed into blocks of {t.block_size} tokens, not {block_size}; set "
                    f"data.block_size={t.block_size}, or prepare it again"
                )
        self.packed = any(t.block_size for t in self.sets)
        self.document_mask = document_mask
        # blocks before each shard, and in all: [[0, n0, n0 + n1, …], …]
        self._edges = [np.cumsum([0] + [_blocks(s, block_size) for s in t.shards]) for t in self.sets]
        self.blocks = [int(e[-1]) for e in self._edges]
        for t, n in zip(self.sets, self.blocks, strict=True):
            if not n:
                longest = max((len(s.tokens) for s in t.shards), default=0)
                what = "validation data" if t.split == "val" else "training data"
                if t.block_size:
                    raise UserError(f"{t.folder}: has no {what}; prepare more questions and answers")
                fix = "prepare more text" + (" or raise data.val_fraction" if t.split == "val" else "")
                raise UserError(
                    f"{t.folder}: the {what} have {longest} tokens in one piece, fewer than model.block_size "
                    f"{block_size} + 1; lower model.block_size to at most {max(longest - 1, 0)}, or {fix}"
                )
        self._period = lru_cache(maxsize=4)(self._make_period)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token over the sets, weighted as they are mixed."""
        share = [n / PERIOD for n in self.slots]
        return sum(p * t.bytes_per_token for p, t in zip(share, self.sets, strict=True))

    def locate(self, g: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Set, epoch and block of each global sample number."""
        g = np.array(g, np.int64, ndmin=1)
        which, rank = np.zeros_like(g), g.copy()
        if len(self.sets) > 1:
            for p in np.unique(g // PERIOD):
                here = g // PERIOD == p
                owner, before = self._period(int(p))
                which[here], rank[here] = owner[g[here] % PERIOD], before[g[here] % PERIOD]
            rank += g // PERIOD * np.array(self.slots)[which]
        n = np.array(self.blocks)[which]
        epoch, index = rank // n, rank % n
        block = index.copy()
        if self.shuffle:
            for k, e in np.unique(np.stack([which, epoch], 1), axis=0):
                here = (which == k) & (epoch == e)
                block[here] = perm(key_of(self.seed, int(k)), int(e), index[here], self.blocks[k]).astype(np.int64)
        return which, epoch, block

    def read(self, g: Any) -> np.ndarray:
        """The tokens of samples ``g``: int64 [len(g), T + 1]."""
        out = np.empty((np.size(g), self.block_size + 1), np.int64)
        for row, (shard, start) in enumerate(self._places(g)):
            out[row] = shard.tokens[start : start + self.block_size + 1]
            if out[row].max() >= shard.vocab_size:
                raise UserError(f"{shard.path}: damaged near token {start}; run `nano-ds prepare` again")
        return out

    def positions(self, g: Any) -> np.ndarray | None:
        """The place of each input in its document: int64 [len(g), T], 0 where one begins. None: the stream knows none.

        A document of text begins with the <|eos|> before it, from which the first token is predicted.
        """
        if not (self.packed or self.document_mask):
            return None
        at = np.arange(self.block_size)
        out = np.empty((np.size(g), self.block_size), np.int64)
        for row, (shard, start) in enumerate(self._places(g)):
            before = 0 if shard.row else 1
            inside = np.array((1, self.block_size), np.uint64) + np.uint64(start + before)
            first, last = np.searchsorted(shard.starts, inside)
            begins = shard.starts[first:last].astype(np.int64) - (start + before)
            marks = np.zeros(self.block_size, np.int64)
            if shard.row or self.document_mask:
                marks[begins] = begins
            out[row] = at - np.maximum.accumulate(marks)
        return out

    def loss(self, g: Any) -> np.ndarray | None:
        """Which targets of samples ``g`` carry loss: bool [len(g), T]; None: all."""
        if not self.packed:
            return None
        out = np.ones((np.size(g), self.block_size), bool)
        for row, (shard, start) in enumerate(self._places(g)):
            if shard.row:
                out[row] = shard.loss([start // shard.row])[0, 1:]
        return out

    def _places(self, g: Any) -> Iterator[tuple[Shard, int]]:
        """Of each sample its shard, and the place of its first token there."""
        which, _, blocks = self.locate(g)
        for k, b in zip(which.tolist(), blocks.tolist(), strict=True):
            edges = self._edges[k]
            s = int(np.searchsorted(edges, b, side="right")) - 1
            shard = self.sets[k].shards[s]
            yield shard, int(b - edges[s]) * (shard.row or self.block_size)

    def _make_period(self, p: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each slot of period ``p``: its set, and how many slots of that set came before it."""
        owner = np.repeat(np.arange(len(self.sets)), self.slots)
        if self.shuffle:
            owner = owner[perm(key_of(self.seed, -1), p, np.arange(PERIOD), PERIOD).astype(np.int64)]
        else:  # evenly spread
            place = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in self.slots])
            owner = owner[np.argsort(place, kind="stable")]
        before = np.zeros(PERIOD, np.int64)
        for k, n in enumerate(self.slots):
            before[owner == k] = np.arange(n)
        return owner, before


class Batch(NamedTuple):
    """What one device gets at once."""

    x: torch.Tensor  # inputs, int64 [micro_batch, T]
    y: torch.Tensor  # targets, the same; IGNORE carries no loss
    documents: Documents | None = None  # None: attention over whole rows
    weight: float = (
        1.0  # of its mean loss: the mean of all such products is the mean over the targets of the whole step
    )


def _blocks(shard: Shard, block_size: int) -> int:
    return len(shard.tokens) // shard.row if shard.row else max(0, len(shard.tokens) - 1) // block_size


def _cut(stream: BlockStream, g: np.ndarray, micro_batch: int, pin: bool) -> list[Batch]:
    """Micro batches of samples ``g``."""
    rows, positions, loss = torch.from_numpy(stream.read(g)), stream.positions(g), stream.loss(g)
    made = []
    for start in range(0, len(rows), micro_batch):
        part = slice(start, start + micro_batch)
        x, y = rows[part, :-1].contiguous(), rows[part, 1:].clone(memory_format=torch.contiguous_format)
        if loss is not None:
            y[torch.from_numpy(~loss[part])] = IGNORE
        documents = None if positions is None else Documents.of(positions[part])
        if pin:
            x, y, documents = x.pin_memory(), y.pin_memory(), documents and documents.pin_memory()
        made.append(Batch(x, y, documents))
    return made


def _rows(first: int, rank: int, world: int, batch_size: int) -> np.ndarray:
    """The samples of a rank: its slice of the global batch that begins at ``first``."""
    mine = batch_size // world
    return np.arange(first + rank * mine, first + (rank + 1) * mine)


class Loader:
    """The micro batches of one rank, a step at a time; the next step is prepared while this one trains.

    Global batch of step s = samples s x batch_size … (s + 1) x batch_size - 1. ``step`` is the whole state: a loader
    made with the step of a checkpoint goes on exactly where that one was.
    """

    def __init__(
        self,
        stream: BlockStream,
        *,
        step: int = 0,
        rank: int = 0,
        world: int = 1,
        micro_batch: int,
        accum: int = 1,
        batch_size: int,
    ):
        if batch_size != micro_batch * accum * world:
            raise UserError(
                f"train.batch_size: {batch_size} is not micro batch {micro_batch} x accumulation {accum} x "
                f"{world} devices; choose a batch size that these divide"
            )
        self.step = step
        self._stream, self._rank, self._world = stream, rank, world
        self._micro, self._batch = micro_batch, batch_size
        self._pin = torch.cuda.is_available()
        self._ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(maxsize=2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(step,), name="loader", daemon=True)
        self._thread.start()

    def next_step(self) -> list[Batch]:
        """The ``accum`` micro batches of this step; raises here what went wrong in the background."""
        if self._stop.is_set():
            raise RuntimeError("the loader is closed")
        made = self._ready.get()
        if isinstance(made, BaseException):
            self.close()
            raise made
        self.step += 1
        return made

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            yield self.next_step()

    def close(self) -> None:
        """Ends the background thread; harmless when called twice."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _work(self, step: int) -> None:
        try:
            while not self._stop.is_set():
                self._put(self._make(step * self._batch))
                step += 1
        except BaseException as e:
            self._put(e)

    def _make(self, first: int) -> list[Batch]:
        """The micro batches of the step that begins at sample ``first``.

        How many targets the whole step has follows from the shards, so the ranks need not tell one another.
        """
        made = _cut(self._stream, _rows(first, self._rank, self._world, self._batch), self._micro, self._pin)
        loss = self._stream.loss(np.arange(first, first + self._batch))
        if loss is None:
            return made
        parts = self._batch // self._micro
        return [b._replace(weight=int((b.y != IGNORE).sum()) * parts / int(loss.sum())) for b in made]

    def _put(self, made: list[Batch] | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(made, timeout=0.1)
                return
            except queue.Full:
                continue


class Validation:
    """The same samples at every validation: the first ``eval_batches`` x batch_size blocks of the sets, in order.

    No block comes twice: a small set gives fewer. Every rank gets equally many micro batches; rows that fill up the
    last ones have targets of -100 (no loss), so divide the summed loss by the number of targets that count.
    """

    def __init__(self, stream: BlockStream, *, eval_batches: int, batch_size: int, micro_batch: int):
        assert not stream.shuffle, "validation wants a stream with shuffle=False"
        self.stream, self.micro_batch, self.batch_size = stream, micro_batch, batch_size
        wanted = eval_batches * batch_size
        _, epoch, _ = stream.locate(np.arange(wanted))
        again = np.nonzero(epoch)[0]
        self.samples = int(again[0]) if len(again) else wanted

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token of the validation text: bits per byte = loss / ln 2 / this."""
        return self.stream.bytes_per_token

    def batches(self, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The micro batches of one rank."""
        group = self.micro_batch * world
        for first in range(0, self.samples, group):
            rows = _rows(first, rank, world, group)
            real = rows < self.samples
            batch = _cut(self.stream, np.minimum(rows, self.samples - 1), self.micro_batch, False)[0]
            batch.y[torch.from_numpy(~real)] = IGNORE
            yield batch
