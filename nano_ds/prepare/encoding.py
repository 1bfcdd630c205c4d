"""Batches of documents to tokens, in this process or in several."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import numpy as np

from nano_ds.errors import RunFailure
from nano_ds.prepare.documents import Batch, batch_texts
from nano_ds.shards import token_dtype
from nano_ds.tokenizer import Tokenizer
from nano_ds.tokenizer.trie import to_bytes

E = TypeVar("E")
SPAWN_ABOVE = 8 << 20  # less text than this is not worth starting processes for


@dataclass
class Encoded:
    """Documents on their way back. The hash of a document decides whether it trains or validates."""

    tokens: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    text_bytes: np.ndarray
    consumed: int


def encode_batch(tokenizer: Tokenizer, batch: Batch) -> Encoded:
    """Each document's tokens with <|eos|> behind them, its hash and its length in bytes."""
    texts = batch_texts(batch)
    dtype = token_dtype(tokenizer.vocab_size)
    eos = np.array([tokenizer.eos_id], dtype)
    parts: list[np.ndarray] = []
    lengths, sizes, hashes = [], [], []
    for text in texts:
        data = to_bytes(text)
        ids = tokenizer.encode_array(data).astype(dtype)
        parts += [ids, eos]
        lengths.append(len(ids) + 1)
        sizes.append(len(data))
        hashes.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big"))
    return Encoded(
        np.concatenate(parts) if parts else np.zeros(0, dtype),
        np.array(lengths, np.int64),
        np.array(hashes, np.uint64),
        np.array(sizes, np.int64),
        batch.consumed,
    )


_worker_encode: Callable[[Batch], object]


def _start_worker(encode: Callable[[Batch], object]) -> None:
    global _worker_encode
    _worker_encode = encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # the main process was killed: nobody waits for us

    threading.Thread(target=follow, daemon=True).start()


def _work(batch: Batch) -> object:
    return _worker_encode(batch)


def worker_count(asked: int, text_bytes: int) -> int:
    """How many processes encode ``text_bytes`` of input; ``asked`` 0 is one per CPU that this process may use."""
    return 1 if text_bytes < SPAWN_ABOVE else asked or len(os.sched_getaffinity(0))


def encode_all(tokenizer: Tokenizer, batches: Iterable[Batch], workers: int) -> Generator[Encoded, None, None]:
    """Encodes batches in ``workers`` processes; results come in the order of the batches."""
    return map_batches(partial(encode_batch, tokenizer), batches, workers)


def map_batches(encode: Callable[[Batch], E], batches: Iterable[Batch], workers: int) -> Generator[E, None, None]:
    """``encode`` of every batch, in ``workers`` processes and in the order of the batches."""
    if workers <= 1:
        for batch in batches:
            yield encode(batch)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (encode,))
    try:
        waiting: deque[Future[E]] = deque()
        for batch in batches:
            waiting.append(pool.submit(cast(Callable[[Batch], E], _work), batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RunFailure(
            "a worker process died (out of memory?); use fewer with --workers, then run it again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
