"""The C library from Python: nothing that a program does breaks it, and errors say what is wrong."""

# ruff: noqa: F811 (fixtures are imported, then named as parameters)

from __future__ import annotations

import gc
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bin_helpers import make_model_dir, small_config
from libnano_helpers import ROOT, TEXT, files, model, python, shared_library  # noqa: F401 (fixtures among them)

from nano_ds.cli import main as nano_ds
from nano_ds.errors import UserError
from nano_ds.libnano import Adapter, Model, Session
from nano_ds.libnano.handle import Handle, _close
from nano_ds.sampling import SamplerParams

# ---- what goes wrong


def test_errors_say_what_is_wrong(model: Model, files: SimpleNamespace, tmp_path: Path) -> None:
    cut = tmp_path / "cut.bin"
    cut.write_bytes(files.model_bin.read_bytes()[:-100])
    other = tmp_path / "other.bin"
    other.write_bytes(b"x" * 5000)
    cases: list[tuple[str, Callable[[], object]]] = [
        (r"cut\.bin: .*cos|cut\.bin: .*sin|cut\.bin: .*ends", lambda: Model.open(cut)),
        (r"<\d+ bytes>: ", lambda: Model.open(cut.read_bytes())),
        (r"other\.bin: ", lambda: Model.open(other)),
        (r"cannot read .*missing\.bin: no such file", lambda: Model.open(tmp_path / "missing.bin")),
        (r"zero byte", lambda: Model.open("a\0b")),
        (r"path or given as bytes, not as int", lambda: Model.open(5)),  # type: ignore[arg-type]
        (r"<0 bytes>: 0 bytes are too few", lambda: Model.open(b"")),
        (r"model\.bin: this is a model", lambda: Adapter.open(files.model_bin)),
        (r"adapter\.bin: this is a LoRA adapter|adapter\.bin: .*adapter", lambda: Model.open(files.adapter_bin)),
        (r"adapter: is an adapter directory.*nano-ds export", lambda: Adapter.open(files.adapter)),
        (r"context of 97 tokens is more than the model's 96", lambda: Session(model, context=97)),
        (r"context: -1 is out of range", lambda: Session(model, context=-1)),
        (r"context: 4294967297 is out of range", lambda: Session(model, context=(1 << 32) + 1)),
        (r"257 threads are too many", lambda: Session(model, threads=257)),
        (r"not in the vocabulary", lambda: model.token_bytes(model.config.vocab_size)),
        (r"token id: -1 is out of range", lambda: model.is_stop(-1)),
    ]
    for pattern, wrong in cases:
        with pytest.raises(UserError, match=pattern) as caught:
            wrong()
        assert "\n" not in str(caught.value)
    with Session(model, threads=1) as session:
        session.feed([1, 2, 3])
        before = session.logits
        for pattern, ids in (
            ("no tokens", []),
            ("do not fit into the context of 96", [5] * 94),
            ("token id: -1 is out of range", [4, -1]),
            ("token id 400 is not in the vocabulary", [4, 400]),
            ("token id: 18446744073709551615|whole numbers", [2**64 - 1]),
            ("whole numbers", [2**70]),
            ("whole numbers, not float", [0.5]),
            ("whole numbers", [[1, 2]]),
            ("whole numbers, not <U", ["a"]),
        ):
            with pytest.raises(UserError, match=pattern):
                session.eval(ids)  # type: ignore[arg-type]
            assert session.length == 3 and (session.logits == before).all()
        with pytest.raises(UserError, match="do not fit"):  # and does not ask for the memory of all those logits
            session.eval(np.broadcast_to(np.uint32(5), 1 << 26), all_logits=True)
        session.reset()
        for early in (session.sample, lambda: session.logits, lambda: next(session.generate(""))):
            with pytest.raises(UserError):
                early()


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, files: SimpleNamespace) -> None:
    make_model_dir(tmp_path / "small", small_config(n_layer=1))
    assert nano_ds(["export", str(tmp_path / "small"), "-o", str(tmp_path / "small.bin")]) == 0
    with Model.open(tmp_path / "small.bin") as small, Session(small, threads=1) as session:
        wanted = session.eval([4, 5, 6])
        with pytest.raises(UserError, match=r"adapter\.bin: .*not for this model: its n_layer is 2, the model's is 1"):
            session.set_adapter(Adapter.open(files.adapter_bin))
        session.reset()
        assert (session.eval([4, 5, 6]) == wanted).all()


def test_closed_things_say_so(files: SimpleNamespace) -> None:
    model = Model.open(files.model_bin)
    session = Session(model, threads=1)
    wanted = session.eval([5, 6])
    model.close()
    model.close()
    assert model.closed
    for use in (lambda: model.tokenize("the"), lambda: Session(model), lambda: model.token_bytes(1)):
        with pytest.raises(ValueError, match="this Model is closed"):
            use()
    session.reset()
    assert (session.eval([5, 6]) == wanted).all()  # the session keeps the weights
    session.close()
    with pytest.raises(ValueError, match="this Session is closed"):
        session.eval([5])


# ---- memory, threads, processes


def test_a_model_in_memory(files: SimpleNamespace, model: Model) -> None:
    data = files.model_bin.read_bytes()
    shifted = b"?" + data
    grown = bytearray(data)
    with Session(model, threads=1) as session:
        wanted = session.eval([5, 6, 7])
    with open(files.model_bin, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for source in (data, memoryview(shifted)[1:], grown, mapped):
            borrowed = Model.open(source)
            session = Session(borrowed, threads=1)
            borrowed.close()
            del borrowed
            gc.collect()
            assert (session.eval([5, 6, 7]) == wanted).all()
            if source is grown:
                with pytest.raises(BufferError):
                    grown.append(0)  # its bytes are in use
            session.close()
            del session
            gc.collect()
    grown.append(0)


def test_sessions_in_threads_say_the_same(model: Model) -> None:
    with Session(model, threads=1) as session:
        wanted = [list(session.generate("the cat", 60, SamplerParams(seed=i))) for i in range(2) if not session.reset()]
    made: dict[int, Any] = {}

    def work(i: int) -> None:
        made[i] = []
        for _ in range(10):
            with Session(model, threads=2) as mine:
                made[i].append(list(mine.generate("the cat", 60, SamplerParams(seed=i))))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(texts == [wanted[i]] * 10 for i, texts in made.items())


def test_two_threads_in_one_session_are_told(model: Model) -> None:
    with Session(model, threads=1) as session:
        raised: list[BaseException] = []

        def intrude() -> None:
            try:
                session.feed([1])
            except RuntimeError as e:
                raised.append(e)

        with session._using():
            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()
        assert len(raised) == 1 and "two threads" in str(raised[0])
        session.feed([1])


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_many_opens_and_closes_keep_the_memory(files: SimpleNamespace) -> None:
    data = files.model_q80_bin.read_bytes()

    def once(i: int) -> None:
        source = data if i % 2 else files.model_bin
        with Model.open(source) as model, Session(model, threads=1 + i % 2) as session:
            session.set_adapter(Adapter.open(files.adapter_bin))
            session.feed([5] * 90)
            model.tokenize(TEXT * 100)
            with pytest.raises(UserError):
                Model.open(data[: 1000 + 10 * i])

    for i in range(30):
        once(i)
    gc.collect()
    before = rss_mb()
    for i in range(200):
        once(i)
    gc.collect()
    assert rss_mb() - before < 4  # one KV cache not freed each time would be 20 MB


def test_a_session_is_closed_before_its_model_in_whatever_order_they_are_dropped() -> None:
    for drop_model_first in (True, False):
        closed: list[int] = []
        model = Handle(1, closed.append)
        session = Handle(2, closed.append, model)
        if drop_model_first:
            del model
            assert closed == []
            del session
        else:
            del session
            assert closed == [2]
            del model
        assert closed == [2, 1]
    closed = []
    model, cycle = Handle(1, closed.append), SimpleNamespace()
    cycle.session, cycle.model, cycle.itself = Handle(2, closed.append, model), model, cycle
    del model, cycle
    gc.collect()
    assert closed == [2, 1]
    _close(closed.append, 3, os.getpid() + 1, [])  # in a forked process
    assert closed == [2, 1]


def test_the_interpreter_may_end_with_everything_open(files: SimpleNamespace) -> None:
    code = """
import sys, threading, time
from nano_ds.libnano import Model, Session
model = Model.open(open(sys.argv[1], "rb").read())
session, other = Session(model, threads=2), Session(model, threads=2)
session.feed([5, 6])
def work():
    while True:
        other.reset()
        other.feed([5] * 90)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("torch" in sys.modules)
"""
    for _ in range(3):
        done = python(code, files.model_bin)
        assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_a_fork_leaves_sessions_behind(files: SimpleNamespace) -> None:
    code = """
import os, sys
from nano_ds.libnano import Model, Session
model = Model.open(sys.argv[1])
session = Session(model, threads=2)
wanted = session.eval([5, 6]).tolist()
child = os.fork()
if child == 0:
    try:
        session.feed([7])
    except RuntimeError as e:
        assert "fork" in str(e)
        session.close()
        with Session(model, threads=2) as mine:
            os._exit(0 if mine.eval([5, 6]).tolist() == wanted else 4)
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
session.feed([7])
"""
    done = python(code, files.model_bin)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
