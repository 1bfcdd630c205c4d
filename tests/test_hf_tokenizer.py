"""Tokenizers of Hugging Face: read, written, read again; and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from conftest import story
from real_vocabularies import qwen, smollm
from unicode_text import NASTY

from nano_ds.errors import UserError
from nano_ds.interop.hf_tokenizer import read_hf_tokenizer, write_hf_tokenizer
from nano_ds.tokenizer import BPETokenizer
from nano_ds.tokenizer.bpe_build import build_bpe
from nano_ds.tokenizer.byte_chars import CHARS, read, spell
from nano_ds.tokenizer.pre import PATTERNS


@pytest.fixture(scope="module")
def learned() -> BPETokenizer:
    return build_bpe([*(story(s, 200) for s in range(20)), *NASTY], 500, "qwen2")


def test_bytes_are_spelled_as_gpt2_spells_them() -> None:
    theirs = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    assert set(CHARS) == set(theirs) and len(CHARS) == 256
    assert spell(b" a\n\xe7") == "\u0120a\u010a\u00e7" and read("\u0120a\u010a\u00e7") == b" a\n\xe7"
    assert read(spell(bytes(range(256)))) == bytes(range(256)) and read("猫") is None


@pytest.mark.parametrize("pre", list(PATTERNS))
@pytest.mark.parametrize("normalize", [None, "nfc"])
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_written_is_read_again(
    pre: str, normalize: str | None, whole: bool, learned: BPETokenizer, tmp_path: Path
) -> None:
    t = BPETokenizer(
        [*learned.tokens, "<think>", "<|end|>"],
        learned.merges,
        pre,
        normalize=normalize,
        ignore_merges=whole,
        special=[*learned.special.values(), 501],
        added=[500],
        eos=3,
        bos=2,
        add_bos=whole,
        chat_template="{{ 'x' }}" if whole else None,
    )
    write_hf_tokenizer(t, tmp_path)
    again = read_hf_tokenizer(tmp_path)
    assert again.fingerprint == t.fingerprint and again.chat_template == t.chat_template
    assert again.tokens == t.tokens and again.bos_ids == t.bos_ids
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == t.vocab_size
    for text in [*NASTY, "a<think>b<|end|>c<|eos|>"]:
        assert theirs.encode(text).ids == t.bos_ids + t.encode(text, allow_special=True)
        assert theirs.decode(t.encode(text), skip_special_tokens=False) == t.decode(t.encode(text))


def test_transformers_reads_it(learned: BPETokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    write_hf_tokenizer(learned, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (3, 2, 0)
    for text in NASTY:
        assert theirs(text)["input_ids"] == learned.encode(text, allow_special=True)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "tokenizer.json") -> None:
    file = folder / name
    tree = json.loads(file.read_text()) if file.exists() else {}
    change(tree)
    file.write_text(json.dumps(tree))


def put(*path: Any) -> Callable[[dict[str, Any]], Any]:
    """Sets the value that the last argument is, at the keys before it."""

    def change(tree: Any) -> None:
        for key in path[:-2]:
            tree = tree[key]
        tree[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    "change, said",
    [
        (put("model", "type", "Unigram"), "a Unigram model"),
        (put("model", "type", "WordPiece"), "a WordPiece model"),
        (put("model", "byte_fallback", True), "SentencePiece"),
        (put("model", "dropout", 0.1), "model.dropout is 0.1"),
        (put("model", "end_of_word_suffix", "</w>"), "model.end_of_word_suffix is '</w>'"),
        (put("decoder", {"type": "Metaspace"}), "decoder 'Metaspace'"),
        (put("decoder", None), "decoder None"),
        (put("normalizer", {"type": "NFKC"}), "normaliser NFKC"),
        (put("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}), "Lowercase"),
        (put("pre_tokenizer", None), "pre-tokeniser none"),
        (put("pre_tokenizer", {"type": "Whitespace"}), "pre-tokeniser Whitespace"),
        (put("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", "x+"), "pre-tokeniser 'x+'"),
        (put("pre_tokenizer", "pretokenizers", 0, "behavior", "Removed"), "Split + ByteLevel"),
        (put("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", True), "add_prefix_space"),
        (put("added_tokens", 0, "lstrip", True), "has lstrip"),
        (put("added_tokens", 0, "single_word", True), "has single_word"),
        (put("added_tokens", 0, "id", 5000), "has ids 0 and 5000"),
        (put("added_tokens", 0, "content", "x"), "id 0 is"),
        (put("model", "vocab", "new", 9), "share id 9"),
        (put("model", "vocab", "new", 900), "no token has id 500"),
        (put("model", "vocab", "new", -1), "has id -1"),
        (put("model", "merges", 0, "a"), "merge 0 is 'a'"),
        (put("model", "merges", 0, ["a", "nothing"]), "merge 0 is"),
        (put("model", "vocab", []), "model.vocab must map"),
        (put("model", []), "has no model"),
        (put("post_processor", {"type": "BertProcessing"}), "post_processor BertProcessing"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(
    change: Callable[[dict[str, Any]], Any], said: str, learned: BPETokenizer, tmp_path: Path
) -> None:
    write_hf_tokenizer(learned, tmp_path)
    edit(tmp_path, change)
    with pytest.raises(UserError, match=re.escape(said)) as e:
        read_hf_tokenizer(tmp_path)
    assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


def test_a_missing_byte_that_becomes_unknown_is_refused(learned: BPETokenizer, tmp_path: Path) -> None:
    write_hf_tokenizer(learned, tmp_path)
    edit(tmp_path, put("model", "unk_token", "<|unknown|>"))
    assert read_hf_tokenizer(tmp_path).fingerprint == learned.fingerprint  # never used: all bytes are there
    edit(tmp_path, lambda tree: tree["model"]["vocab"].update({"<gap>": tree["model"]["vocab"].pop(spell(b"\xff"))}))
    with pytest.raises(UserError, match="lacks 1 of the 256 bytes"):
        read_hf_tokenizer(tmp_path)
    edit(tmp_path, put("model", "unk_token", None))
    assert read_hf_tokenizer(tmp_path).missing_bytes == b"\xff"


def test_added_tokens_searched_in_normalised_text_are_refused_where_it_matters(
    learned: BPETokenizer, tmp_path: Path
) -> None:
    write_hf_tokenizer(learned, tmp_path)
    edit(tmp_path, put("added_tokens", 0, "normalized", True))
    assert read_hf_tokenizer(tmp_path).fingerprint == learned.fingerprint
    mark = {"id": 500, "content": "|><", "normalized": True, "special": False}
    edit(tmp_path, lambda tree: tree["added_tokens"].append(mark))
    with pytest.raises(UserError, match="overlap"):
        read_hf_tokenizer(tmp_path)
    write_hf_tokenizer(learned, tmp_path)
    edit(tmp_path, put("normalizer", {"type": "NFC"}))
    edit(tmp_path, put("added_tokens", 0, "normalized", True))
    with pytest.raises(UserError, match="searched in normalised text"):
        read_hf_tokenizer(tmp_path)


def test_the_files_beside_it(learned: BPETokenizer, tmp_path: Path) -> None:
    write_hf_tokenizer(learned, tmp_path)
    edit(tmp_path, lambda tree: tree.update(eos_token={"content": "<|bos|>"}, bos_token=None), "tokenizer_config.json")
    edit(tmp_path, lambda tree: tree.update(eos_token_id=[0, 4, 10**6]), "generation_config.json")
    edit(tmp_path, lambda tree: tree.update(bos_token="<|unknown|>"), "special_tokens_map.json")
    edit(tmp_path, put("chat_template", [{"name": "default", "template": "D"}, {"name": "x"}]), "tokenizer_config.json")
    t = read_hf_tokenizer(tmp_path)
    assert (t.eos, t.bos, t.stop, t.chat_template, t.bos_ids) == (2, 1, [0, 4], "D", [])
    (tmp_path / "chat_template.jinja").write_text("J")
    more = {"500": {"content": "<new>", "special": False}}
    edit(tmp_path, put("added_tokens_decoder", more), "tokenizer_config.json")
    t = read_hf_tokenizer(tmp_path)
    assert t.chat_template == "J" and t.encode("a<new>")[-1] == 500
    edit(tmp_path, put("eos_token", "nothing"), "tokenizer_config.json")
    with pytest.raises(UserError, match="eos_token 'nothing' is no token"):
        read_hf_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="holds a list"):
        read_hf_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_hf_tokenizer(tmp_path / "nowhere")


def test_two_tokens_of_the_same_bytes_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokens 0 and 1 are both 'a'"):
        write_hf_tokenizer(BPETokenizer(["a", "a"], [], "gpt-2"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_llama3_begins_every_text_with_its_bos(learned: BPETokenizer, tmp_path: Path) -> None:
    write_hf_tokenizer(learned, tmp_path)
    first = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [2], "tokens": ["<|bos|>"]}},
    }
    edit(tmp_path, put("post_processor", {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}))
    assert read_hf_tokenizer(tmp_path).bos_ids == [2]
    edit(tmp_path, lambda tree: tree["post_processor"]["processors"][1]["single"].append(first))
    with pytest.raises(UserError, match="does more than put one token before the text"):
        read_hf_tokenizer(tmp_path)


@pytest.mark.parametrize("which", [smollm, qwen], ids=["smollm", "qwen"])
def test_real_vocabularies_go_round(which: Any, tmp_path: Path) -> None:
    ours, _ = which()
    write_hf_tokenizer(ours, tmp_path)
    again = read_hf_tokenizer(tmp_path)
    assert again.fingerprint == ours.fingerprint and again.chat_template == ours.chat_template
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in NASTY:
        assert theirs.encode(text).ids == ours.encode(text, allow_special=True)
