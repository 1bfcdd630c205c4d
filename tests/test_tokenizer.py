"""The trie tokenizer against a plain trie, its file, its builder, and vocabularies of Nano."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import story

from nano_ds.errors import UserError
from nano_ds.tokenizer import StreamDecoder, load_tokenizer
from nano_ds.tokenizer.build import LONGEST, SPECIAL, build_trie
from nano_ds.tokenizer.trie import TrieTokenizer, byte_token


def reference(tokenizer: TrieTokenizer, text: str, allow_special: bool = False) -> list[int]:
    """The definition: the longest token at each character, else the bytes of the character, else <|unknown|>."""
    usable = {t: i for i, t in enumerate(tokenizer.tokens) if allow_special or t not in tokenizer.special}
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    root: dict[Any, Any] = {}
    for token, id in usable.items():
        node = root
        for char in token:
            node = node.setdefault(char, {})
        node[None] = id
    ids = []
    at = 0
    while at < len(text):
        node, best, end, here = root, None, at + 1, at
        while here < len(text) and text[here] in node:
            node, here = node[text[here]], here + 1
            if None in node:
                best, end = node[None], here
        if best is not None:
            ids.append(best)
        elif tokenizer.has_bytes:
            ids += [usable[byte_token(b)] for b in text[at].encode("utf-8", "surrogateescape")]
        else:
            ids.append(tokenizer.special["<|unknown|>"])
        at = end
    return ids


ALPHABET = [
    *"abcde  \n\t<|>.é",
    "猫",
    "坐",
    "在",
    "😀",
    "👩‍👩‍👧",
    "𠮷",
    "\x00",
    "\x7f",
    "\x80",
    "\udc80",
    "\udcff",
    "\udce7",
    "\ufeff",
]


def random_vocabulary(rng: random.Random, with_bytes: bool) -> TrieTokenizer:
    tokens = [byte_token(b) for b in range(256)] if with_bytes else ["a", "b", " ", "猫"]
    solid = [a for a in ALPHABET if not any("\ud800" <= c <= "\udfff" for c in a)]
    tokens += ["".join(rng.choices(solid, k=rng.randint(1, 6))) for _ in range(200)]
    return TrieTokenizer([*SPECIAL, *dict.fromkeys(tokens)], range(len(SPECIAL)))


@pytest.mark.parametrize("with_bytes", [True, False])
def test_equals_the_plain_trie_on_random_text(with_bytes: bool) -> None:
    rng = random.Random(1)
    for _ in range(30):
        tokenizer = random_vocabulary(rng, with_bytes)
        for _ in range(20):
            text = "".join(rng.choices([*ALPHABET, *SPECIAL], k=rng.randint(0, 60)))
            for allow in (False, True):
                assert tokenizer.encode(text, allow) == reference(tokenizer, text, allow), text
            if with_bytes:
                back = tokenizer.decode_bytes(tokenizer.encode(text))
                assert back == text.encode("utf-8", "surrogateescape")


def test_windows_do_not_show(tokenizer: TrieTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = story(5, 3000) + "x" * 300
    whole = reference(tokenizer, text)
    assert tokenizer.encode(text) == whole
    monkeypatch.setattr("nano_ds.tokenizer.trie.WINDOW", 1)
    assert tokenizer.encode(text) == whole
    assert tokenizer.encode_array("").tolist() == []


def test_random_bytes_survive(tokenizer: TrieTokenizer) -> None:
    data = np.random.default_rng(3).integers(0, 256, 100_000, np.uint8).tobytes()
    ids = tokenizer.encode(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.encode(tokenizer.decode(ids, "surrogateescape")) == ids
    assert tokenizer.decode(tokenizer.encode("half \ud800 pair")) == "half \ufffd pair"


def test_a_users_text_never_becomes_a_special_token(tokenizer: TrieTokenizer) -> None:
    text = "".join(SPECIAL)
    assert not set(tokenizer.encode(text)) & set(tokenizer.special.values())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text, allow_special=True) == list(range(7))
    assert tokenizer.eos_id == 3


def test_stream_decoder_gives_whole_characters(tokenizer: TrieTokenizer) -> None:
    text = "a😀é猫𠮷 end"
    stream = StreamDecoder(tokenizer)
    parts = [stream.feed(i) for i in tokenizer.encode(text)]
    assert "".join(parts) == text and "\ufffd" not in "".join(parts) and stream.finish() == ""
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.feed, tokenizer.encode("😀".encode()[:3]))) == "" and stream.finish() == "\ufffd"
    with pytest.raises(ValueError, match="outside"):
        tokenizer.token_bytes(-1)


def test_file_round_trip(tokenizer: TrieTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = load_tokenizer(path)
    assert again.tokens == tokenizer.tokens and again.special == tokenizer.special
    assert again.fingerprint == tokenizer.fingerprint
    assert path.read_bytes().isascii()
    other = TrieTokenizer([*tokenizer.tokens, "cat sat"], range(7))
    assert other.fingerprint != tokenizer.fingerprint


GOOD = {"format": "nano_ds.trie", "version": 1, "tokens": [*SPECIAL, "a", "b"], "special": list(range(7))}
NANO = {"vocab_size": 3, "stoi": {"<|unknown|>": 0, "a": 1, "b": 2}, "special_tokens": {"<|unknown|>": 0}}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ([], "list is no tokenizer"),
        ({}, "expected a tokenizer.json"),
        ({**GOOD, "format": "other"}, "format 'other'"),
        ({**GOOD, "version": 2}, "version 2"),
        ({**GOOD, "more": 1}, "unknown key 'more'"),
        ({**GOOD, "tokens": "abc"}, "must be lists"),
        ({**GOOD, "tokens": []}, "no tokens"),
        ({**GOOD, "tokens": [*SPECIAL, "a", "a"]}, "tokens 7 and 8 are both 'a'"),
        ({**GOOD, "tokens": [*SPECIAL, ""]}, "token 7 is ''"),
        ({**GOOD, "tokens": [*SPECIAL, 5]}, "token 7 is 5"),
        ({**GOOD, "tokens": [*SPECIAL, "a\ud83d"]}, "half a character"),
        ({**GOOD, "tokens": [*SPECIAL, "\udc90"]}, "1 of the 128 byte tokens"),
        ({**GOOD, "special": [0, 99]}, "special id 99"),
        ({**GOOD, "special": [0, True]}, "special id True"),
        ({**GOOD, "special": [1, 1]}, "listed twice"),
        ({**GOOD, "special": [1, 7]}, "bytes are ordinary"),
        ({**GOOD, "special": [0]}, "lacks some of the 256 byte tokens"),
        ({**NANO, "vocab_size": 4}, "vocab_size 4, but 3"),
        ({**NANO, "stoi": {"<|unknown|>": 0, "a": 1, "b": 1}}, "belongs to both 'a' and 'b'"),
        ({**NANO, "stoi": {"<|unknown|>": 0, "a": 1, "b": 3}}, "ids have no gaps"),
        ({**NANO, "stoi": 5}, "must be mappings"),
        ({**NANO, "itos": ["a"]}, "contradict"),
        ({**NANO, "special_tokens": {"<|unknown|>": 2}}, "special token"),
    ],
)
def test_bad_files_are_refused(tree: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError) as e:
        load_tokenizer(path)
    assert says in str(e.value) and "t.json" in str(e.value)


def test_good_small_files_load(tmp_path: Path) -> None:
    for tree, unknown in ((GOOD, 1), (NANO, 0)):
        path = tmp_path / "t.json"
        path.write_text(json.dumps(tree))
        tokenizer = load_tokenizer(path)
        assert unknown in tokenizer.encode("aéb") and len(tokenizer.encode("aéb")) == 3


def test_built_vocabulary(tokenizer: TrieTokenizer) -> None:
    assert tokenizer.tokens[:7] == list(SPECIAL)
    assert tokenizer.tokens[7:263] == [byte_token(b) for b in range(256)]
    assert len(tokenizer.tokens) == 400 and "猫" in tokenizer.tokens
    assert any("垫子" in t for t in tokenizer.tokens) and any(" cat" in t for t in tokenizer.tokens)
    known = set(tokenizer.tokens)
    for word in tokenizer.tokens[263:]:
        assert len(word) <= LONGEST and all(c in known for c in word)
    again = build_trie([story(s, 200) for s in range(50)], 400)
    assert again.fingerprint == tokenizer.fingerprint


def test_builder_says_what_is_wrong() -> None:
    with pytest.raises(UserError, match="vocab-size: 262"):
        build_trie(["text"], 262)
    with pytest.raises(UserError, match="no text"):
        build_trie([], 300)
    assert build_trie(["ab"], 300).vocab_size == 263


def test_nano_golden() -> None:
    folder = os.environ.get("NANO_GOLDEN")
    if not folder:
        pytest.skip("NANO_GOLDEN names no folder of golden files")
    tokenizer = load_tokenizer(Path(folder) / "tokenizer_4096.json")
    assert isinstance(tokenizer, TrieTokenizer) and not tokenizer.has_bytes
    for case in json.loads((Path(folder) / "tokenizer_cases_4096.json").read_text()):
        assert tokenizer.encode(case["text"], allow_special=True) == case["ids"]
