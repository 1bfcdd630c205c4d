"""Questions and answers become packed rows: the template, what carries loss, what is too long, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sft_helpers import all_items, write_items
from test_instruct import HEAD, PLAIN, TEMPLATES, rendered, vocabulary

from nano_ds.cli import main
from nano_ds.errors import UserError
from nano_ds.prepare.items import find_items, item_batches
from nano_ds.prepare.packing import pack
from nano_ds.prepare.sft import prepare_sft
from nano_ds.shards import Shard, ShardWriter, TokenSet
from nano_ds.tokenizer import Tokenizer
from nano_ds.tokenizer.trie import TrieTokenizer


def make(folder: Path, lines: list[Any], tokenizer: Tokenizer, block_size: int = 64, **more: Any) -> Any:
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return prepare_sft([str(path)], tokenizer, folder / "set", block_size=block_size, force=True, **more)


def test_nanos_template_and_what_carries_loss(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ask, reply, end = (tokenizer.special[t] for t in ("<|instruct_mark|>", "<|response_mark|>", "<|eos|>"))
    chat = [("user", "the cat"), ("assistant", "sat <|eos|>"), ("user", "on"), ("assistant", "a mat")]
    messages = [{"role": role, "content": text} for role, text in chat]
    make(tmp_path, [{"messages": messages}, {"question": "q", "answer": "a", "id": 1}], tokenizer, val_fraction=0)
    encode = tokenizer.encode
    one = [
        ask,
        *encode("the cat"),
        reply,
        *encode("sat <|eos|>"),
        end,
        ask,
        *encode("on"),
        reply,
        *encode("a mat"),
        end,
    ]
    loss = [False] * (2 + len(encode("the cat"))) + [True] * (len(encode("sat <|eos|>")) + 1)
    loss += [False] * (2 + len(encode("on"))) + [True] * (len(encode("a mat")) + 1)
    two = [ask, *encode("q"), reply, *encode("a"), end]
    found = sorted(all_items(tmp_path / "set"), key=len)
    assert len(found) == 2
    assert (one, loss) in found and (two, [False] * 3 + [True] * 2) in found
    assert one.count(end) == 2  # what looks like a token in the text is none


def test_a_system_prompt_stands_before_the_first_question(tokenizer: Tokenizer, tmp_path: Path) -> None:
    messages = [{"role": r, "content": c} for r, c in (("system", "be"), ("user", "q"), ("assistant", "a"))]
    result = make(tmp_path, [{"messages": messages}], tokenizer, val_fraction=0)
    assert "1 items have a system prompt" in result.notes[-1]
    (ids, _), *_ = all_items(tmp_path / "set")
    assert tokenizer.decode(ids[1:]).startswith("be\n\nq")


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_imported_models_own_template(name: str, tmp_path: Path) -> None:
    """The tokens are those that the maker's Jinja program gives; the answers and their ends carry loss."""
    t = vocabulary(TEMPLATES[name].replace('strftime_now("%d %b %Y")', '"26 Jul 2024"'))
    talk = [("user", "hello"), ("assistant", "Hi.\n"), ("user", "\nWhat?"), ("assistant", "So.")]
    for system in ([], [("system", "You are a cat.")]):
        said = [*system, *talk]
        make(tmp_path, [{"messages": [{"role": r, "content": c} for r, c in said]}], t, 400, val_fraction=0)
        ((ids, loss),) = all_items(tmp_path / "set")
        whole = [(r, c.strip() if "trim" in TEMPLATES[name] else c) for r, c in said]
        assert rendered(t, whole)[: len(ids)] == ids
        answers = t.decode([i for i, m in zip(ids, loss, strict=True) if m])
        end = "<|im_end|>" if "im_start" in TEMPLATES[name] else "<|eot_id|>"
        assert answers == "".join(c + end for r, c in whole if r == "assistant")


def test_only_the_last_exchanges_that_fit_are_kept_and_counted(tmp_path: Path) -> None:
    t = vocabulary(HEAD + PLAIN)
    talk = []
    for n in range(4):
        talk += [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}]
    long = {"question": "x" * 300, "answer": "y"}
    fits = {"question": "short", "answer": "yes"}
    result = make(tmp_path, [{"messages": talk}, long, fits], t, 120, val_fraction=0)
    counts = result.manifest["items"]
    assert (counts["items"], counts["shortened"], counts["answers_left_out"], counts["left_out"]) == (3, 1, 2, 1)
    assert counts["longest"] > 300 and "2 of 3 items are longer than 120" in result.notes[0]
    texts = [t.decode(ids) for ids, _ in all_items(tmp_path / "set")]
    kept = next(x for x in texts if "question 3" in x)
    assert (
        "Be kind." in kept and "question 2" in kept and "question 1" not in kept and kept.endswith("answer 3<|im_end|>")
    )
    with pytest.raises(UserError, match=r"none of 1 items fits; 1 of 1 items are longer than 120 .* has \d+ tokens"):
        make(tmp_path, [long], t, 120)


def test_every_item_is_there_once_whatever_the_number_of_workers(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nano_ds.prepare.documents.BATCH_BYTES", 2000)
    monkeypatch.setattr("nano_ds.prepare.encoding.SPAWN_ABOVE", 1)
    path = tmp_path / "items.jsonl"
    items = write_items(path, 300)
    out = [tmp_path / n for n in "ab"]
    how: dict[str, Any] = {"val_fraction": 0.1, "shard_tokens": 4000}
    for folder, workers in zip(out, (1, 2), strict=True):
        prepare_sft([str(path)], tokenizer, folder, block_size=320, workers=workers, **how)
    same = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in out]
    assert same[0] == same[1] and len(same[0]) > 5
    manifest = json.loads((out[0] / "manifest.json").read_text())
    assert sum(manifest["total"][s]["documents"] for s in ("train", "val")) == len(items) == manifest["items"]["items"]
    train = manifest["total"]["train"]
    assert train["padding"] <= 0.05 * train["tokens"]
    found = all_items(out[0])
    texts = [tokenizer.decode(i for i, m in zip(ids, loss, strict=True) if m) for ids, loss in found]
    answers = ["".join(m["content"] + "<|eos|>" for m in i.get("messages", []) if m["role"] == "assistant") or
               i["answer"] + "<|eos|>" for i in items]  # fmt: skip
    assert sorted(texts) == sorted(answers) and texts != answers
    again = prepare_sft([str(path)], tokenizer, out[0], block_size=320, **how)
    assert again.up_to_date
    with pytest.raises(UserError, match="made with other block size;"):
        prepare_sft([str(path)], tokenizer, out[0], block_size=319, **how)


def test_answers_to_one_question_stay_on_one_side(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [{"question": f"q {i % 20}", "answer": f"a {i}"} for i in range(100)]
    make(tmp_path, lines, tokenizer, val_fraction=0.3)
    sides = []
    for split in ("train", "val"):
        shards = TokenSet.open(tmp_path / "set", split).shards
        text = tokenizer.decode(np.concatenate([s.tokens for s in shards]).tolist())
        sides.append({part.split("<|response_mark|>")[0] for part in text.split("<|instruct_mark|>")[1:]})
    assert len(sides[0]) + len(sides[1]) == 20 and sides[1] and not sides[0] & sides[1]


def test_packing() -> None:
    rng = np.random.default_rng(0)
    for lengths, row in (
        (rng.integers(3, 60, 2000), 129),
        (np.minimum(rng.geometric(0.02, 2000) + 2, 257), 257),
        (np.full(10, 8), 8),
        (np.array([5]), 64),
    ):
        rows = pack(lengths, row)
        assert sorted(i for r in rows for i in r) == list(range(len(lengths)))
        assert all(0 < lengths[r].sum() <= row for r in rows)
        assert len(rows) == len(pack(lengths, row)) and rows == pack(lengths, row)
        if len(lengths) > 100:
            assert 1 - lengths.sum() / (len(rows) * row) < 0.05
            assert any(r != sorted(r) for r in rows)
    assert pack(np.zeros(0, np.int64), 9) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question": "x"}', "an object with 'question'; every line must be"),
        ('{"text": "x"}', "an object with 'text'"),
        ("[1]", "[1]; every line"),
        ("{", "not JSON"),
        ('{"question": "x", "answer": " "}', "answer is empty"),
        ('{"question": "x", "answer": 3}', "answer is 3; it must be text"),
        ('{"question": "x", "answer": null}', "answer is missing"),
        ('{"question": "x", "answer": "y", "messages": []}', "an object with 'question', 'answer', 'messages'"),
        ('{"messages": []}', "the roles are none; after at most one system"),
        ('{"messages": "x"}', "messages is no list"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "the roles are user;"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "messages[0] has the role 'tool'"),
        ('{"messages": [{"role": "user"}]}', "messages[0].content is missing"),
        ('{"question": "\xff", "answer": "x"}', "not UTF-8 at byte 14"),
    ],
)
def test_a_bad_line_is_named(line: str, says: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"question": "x", "answer": "y"}\n\n' + line.encode("latin1") + b"\n")
    with pytest.raises(UserError) as e:
        prepare_sft([str(path)], tokenizer, tmp_path / "out", block_size=64)
    assert str(e.value).startswith(f"{path}:3: ") and says in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_inputs_that_are_not_there(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for name, says in (
        ("a.txt", "no .jsonl file"),
        ("none.jsonl", "no such file"),
        ("builtin:x", "there is builtin:p"),
    ):
        with pytest.raises(UserError, match=says):
            find_items([name if name.startswith("builtin") else str(tmp_path / name)])
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no questions and answers in it"):
        prepare_sft([str(tmp_path / "e.jsonl")], tokenizer, tmp_path / "out", block_size=64)
    plain = TrieTokenizer(["a", "<|unknown|>"], [1])
    with pytest.raises(UserError, match=r"no marks of a conversation.*take a vocabulary that"):
        prepare_sft([str(tmp_path / "e.jsonl")], plain, tmp_path / "out", block_size=64)


def test_the_built_in_questions() -> None:
    lines = [line for batch in item_batches(find_items(["builtin:python-qa"])) for line in batch.documents]
    found = {item["question"]: item["answer"] for item in map(json.loads, lines)}
    assert len(found) == len(lines) > 1000
    assert found["What does json.dumps do?"] == "Serialize ``obj`` to a JSON formatted ``str``."


def test_a_packed_shard_is_checked(tmp_path: Path) -> None:
    def write(loss: list[int], lengths: list[int]) -> Path:
        writer = ShardWriter(tmp_path / "s.bin", 300, "ab" * 32, 5)
        for _ in range(2):
            marks = np.isin(np.arange(5), loss)
            writer.add_row(np.arange(5, dtype="<u2"), np.array(lengths), marks, 3, 1)
        writer.close()
        return tmp_path / "s.bin"

    path = write([1, 3], [2, 3])
    shard = Shard(path)
    assert (shard.row, shard.answers, shard.padding, shard.text_bytes) == (5, 4, 2, 6)
    assert shard.starts.tolist() == [0, 2, 5, 7] and shard.loss([1]).tolist() == [[False, True, False, True, False]]
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(UserError, match=r"s\.bin: .*nano-ds prepare"):
            Shard(path)
    with pytest.raises(UserError, match="marks of what carries loss"):
        Shard(write([0, 3], [2, 3]))  # the first token of a document


def test_command_line(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    write_items(tmp_path / "a.jsonl", 60)
    tokenizer.save(tmp_path / "t.json")
    common = ["prepare", "--sft", str(tmp_path / "a.jsonl"), "--tokenizer", str(tmp_path / "t.json")]
    assert main([*common, "--out", str(tmp_path / "set"), "--block-size", "96"]) == 0
    out = capsys.readouterr().out
    assert "of 96 tokens," in out and "template     nano" in out and "of 60" in out
    assert main([*common, "--out", str(tmp_path / "set"), "--block-size", "96"]) == 0
    assert "up to date" in capsys.readouterr().out
    for more, says in (
        (["--part", "1/2", "--out", "x"], "--part: goes with --text"),
        ([], "--sft also needs --out"),
    ):
        assert main([*common, *more]) == 2
        assert says in capsys.readouterr().err
    assert main(["prepare", "--text", "x", "--block-size", "3"]) == 2
    assert "--block-size: goes with --sft" in capsys.readouterr().err
