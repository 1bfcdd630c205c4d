"""The byte-level BPE of the C engine gives the ids of Hugging Face's `tokenizers`, which the test asks itself."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SUMMARY, story
from vocab_dump import CONTROL, NORMAL, PRE, UNUSED, USER_DEFINED, Vocabulary, encode_texts, hard_text

hf = pytest.importorskip("tokenizers", reason="needs the package tokenizers: pip install -e '.[dev]'")

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|a<tool>b|>"]
ADDED = ["<tool>", "</tool>", "<think>", "<tool", "\u0301x"]


def pre_tokenizer(kind: str) -> Any:
    """What the tokenizer.json of the family says."""
    pre = hf.pre_tokenizers
    if kind == "gpt-2":
        return pre.ByteLevel(add_prefix_space=False)
    if kind == "smollm":
        return pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    pattern = hf.Regex(QWEN2 if kind == "qwen2" else LLAMA3)
    return pre.Sequence(
        [pre.Split(pattern, "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)],
    )


def add_tokens(tokenizer: Any, special: list[str], others: list[str]) -> None:
    tokenizer.add_special_tokens([hf.AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([hf.AddedToken(t, normalized=False) for t in others])


def vocabulary_of(tokenizer: Any, pre: str) -> Vocabulary:
    tree = json.loads(tokenizer.to_str())
    model, added = tree["model"], tree["added_tokens"]
    size = 1 + max([*model["vocab"].values(), *(a["id"] for a in added)])
    tokens, types = [""] * size, [UNUSED] * size
    for token, id in model["vocab"].items():
        tokens[id], types[id] = token, NORMAL
    for entry in added:
        tokens[entry["id"]], types[entry["id"]] = entry["content"], CONTROL if entry["special"] else USER_DEFINED
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=[" ".join(m) if isinstance(m, list) else m for m in model["merges"]],
        pre=pre,
        nfc=tree["normalizer"] is not None,
        whole_first=model["ignore_merges"],
    )


def texts_for(tokenizer: Any, seed: int) -> Iterator[str]:
    """Hard texts. Where it normalises, `tokenizers` does so by an old Unicode: not those with newer marks."""
    rng = random.Random(seed)
    while True:
        text = hard_text(rng)
        normal = tokenizer.normalizer
        if normal is None or normal.normalize_str(text) == unicodedata.normalize("NFC", text):
            yield text


def disagreements(program: Path, dump: Path, tokenizer: Any, texts: list[str]) -> list[str]:
    """The texts that C and `tokenizers` see differently, with and without special tokens."""
    wrong = []
    for special in (False, True):
        tokenizer.encode_special_tokens = not special
        theirs = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        ours = encode_texts(program, dump, texts, allow_special=special)
        wrong += [f"{t!r}: {o}, not {h}" for t, o, h in zip(texts, ours, theirs, strict=True) if o != h]
    return wrong


@pytest.fixture(scope="session")
def program() -> Path:
    subprocess.run(["make", "-s", "-C", ROOT / "runtime_c", "build/tests/encode_texts"], check=True)
    return ROOT / "runtime_c" / "build" / "tests" / "encode_texts"


@pytest.fixture(scope="session")
def trained() -> dict[str, Any]:
    """A small tokenizer for each pre-tokeniser, trained here on words, code, numbers and hard text."""
    rng = random.Random(7)
    corpus = [story(s, 200) for s in range(20)] + [Path(__file__).read_text()] * 2
    corpus += [hard_text(rng) for _ in range(3000)] + [str(rng.getrandbits(40)) for _ in range(200)]
    made = {}
    for kind in PRE:
        tokenizer = hf.Tokenizer(hf.models.BPE(ignore_merges=kind == "llama-bpe"))
        tokenizer.pre_tokenizer = pre_tokenizer(kind)
        if kind == "qwen2":
            tokenizer.normalizer = hf.normalizers.NFC()
        # SmolLM2's vocabulary lacks some bytes too.
        alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())[: 240 if kind == "smollm" else 256]
        trainer = hf.trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator([c for c in corpus if kind != "smollm" or "\0" not in c], trainer)
        add_tokens(tokenizer, SPECIAL, ADDED)
        made[kind] = tokenizer
    return made


@pytest.mark.parametrize("kind", PRE)
def test_ids_are_those_of_tokenizers(kind: str, program: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = trained[kind]
    dump = vocabulary_of(tokenizer, kind).write(tmp_path / "dump")
    texts = [*itertools.islice(texts_for(tokenizer, 1), 4000), story(1, 500)]
    texts += ["", "a" * 5000, " " * 3000 + "x", "\n" * 999, "'s" * 50, "1" * 100, "x1 2  3   y", "é\u0323" * 200]
    texts += ["".join(SPECIAL + ADDED) * 3, "<tool<tool>", "<|a<tool>b|>", "<|a<tool>b|"]
    texts += ["a" + "\u0323\u0307" * n for n in (1, 5, 20, 400)]
    wrong = disagreements(program, dump, tokenizer, texts)
    assert not wrong, f"{len(wrong)} of {2 * len(texts)}, such as {wrong[:3]}"


def class_edges() -> list[int]:
    """The code points beside each border between letters, numbers and others."""
    classes = [unicodedata.category(chr(c))[0] for c in range(0x110000)]
    edges = {
        c for c in range(1, 0x110000) if classes[c] != classes[c - 1] and {classes[c], classes[c - 1]} & {"L", "N"}
    }
    return sorted({c + step for c in edges for step in (-1, 0)} | set(range(0x3100)))


@pytest.mark.parametrize("kind", PRE)
@pytest.mark.parametrize("which", ["edges", pytest.param("all", marks=pytest.mark.full)])
def test_every_character_is_cut_as_in_tokenizers(
    which: str, kind: str, program: Path, trained: dict[str, Any], tmp_path: Path
) -> None:
    """Each code point between others that show its class: a letter, a digit, a space, an apostrophe before it."""
    tokenizer = trained[kind]
    dump = vocabulary_of(tokenizer, kind).write(tmp_path / "dump")
    # Characters of Unicode 17, which only some of tokenizers' rules know.
    newer = {*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)}
    points = [c for c in (range(0x110000) if which == "all" else class_edges()) if not 0xD800 <= c < 0xE000]
    texts = [f"a{c}b 1{c}2 {c} '{c}e  {c}.{c}" for c in map(chr, points) if ord(c) not in newer]
    if tokenizer.normalizer is not None:  # by an old Unicode: not the newer marks
        texts = [t for t in texts if tokenizer.normalizer.normalize_str(t) == unicodedata.normalize("NFC", t)]
    assert len(texts) > (1_100_000 if which == "all" else 14_000)
    for at in range(0, len(texts), 50_000):
        wrong = disagreements(program, dump, tokenizer, texts[at : at + 50_000])
        assert not wrong, f"{len(wrong)}, such as {wrong[:1]}"


def test_normal_form_is_that_of_unicode(program: Path, tmp_path: Path) -> None:
    """With a vocabulary of single bytes and no merges, the ids are the normalised text itself."""
    byte_level = hf.pre_tokenizers.ByteLevel
    letters = [byte_level(add_prefix_space=False, use_regex=False).pre_tokenize_str(chr(b))[0][0] for b in range(128)]
    rest = sorted(set(byte_level.alphabet()) - set(letters))
    byte_of = {c: i for i, c in enumerate(letters)} | {c: ord(c) for c in rest if ord(c) < 256}
    for char in rest:  # 0x80 to 0xA0 and 0xAD are written as U+0122 to U+0143
        byte_of.setdefault(char, 0x80 + ord(char) - 0x122 if ord(char) < 0x143 else 0xAD)
    tokens = sorted(byte_of, key=lambda c: byte_of[c])
    vocabulary = Vocabulary(tokens=tokens, types=[NORMAL] * 256, merges=[], pre="qwen2", nfc=True)
    dump = vocabulary.write(tmp_path / "dump")
    rng = random.Random(3)
    known = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs")]
    texts = ["".join(known[at : at + 50]) for at in range(0, len(known), 50)]
    texts += [f"a\u0315{c}\u0300\u05b0{c}" for c in known if unicodedata.combining(c) or unicodedata.decomposition(c)]
    texts += [hard_text(rng) for _ in range(5000)]
    for text, ids in zip(texts, encode_texts(program, dump, texts), strict=True):
        assert bytes(ids).decode() == unicodedata.normalize("NFC", text), ascii(text)


def test_bytes_that_are_no_text_survive(program: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """Each is a character of its own, neither letter, number nor space; its token is that of its byte."""
    rng = random.Random(5)
    parts = [b"\xff", b"\xc3", b"\xe4\xbd", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"]
    parts += [" the é".encode(), b"'s", b" 12"]
    for kind in ("gpt-2", "llama-bpe"):
        vocabulary = vocabulary_of(trained[kind], kind)
        dump = vocabulary.write(tmp_path / "dump")
        texts = [b"".join(rng.choices(parts, k=rng.randint(1, 20))) for _ in range(500)]
        texts += [rng.randbytes(200) for _ in range(100)]
        for text, ids in zip(texts, encode_texts(program, dump, texts), strict=True):
            decoded = hf.decoders.ByteLevel().decode([vocabulary.tokens[i] for i in ids])
            assert decoded == text.decode(errors="replace"), text


def seconds(program: Path, dump: Path, folder: Path, text: str) -> float:
    """Processor time to encode the text, the best of five."""
    (folder / "text").write_text(text)
    done = subprocess.run([program, dump, folder / "text"], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1].split()[-4])


def test_long_words_take_no_quadratic_time(program: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """Eight times the text takes eight times as long, and a little for the depth of the heap; quadratic would be 64."""
    dump = vocabulary_of(trained["qwen2"], "qwen2").write(tmp_path / "dump")
    for unit in ("a", "\u4f60", " ", "a\u0323\u0307"):
        n = 100_000 // len(unit.encode())
        short, long = (seconds(program, dump, tmp_path, unit * size) for size in (n, 8 * n))
        assert long < 24 * max(short, 1e-3), (unit, short, long)


def real_qwen(data: Path) -> tuple[Any, str]:
    found = sorted(data.rglob("tokenizer-qwen3/package/models/tokenizer.json"))
    if not found:
        pytest.skip("NANO_DATA has no tokenizer.json of Qwen")
    return hf.Tokenizer.from_file(str(found[0])), "qwen2"


def real_smollm(data: Path) -> tuple[Any, str]:
    gguf = pytest.importorskip("gguf", reason="needs the package gguf to read SmolLM2's file")
    files = sorted(data.rglob("SmolLM2-*.gguf"))
    if not files:
        pytest.skip("NANO_DATA has no GGUF of SmolLM2")
    fields = gguf.GGUFReader(files[0]).fields
    tokens, types, merges = (fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "token_type", "merges"))
    model = hf.models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges])
    tokenizer = hf.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer("smollm")
    add_tokens(tokenizer, [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL], [])
    return tokenizer, "smollm"


REAL = {"qwen": real_qwen, "smollm": real_smollm}


def real_tokenizer(name: str) -> tuple[Any, str, Path]:
    if not os.environ.get("NANO_DATA"):
        pytest.skip("NANO_DATA does not name a folder with real vocabularies and text")
    data = Path(os.environ["NANO_DATA"])
    return *REAL[name](data), data


@pytest.mark.parametrize("name", REAL)
def test_real_vocabulary_on_real_text(name: str, program: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer, kind, data = real_tokenizer(name)
    files = [*sorted(data.glob("corpus_*.txt")), *sorted(Path(os.__file__).parent.glob("*.py"))[:40]]
    lines = []
    for path in files:
        some = [line for line in path.read_text(errors="replace").splitlines(keepends=True) if line.strip()]
        lines += some[:: max(1, len(some) // (4000 if path.suffix == ".txt" else 60))]
    assert len(lines) >= 10_000
    dump = vocabulary_of(tokenizer, kind).write(tmp_path / "dump")
    wrong = disagreements(program, dump, tokenizer, lines)
    assert not wrong, f"{len(wrong)} of {2 * len(lines)}, such as {wrong[:3]}"
    request.config.stash[SUMMARY].append(f"{name}: C and tokenizers agree on {len(lines)} lines")


@pytest.mark.full
@pytest.mark.parametrize("name", REAL)
def test_real_vocabulary_on_hard_text(name: str, program: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer, kind, _ = real_tokenizer(name)
    texts = list(itertools.islice(texts_for(tokenizer, 11), 100_000))
    dump = vocabulary_of(tokenizer, kind).write(tmp_path / "dump")
    wrong = disagreements(program, dump, tokenizer, texts)
    assert not wrong, f"{len(wrong)} of {2 * len(texts)}, such as {wrong[:3]}"
    request.config.stash[SUMMARY].append(f"{name}: C and tokenizers agree on {len(texts)} random strings")


def test_unicode_tables_are_what_the_tool_writes() -> None:
    spec = importlib.util.spec_from_file_location("unicode_tables", ROOT / "tools" / "unicode_tables.py")
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.OUT.read_text()
    made = [u for u in tool.modules() if u.unidata_version == tool.version_in(text)]
    if not made:
        pytest.skip(f"no Unicode {tool.version_in(text)} here: pip install -e '.[dev]'")
    assert tool.tables(made[0]) == text
