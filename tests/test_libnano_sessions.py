"""Sessions of the C library that are rewound, guess ahead, and are kept in files."""

# ruff: noqa: F811 (fixtures are imported, then named as parameters)

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from libnano_helpers import GREEDY, TEXT, files, model, python, shared_library  # noqa: F401 (fixtures among them)

from nano_ds.errors import UserError
from nano_ds.libnano import Adapter, Model, Session
from nano_ds.sampling import SamplerParams

REPEATING = SamplerParams(temperature=0.6, repetition_penalty=0.7, seed=8)


def plain(session: Session, n: int) -> list[int]:
    """The next tokens without guesses, one by one; a stop token is the last."""
    out: list[int] = []
    while len(out) < n:
        out.append(session.sample())
        if session.model.is_stop(out[-1]):
            break
        session.feed(out[-1:])
    return out


@pytest.mark.parametrize("params", [GREEDY, REPEATING, SamplerParams(seed=3)])
@pytest.mark.parametrize("draft", ["auto", "off", "always"])
def test_drafts_change_no_text(draft: str, params: SamplerParams, files: SimpleNamespace) -> None:
    with Model.open(files.model_q80_bin) as model, Session(model, draft="off", threads=1) as session:
        session.set_sampler(params)
        session.feed(model.tokenize(TEXT))
        wanted, logits, sampler = plain(session, 40), session.logits, session.sampler
        with Session(model, draft=draft, threads=1) as other:
            other.set_sampler(params)
            other.feed(model.tokenize(TEXT))
            assert list(other.stream(40)) == wanted
            assert (other.logits == logits).all() and other.sampler == sampler and other.tokens == session.tokens
            stats = other.stats
            assert stats.generated == other.length - len(model.tokenize(TEXT)) == stats.evals + stats.accepted
            assert (stats.drafted == 0) if draft == "off" else stats.seconds > 0
            if draft == "always" and params is REPEATING:
                assert stats.drafted > stats.accepted > 0, wanted


def test_a_generator_that_is_left_takes_back_what_nobody_saw(model: Model) -> None:
    with Session(model, threads=1) as session:
        session.set_sampler(REPEATING)
        session.feed(model.tokenize(TEXT))
        wanted = plain(session, 40)
    for n in range(1, 12):
        with Session(model, draft="always", threads=1) as session:
            session.set_sampler(REPEATING)
            session.feed(model.tokenize(TEXT))
            length = session.length
            seen = [p.id for p in islice(session.generate([]), n)]
            assert session.tokens[length:] == seen == wanted[:n]
            assert seen + list(session.stream(40 - n)) == wanted


def test_rewinding(model: Model) -> None:
    ids = model.tokenize(TEXT)
    with Session(model, threads=1) as session:
        logits = session.eval(ids, all_logits=True)
        session.rewind(len(ids))
        assert (session.logits == logits[-1]).all()
        session.rewind(4)
        assert session.tokens == ids[:4]
        with pytest.raises(UserError, match="no logits"):
            _ = session.logits
        session.set_sampler(GREEDY)
        assert session.sample() == logits[3].argmax() and (session.logits == logits[3]).all()
        assert session.keep([*ids[:3], 7, 8]) == 3 == session.length
        assert (session.eval(ids[3:]) == logits[-1]).all()
        assert session.keep([]) == 0


def test_a_session_goes_on_in_another_process(model: Model, files: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with Session(model, threads=1) as session:
        wanted = [p.id for p in session.generate(TEXT, 40, REPEATING)]
    with Session(model, threads=1) as session:
        made = [p.id for p in session.generate(TEXT, 17, REPEATING)]
        session.save(path)
    code = """
import sys
from nano_ds.libnano import Model, Session
with Model.open(sys.argv[1]) as model, Session(model) as session:
    session.load(sys.argv[2])
    print([p.id for p in session.generate([], 23)])
"""
    done = python(code, files.model_bin, path)
    assert made + json.loads(done.stdout.replace("None", "null")) == wanted
    assert [p.name for p in tmp_path.iterdir()] == ["a.session"]

    whole = path.read_bytes()
    with Session(model, threads=1) as session:
        session.load(path)
        length, tokens = session.length, session.tokens
        for damaged, message in (
            (b"", "empty"),
            (whole[:-9], "cut or damaged"),
            (whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], "cut or damaged"),
            (files.model_bin.read_bytes(), "not a session file"),
        ):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=message):
                session.load(path)
            assert session.tokens == tokens
        path.write_bytes(whole)
        adapter = Adapter.open(files.adapter_bin)
        session.set_adapter(adapter)
        with pytest.raises(UserError, match="without an adapter"):
            session.load(path)
        session.feed([5])
        with pytest.raises(UserError, match="different adapters"):
            session.save(path)
    with Session(model, context=length - 1) as session, pytest.raises(UserError, match="has room for"):
        session.load(path)
    with Session(model, cache="f16") as session, pytest.raises(UserError, match="keys and values are f32"):
        session.load(path)
    with Model.open(files.model_q80_bin) as other, Session(other, cache="f32") as session:
        with pytest.raises(UserError, match="another model"):
            session.load(path)
        with pytest.raises(UserError, match="zero byte"):
            session.save("a\0b")
        with pytest.raises(UserError, match="no such folder"):
            session.save(tmp_path / "missing" / "a")
    with pytest.raises(UserError, match="draft 'maybe': must be one of auto, off, always"):
        Session(model, draft="maybe")
    assert path.read_bytes() == whole
