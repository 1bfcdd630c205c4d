"""Byte-level BPE against its definition and against the `tokenizers` library; its file; learning; streams."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import re
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from conftest import story
from real_vocabularies import lines, qwen, smollm
from unicode_text import NASTY, assigned, random_text

from nano_ds.errors import UserError
from nano_ds.interop.hf_tokenizer import write_hf_tokenizer
from nano_ds.prepare import prepare_set
from nano_ds.tokenizer import BPETokenizer, StreamDecoder, load_tokenizer
from nano_ds.tokenizer.bpe_build import build_bpe
from nano_ds.tokenizer.build import SPECIAL
from nano_ds.tokenizer.byte_chars import spell
from nano_ds.tokenizer.merges import NEVER, _by_length, _by_simulation, merge, reachable
from nano_ds.tokenizer.nfc import nfc
from nano_ds.tokenizer.pre import PATTERNS, cut
from nano_ds.tokenizer.trie import byte_token
from nano_ds.tokenizer.unassigned import RUNS, VERSION


def texts() -> list[str]:
    rng = random.Random(7)
    return [*(story(s, 200) for s in range(30)), *(random_text(rng) for _ in range(300)), *NASTY]


@pytest.fixture(scope="module", params=list(PATTERNS))
def learned(request: pytest.FixtureRequest) -> BPETokenizer:
    return build_bpe(texts(), 700, request.param)


def peer(tokenizer: BPETokenizer, folder: Path) -> tokenizers.Tokenizer:
    """The same tokenizer in the `tokenizers` library."""
    write_hf_tokenizer(tokenizer, folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def same(tokenizer: BPETokenizer, theirs: tokenizers.Tokenizer, samples: list[str]) -> None:
    """The same ids, with special tokens in the text and without.

    The NFC of `tokenizers` does not know 98 combining marks that Unicode has assigned since its version 10; text that
    it normalises otherwise than `unicodedata` is left out (docs/tokenizers.md).
    """
    if tokenizer.normalize:
        nfc = tokenizers.normalizers.NFC()
        every, samples = samples, [t for t in samples if nfc.normalize_str(t) == unicodedata.normalize("NFC", t)]
        assert len(samples) > 0.98 * len(every)
    for allow in (True, False):
        theirs.encode_special_tokens = not allow
        for text, wanted in zip(samples, theirs.encode_batch(samples, add_special_tokens=False), strict=True):
            assert tokenizer.encode(text, allow) == wanted.ids, (allow, text)


def by_definition(tokenizer: BPETokenizer, text: bytes) -> list[int]:
    """Pieces, bytes, merges: for vocabularies with all bytes, of text without added tokens."""
    single = {t: i for i, t in enumerate(tokenizer.tokens)}
    ids = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if i not in tokenizer.special.values()}
    table = {
        (a, b): (k, ids[tokenizer.token_bytes(a) + tokenizer.token_bytes(b)])
        for k, (a, b) in enumerate(tokenizer.merges.tolist())
    }
    out: list[int] = []
    for piece in cut(tokenizer.pre, text.decode("utf-8", "surrogateescape")):
        out += merge([single[byte_token(b)] for b in piece.encode("utf-8", "surrogateescape")], table)[0]
    return out


def test_same_ids_as_the_tokenizers_library(learned: BPETokenizer, tmp_path: Path) -> None:
    rng = random.Random(1)
    samples = [*NASTY, *(random_text(rng, 40) for _ in range(1500)), *(story(s, 60) for s in range(20))]
    same(learned, peer(learned, tmp_path), samples)
    for text in samples:
        assert learned.decode(learned.encode(text)) == text


def test_a_piece_has_digits_as_the_name_says() -> None:
    made = {name: cut(name, "ab  12345\n\n  x's 'S") for name in PATTERNS}
    assert made["gpt-2"] == ["ab", " ", " 12345", "\n\n ", " x", "'s", " '", "S"]
    assert made["smollm"] == ["ab", "  ", *"12345", "\n\n ", " x", "'s", " '", "S"]
    assert made["llama-bpe"] == ["ab", " ", " ", "123", "45", "\n\n", " ", " x", "'s", " '", "S"]
    assert made["qwen2"] == ["ab", " ", " ", *"12345", "\n\n", " ", " x", "'s", " '", "S"]


def cuts_of(pre: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    cuts = tokenizers.pre_tokenizers
    if pre in ("gpt-2", "smollm"):
        byte_level = cuts.ByteLevel(add_prefix_space=False)
        return byte_level if pre == "gpt-2" else cuts.Sequence([cuts.Digits(individual_digits=True), byte_level])
    return cuts.Split(tokenizers.Regex(PATTERNS[pre]), "isolated")


# Numbers of Unicode 17, which `tokenizers` 0.23.3 knows as such in `Digits` alone (SmolLM), and nowhere else.
NEWER_DIGITS = {*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)}


@pytest.mark.parametrize("step", [199, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("pre", list(PATTERNS))
def test_every_code_point_is_of_the_class_that_tokenizers_has(pre: str, step: int) -> None:
    theirs = cuts_of(pre)
    edges = {int(end, 16) + d for run in RUNS.split() for end in run.split("-") for d in (-1, 0, 1)}
    points = {*range(0, 0x34000, step), *range(0x34000, 0x110000, 199), *edges}  # nothing but blanks from 0x34000
    wrong = []
    for c in sorted(points - {*range(0xD800, 0xE000), 0x110000} - (NEWER_DIGITS if pre == "smollm" else set())):
        text = f"a{chr(c)}b 1{chr(c)}2 {chr(c)}{chr(c)}! '{chr(c)}"
        ends = [end for _, (_, end) in theirs.pre_tokenize_str(text)]
        if ends != list(itertools.accumulate(map(len, cut(pre, text)))):
            wrong.append(hex(c))
    assert not wrong


def test_the_table_of_unassigned_characters() -> None:
    spans = [[int(end, 16) for end in run.split("-")] for run in RUNS.split()]
    listed = {c for span in spans for c in range(span[0], span[-1] + 1)}
    here = {c for c in range(0x110000) if unicodedata.category(chr(c)) == "Cn"}
    mine, version = ([int(n) for n in v.split(".")] for v in (unicodedata.unidata_version, VERSION))
    assert listed == here if mine == version else listed < here if mine < version else here < listed
    assert len(listed) == 819_467 + 66  # reserved code points and noncharacters, as Unicode 16.0.0 counts them


def test_every_byte_string_comes_back(learned: BPETokenizer) -> None:
    rng = random.Random(2)
    broken = [
        b"\xe4\xb8",
        b" \xe4\xb8 x",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\xafab",
        b"ab\xff1 \xfe",
        b"\x80",
    ]
    for _ in range(600):
        data = bytearray(random_text(rng).encode())
        for _ in range(rng.randint(0, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        broken.append(bytes(data))
    for data in broken:
        ids = learned.encode(data)
        assert learned.decode_bytes(ids) == data
        assert ids == by_definition(learned, data)
        assert learned.encode(data.decode("utf-8", "surrogateescape")) == ids
    assert learned.encode("a\ud800b") == learned.encode("a\ufffdb")  # half a character is no text


def random_merges(rng: random.Random, count: int, shuffle: bool) -> tuple[list[bytes], np.ndarray]:
    """Merges over two letters or four that make tokens in several ways, some of them never."""
    tokens = [bytes([c]) for c in rng.choice([b"ab", b"abcd"])]
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < count:
        left, right = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        made = tokens[left] + tokens[right]
        if len(made) > 8 or (left, right) in pairs:
            continue
        if made not in tokens:
            tokens.append(made)
        pairs[left, right] = None
    listed = list(pairs)
    if shuffle:
        rng.shuffle(listed)
    return tokens, np.array(listed)


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_hold_for_any_list_of_merges(shuffle: bool) -> None:
    """Also for lists that no trainer would make: tokens made in several ways, never, or from parts that come later."""
    never = late = several = 0
    for seed in range(150):
        rng = random.Random(seed)
        tokens, pairs = random_merges(rng, rng.randint(1, 40), shuffle)
        ordinary = np.ones(len(tokens), bool)
        ids = {t: i for i, t in enumerate(tokens)}
        made = np.array([ids[tokens[a] + tokens[b]] for a, b in pairs])
        keys = pairs[:, 0] * len(tokens) + pairs[:, 1]
        order = np.argsort(keys)
        fast = _by_length(tokens, pairs, made, ordinary, keys[order], order)
        exact = _by_simulation(tokens, pairs, made, ordinary)
        assert fast is None or (fast == exact).all()
        assert (reachable(tokens, pairs, ordinary, "here") == exact).all()
        late, never = late + (fast is None), never + int((exact == NEVER).sum())
        several += len(made) - len(set(made))
        for whole in (False, True):
            ours = BPETokenizer([t.decode() for t in tokens], pairs, "gpt-2", ignore_merges=whole)
            words = {t.decode(): i for t, i in ids.items()}
            listed = [(tokens[a].decode(), tokens[b].decode()) for a, b in pairs]
            theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=listed, ignore_merges=whole))
            theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            for _ in range(60):
                text = "".join(rng.choices([t.decode() for t in tokens[:4]], k=rng.randint(1, 20)))
                assert ours.encode(text) == theirs.encode(text).ids, (seed, text)
    assert never > 50 and several > 50 and (late > 20) == shuffle


def test_a_byte_without_a_token_is_left_out_before_merging(tmp_path: Path) -> None:
    tokens = [*map(chr, b"ab !\n"), "!!", "ab"]
    ours = BPETokenizer(tokens, [[3, 3], [0, 1]], "gpt-2")
    theirs = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={spell(t.encode()): i for i, t in enumerate(tokens)}, merges=[("!", "!"), ("a", "b")]
        )
    )
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ("!\x04!", "a\x04b", "!猫!", "axb", "c", "\x04", "!\x04! ab"):
        assert ours.encode(text) == theirs.encode(text).ids, text
    assert ours.encode("!\x04!") == [5] and ours.encode("a\x04b") == [0, 1] and ours.encode("axb") == [6]
    assert ours.encode(b"!\xff!") == [5] and len(ours.missing_bytes) == 251


def small(**more: Any) -> BPETokenizer:
    """256 bytes, "ab" (256), "abc" (257), <s> (258), <t> (259), <tt> (260), "zz" that no merge makes (261)."""
    tokens = [*map(byte_token, range(256)), "ab", "abc", "<s>", "<t>", "<tt>", "zz"]
    given: dict[str, Any] = {"special": [258], "added": [259, 260], "eos": 258, **more}
    return BPETokenizer(tokens, [[97, 98], [256, 99]], "gpt-2", **given)


def test_marks_in_text(tmp_path: Path) -> None:
    t = small()
    assert t.encode("abc<s>") == [257, *b"<s>"]  # the user's own text
    assert t.encode("abc<s>ab", allow_special=True) == [257, 258, 256]
    assert t.encode("a<t><tt>b") == [97, 259, 260, 98]  # always
    assert small(special=[258, 259], added=[260]).encode("<t><tt>") == [*b"<t>", 260]
    nested = BPETokenizer([*map(byte_token, range(256)), "<a<t>b>", "<t>"], [], "gpt-2", special=[256], added=[257])
    assert nested.encode("<t><a<t>b><t>") == [257, *b"<a<t>b>", 257]  # hidden in a special token that it may not be
    assert nested.encode("<a<t>b") == [*b"<a", 257, *b"b"]
    same(nested, peer(nested, tmp_path), ["<t><a<t>b><t>", "<a<t>b", "<a<a<t>b>>", "x<t>"])
    assert t.encode("zz") == [122, 122] and small(ignore_merges=True).encode("zz") == [261]
    assert small(ignore_merges=True, special=[258, 261]).encode("zz") == [122, 122]  # special tokens are no pieces
    assert small(ignore_merges=True).encode("zzz zz") == [122, 122, 122, 32, 122, 122]


def test_nfc() -> None:
    t = small(normalize="nfc")
    text = "e\u0301 \u212b <t>\u0338"
    assert t.decode(t.encode(text)) == unicodedata.normalize("NFC", "e\u0301 \u212b ") + "<t>\u0338"
    assert small().decode(small().encode(text)) == text
    assert t.decode_bytes(t.encode(b"e\xcc\x81\xcc")) == b"\xc3\xa9\xcc"


def test_nfc_of_a_long_run_of_marks_takes_linear_time() -> None:
    rng = random.Random(3)
    marks = [c for c in assigned() if unicodedata.category(c)[0] == "M"]
    for _ in range(300):
        run = "".join(rng.choices(marks, k=rng.randint(60, 200)))
        text = f"é{run}a{run[:70]}\udcff{run}한{run[::-1]}"
        assert nfc(text) == unicodedata.normalize("NFC", text)
    started = time.process_time()
    made = nfc("e" + "\u0301\u0323" * 200_000)
    assert made == "ẹ\u0301"[:1] + "\u0323" * 199_999 + "\u0301" * 200_000
    assert time.process_time() - started < 8  # Python's own takes the square: 13 s for a tenth of it


def test_two_tokens_of_the_same_bytes() -> None:
    tokens = [*map(byte_token, range(256)), "ab", "ab", "<|pad|>", "ab"]
    t = BPETokenizer(tokens, [[97, 98]], "gpt-2", special=[258], added=[259])
    assert t.encode("ab") == [259]  # added: before anything else
    assert BPETokenizer(tokens, [[97, 98]], "gpt-2", special=[258]).encode("abc") == [256, 99]
    assert t.decode([256, 257, 259]) == "ababab"


@pytest.mark.parametrize("letter", ["a", "ab", "猫", " ", "\n", "1", "!", "\u0301"])
def test_a_megabyte_of_one_letter_takes_linear_time(letter: str, tmp_path: Path) -> None:
    t = build_bpe([*texts(), letter * 1000], 600, "qwen2")
    shorter = letter * (20_000 // len(letter.encode()))
    assert t.encode(shorter) == peer(t, tmp_path).encode(shorter, add_special_tokens=False).ids
    text = letter * (1_000_000 // len(letter.encode()))
    started = time.process_time()
    ids = t.encode_array(text)
    spent = time.process_time() - started
    assert t.decode(ids) == text
    assert spent < 8, f"{spent:.1f} s"  # 0.3 s; the square of a million would be hours


def test_file_round_trip_and_pickle(learned: BPETokenizer, tmp_path: Path) -> None:
    learned.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(again, BPETokenizer)
    for other in (again, pickle.loads(pickle.dumps(learned))):
        assert other.fingerprint == learned.fingerprint and other.tokens == learned.tokens
        assert other.encode("the cat 猫 <|eos|>", True) == learned.encode("the cat 猫 <|eos|>", True)
    told = small(chat_template="{{x}}", stop=[5], bos=258, add_bos=True)
    told.save(tmp_path / "t.json")
    back = load_tokenizer(tmp_path / "t.json")
    assert isinstance(back, BPETokenizer) and back.chat_template == "{{x}}"
    assert back.stop_ids == [258, 5] and back.bos_ids == [258] and back.eos_id == 258
    prints = {
        small(**m).fingerprint for m in ({}, {"normalize": "nfc"}, {"eos": 1}, {"added": []}, {"ignore_merges": True})
    }
    assert len(prints) == 5 and small(chat_template="x").fingerprint == small().fingerprint


@pytest.mark.parametrize(
    "change, said",
    [
        ({"version": 2}, "version 2"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"tokens": None}, "'tokens' is a NoneType"),
        ({"tokens": []}, "no tokens"),
        ({"tokens": ["a", ""]}, "token 1 is ''"),
        ({"tokens": ["a", 7]}, "token 1 is 7"),
        ({"tokens": ["a", "\ud800"]}, "half a character"),
        ({"merges": [[97, 98], [97]]}, "merge 1 is [97]"),
        ({"merges": [[97, "b"]]}, "merge 0 is [97, 'b']"),
        ({"merges": [[97, 1.5]]}, "merge 0 is [97, 1.5]"),
        ({"merges": [[97, 98], [97, 262]]}, "merge 1 [97, 262] names an id outside 0..261"),
        ({"merges": [[-1, 98]]}, "names an id outside"),
        ({"merges": [[97, 97]]}, "what they make is no ordinary token"),
        ({"merges": [[97, 98], [97, 98]]}, "merge 1 is merge 0 again"),
        ({"merges": [[97, 258]]}, "which is special"),
        ({"pre": "gpt-9"}, "pre-tokeniser 'gpt-9'"),
        ({"normalize": "nfkc"}, "normalize is 'nfkc'"),
        ({"special": [262]}, "special id 262 is outside 0..261"),
        ({"special": [True]}, "special id True"),
        ({"special": [200]}, "special token 200"),
        ({"added": [258]}, "both '<s>'"),
        ({"special": [258, 258]}, "both '<s>'"),
        ({"eos": "x"}, "eos id 'x'"),
        ({"bos": None, "add_bos": True}, "add_bos without a bos"),
        ({"ignore_merges": 1}, "'ignore_merges' is a int"),
        ({"chat_template": 1}, "'chat_template' is a int"),
        ({"stop": [-1]}, "stop id -1"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    small().save(tmp_path / "t.json")
    tree = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps({**tree, **change}))
    with pytest.raises(UserError, match=re.escape(said)) as e:
        load_tokenizer(tmp_path / "t.json")
    assert str(e.value).startswith(str(tmp_path / "t.json")) and "\n" not in str(e.value)


def test_a_file_that_lacks_a_key_is_refused(tmp_path: Path) -> None:
    small().save(tmp_path / "t.json")
    tree = json.loads((tmp_path / "t.json").read_text())
    for key in set(tree) - {"format", "version"}:
        (tmp_path / "t.json").write_text(json.dumps({k: v for k, v in tree.items() if k != key}))
        with pytest.raises(UserError, match=f"no key '{key}'"):
            load_tokenizer(tmp_path / "t.json")


def test_streams_give_whole_characters(learned: BPETokenizer) -> None:
    for text in ["猫坐在 👩‍👩‍👧 naïve", *NASTY]:
        decoder = StreamDecoder(learned)
        shown = ""
        for id in learned.encode(text):
            piece = decoder.feed(id)
            assert "\ufffd" not in piece or "\ufffd" in text
            shown += piece
        assert shown + decoder.finish() == text
    decoder = StreamDecoder(learned)
    cut = [decoder.feed(i) for i in learned.encode("猫".encode()[:2] + b"a")]
    assert "".join(cut) == "\ufffda" and decoder.finish() == ""
    decoder = StreamDecoder(learned)
    assert "".join([decoder.feed(i) for i in learned.encode(b"\xe7\x8c")]) == ""
    assert decoder.finish() == "\ufffd"


def test_learning_begins_with_the_special_tokens_and_repeats_itself() -> None:
    t = build_bpe(texts(), 500)
    assert t.tokens[:7] == list(SPECIAL) and t.eos_id == 3 and t.vocab_size == 500
    assert t.tokens[7:263] == [byte_token(b) for b in range(256)]
    assert t.special == {name: i for i, name in enumerate(SPECIAL)} and t.stop_ids == [3, 0]
    assert (t._ranks[263:] == np.arange(500 - 263)).all()  # every learned token is made, in order
    assert build_bpe(texts(), 500).fingerprint == t.fingerprint
    assert len(t.encode(story(99, 200))) < len(story(99, 200)) / 2


def test_learning_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="leaves no room for 263"):
        build_bpe(["a"], 100)
    with pytest.raises(UserError, match="no text"):
        build_bpe([""], 300)
    with pytest.raises(UserError, match="pre-tokeniser 'x'"):
        build_bpe(["a"], 300, "x")
    assert build_bpe(["ab ab \udc80ab"], 1000).vocab_size < 270  # no more pairs
    monkeypatch.setitem(sys.modules, "rustbpe", None)
    with pytest.raises(UserError, match="pip install 'rustbpe"):
        build_bpe(["a"], 300)


def test_workers_prepare_the_same_set(
    text_dir: Path, learned: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_set([str(text_dir)], learned, tmp_path / "one", val_fraction=0.2, workers=1)
    monkeypatch.setattr("nano_ds.prepare.encoding.SPAWN_ABOVE", 0)
    prepare_set([str(text_dir)], learned, tmp_path / "two", val_fraction=0.2, workers=2)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "two").iterdir()) and "train-00000.bin" in names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert load_tokenizer(tmp_path / "two" / "tokenizer.json").fingerprint == learned.fingerprint


@pytest.mark.parametrize("which", [smollm, qwen], ids=["smollm", "qwen"])
def test_real_vocabularies(which: Any) -> None:
    ours, theirs = which()
    rng = random.Random(5)
    same(ours, theirs, [*lines(1000), *NASTY, *(random_text(rng, 40) for _ in range(1000))])


@pytest.mark.full
@pytest.mark.parametrize("which", [smollm, qwen], ids=["smollm", "qwen"])
def test_real_vocabularies_on_ten_thousand_lines_and_random_text(which: Any) -> None:
    ours, theirs = which()
    chosen = lines(10_000)
    assert len(chosen) >= 9_900
    same(ours, theirs, chosen)
    rng = random.Random(6)
    for _ in range(20):
        same(ours, theirs, [random_text(rng, 60) for _ in range(5000)])
