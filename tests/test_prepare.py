"""prepare: documents, splits, workers, errors, interruptions."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import story

from nano_ds import cli, corpus, prepare
from nano_ds.errors import UserError
from nano_ds.prepare import DOCUMENT_BYTES, batch_texts, find_sources, prepare_set, read_batches
from nano_ds.shards import TokenSet
from nano_ds.tokenizer.trie import TrieTokenizer


def documents(folder: Path, split: str, tokenizer: TrieTokenizer) -> list[str]:
    found = []
    for shard in TokenSet.open(folder, split, tokenizer.fingerprint).shards:
        for ids in np.split(shard.tokens, shard.starts[1:].astype(np.int64)):
            assert ids[-1] == tokenizer.eos_id
            found.append(tokenizer.decode(ids[:-1].tolist()))
    return found


def texts(*paths: Path) -> list[str]:
    return [t for b in read_batches(find_sources([str(p) for p in paths])) for t in batch_texts(b)]


def test_every_document_once_and_duplicates_together(small_set: Path, text_dir: Path, tokenizer: TrieTokenizer) -> None:
    train, val = (documents(small_set, split, tokenizer) for split in ("train", "val"))
    assert sorted(train + val) == sorted(p.read_text() for p in text_dir.glob("[!.]*.txt"))
    assert train and val and not set(train) & set(val)


def test_same_bytes_for_any_number_of_workers(
    text_dir: Path, tokenizer: TrieTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare.encoding, "SPAWN_ABOVE", 0)
    monkeypatch.setattr(prepare.documents, "BATCH_BYTES", 1000)
    for workers in (1, 2, 3):
        prepare_set([str(text_dir)], tokenizer, tmp_path / str(workers), val_fraction=0.1, workers=workers)
    files = [{p.name: p.read_bytes() for p in (tmp_path / w).iterdir()} for w in "123"]
    assert files[0] == files[1] == files[2] and "val-00000.bin" in files[0]


def test_the_split_does_not_depend_on_order(text_dir: Path, tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    names = sorted(str(p) for p in text_dir.glob("[!.]*.txt"))
    prepare_set(names[::-1], tokenizer, tmp_path / "a", val_fraction=0.2)
    prepare_set(names[:40], tokenizer, tmp_path / "b", val_fraction=0.2)
    a, b = (set(documents(tmp_path / n, "val", tokenizer)) for n in "ab")
    assert b < a and not a & set(documents(tmp_path / "b", "train", tokenizer))


def test_long_texts_are_cut_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    paragraphs = [story(i, 400) for i in range(100)]
    path.write_text("\ufeff" + "\n\n".join(paragraphs) + "\n")
    parts = texts(path)
    assert len(parts) > 2 and max(len(p.encode()) for p in parts) <= DOCUMENT_BYTES
    assert [q for p in parts for q in p.split("\n\n")] == paragraphs
    path.write_text("猫" * 100_000)
    assert "".join(texts(path)) == "猫" * 100_000 and len(texts(path)) == 5
    path.write_text("short\n\nfile\n")
    assert texts(path) == ["short\n\nfile"]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\\n"}\n\n{"text": "two", "id": 3}\n{"text": " "}\n')
    assert texts(path) == ["one\n", "two"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"fine\n" * 20000 + b"caf\xe9 x", "a.txt: not UTF-8 at byte 100003 (0xe9)"),
        ("a.txt", b"ab\0c", "a.txt: binary (a NUL at byte 2)"),
        ("a.txt", b"", "no text in it"),
        ("a.txt", b" \n\n \n", "no text in it"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n{"txt": 1}\n', "a.jsonl:3: an object with 'txt'"),
        ("a.jsonl", b'["x"]\n', "a.jsonl:1: ['x']"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: not UTF-8"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1: not JSON"),
    ],
)
def test_bad_input(name: str, content: bytes, says: str, tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as e:
        prepare_set([str(tmp_path / name)], tokenizer, tmp_path / "out")
    assert says in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_bad_names(tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    for inputs, says in [([], "no text"), (["none.txt"], "no such file"), (["builtin:x"], "no such built-in")]:
        with pytest.raises(UserError, match=says):
            prepare_set(inputs, tokenizer, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.txt"):
        prepare_set([str(tmp_path / "empty")], tokenizer, tmp_path / "out")


def test_validation_is_never_empty_by_chance(tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def split(count: int, fraction: float) -> tuple[int, int, str]:
        path.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(count)))
        done = prepare_set([str(path)], tokenizer, tmp_path / "out", val_fraction=fraction, force=True)
        total = done.manifest["total"]
        return total["train"]["documents"], total["val"]["documents"], " ".join(done.notes)

    assert split(1, 0.02) == (1, 0, "there is only one document, so nothing is left for validation")
    assert split(3, 1e-9)[:2] == (2, 1) and "moved there" in split(3, 1e-9)[2]
    assert split(3, 0.0) == (3, 0, "")
    for count in range(1, 9):
        train, val, _ = split(count, 0.5)
        assert train >= 1 and train + val == count and (val or count == 1)


def test_up_to_date_or_refused(text_dir: Path, tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    out = tmp_path / "set"
    text = tmp_path / "a.txt"
    text.write_text("one")
    assert not prepare_set([str(text)], tokenizer, out).up_to_date
    assert prepare_set([str(text)], tokenizer, out).up_to_date
    with pytest.raises(UserError, match=r"other val_fraction; --force"):
        prepare_set([str(text)], tokenizer, out, val_fraction=0.3)
    other = TrieTokenizer([*tokenizer.tokens, "one!"], range(7))
    with pytest.raises(UserError, match="other tokenizer;"):
        prepare_set([str(text)], other, out)
    text.write_text("one two")
    with pytest.raises(UserError, match="other inputs;"):
        prepare_set([str(text)], tokenizer, out)
    assert not prepare_set([str(text)], tokenizer, out, force=True).up_to_date
    assert documents(out, "train", tokenizer) == ["one two"]
    with pytest.raises(UserError, match="not a set of token shards"):
        prepare_set([str(text)], tokenizer, text_dir, force=True)


def start(args: list[str]) -> subprocess.Popen[str]:
    code = (
        "import sys, nano_ds.prepare.encoding as p, nano_ds.cli as c; p.SPAWN_ABOVE = 0; sys.exit(c.main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # a shell starts what runs in its background with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_nothing(sign: signal.Signals, tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    big = tmp_path / "big.txt"
    stories = [story(i, 300) for i in range(300)]
    big.write_text("\n\n".join(stories * 300))  # long enough that a busy machine cannot finish it unseen
    tokenizer.save(tmp_path / "t.json")
    args = ["prepare", "--text", str(big), "--tokenizer", str(tmp_path / "t.json"), "--out", str(tmp_path / "set")]
    process = start([*args, "--workers", "2"])
    deadline = time.monotonic() + 30
    while (
        not any(p.stat().st_size > 100_000 for p in tmp_path.glob(".set.*.tmp/train*")) and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    assert process.poll() is None, process.communicate()
    children = workers_of(process.pid)
    assert children
    process.send_signal(sign)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=30)
    assert not (tmp_path / "set").exists()
    if sign == signal.SIGINT:
        assert process.returncode == 130 and err.endswith("nano-ds prepare: stopped\n") and "Traceback" not in err
        assert not list(tmp_path.glob(".set*"))
    deadline = time.monotonic() + 10
    while any(alive(c) for c in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(c) for c in children), "workers outlived a killed run"
    big.write_text("small again")
    prepare_set([str(big)], tokenizer, tmp_path / "set")
    assert not list(tmp_path.glob(".set*")), "stale folders are cleared"


def workers_of(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_second_run_waits_its_turn(tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    import fcntl

    with open(tmp_path / ".set.lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another `nano-ds prepare`"):
            prepare_set(["builtin:python-docs"], tokenizer, tmp_path / "set")


def test_a_full_disk_is_one_line_and_leaves_nothing(
    text_dir: Path,
    tokenizer: TrieTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "x.bin")

    monkeypatch.setattr("nano_ds.shards.ShardWriter._write", full)
    tokenizer.save(tmp_path / "t.json")
    out = tmp_path / "out" / "set"
    assert (
        cli.main(["prepare", "--text", str(text_dir), "--tokenizer", str(tmp_path / "t.json"), "--out", str(out)]) == 1
    )
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert not list(out.parent.iterdir())


def test_recipe_builds_vocabulary_and_sets(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(
        "data:\n  tokenizer: d/tokenizer.json\n  tokenizer_vocab_size: 300\n"
        f"  sets:\n  - dir: d/a\n    text: [{text_dir}]\n"
    )
    assert cli.main(["prepare", "-c", "r.yaml", "data.val_fraction=0.2"]) == 0
    out = capsys.readouterr().out
    assert "vocabulary   300 tokens" in out and "bytes per token" in out and "next: nano-ds train -c r.yaml" in out
    assert cli.main(["prepare", "-c", "r.yaml", "data.val_fraction=0.2"]) == 0
    assert "d/a: up to date" in capsys.readouterr().out
    assert cli.main(["prepare", "-c", "r.yaml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["tokenizer", "show", "d/tokenizer.json", "the cat"]) == 0
    assert cli.main(["tokenizer", "show", "d/tokenizer.json"]) == 0
    assert "all 256" in capsys.readouterr().out
    assert cli.main(["tokenizer", "trie", "--text", str(text_dir), "-o", "d/tokenizer.json"]) == 2
    for wrong in (
        ["prepare"],
        ["prepare", "--text", "x"],
        ["prepare", "--text", "x", "--tokenizer", "none.json", "--out", "o"],
    ):
        assert cli.main(wrong) == 2


def test_builtin_corpus() -> None:
    found = list(corpus.python_docs())
    assert len(found) == len(set(found)) > 1000 and sum(map(len, found)) > 1_000_000
    assert found[:600] == list(itertools.islice(corpus.python_docs(), 600))
