"""Shared pieces of the data tests: a small vocabulary, a folder of text, a prepared set."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from nano_ds.prepare import prepare_set
from nano_ds.tokenizer.build import build_trie
from nano_ds.tokenizer.trie import TrieTokenizer

SUMMARY = pytest.StashKey[list[str]]()  # lines that a test wants under the results
ROOT = Path(__file__).resolve().parent.parent
WORDS = re.findall(
    r"\S+", "the cat sat on a mat and then another cat came to sit there while it rained 猫 坐 在 垫子 上 naïve café"
)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SUMMARY] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[SUMMARY]:
        terminalreporter.write_line(line)


def story(seed: int, words: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="session")
def tokenizer() -> TrieTokenizer:
    return build_trie([story(s, 200) for s in range(50)], 400)


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty small text files, one document each, one more that equals the first, and two that are passed over."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(60):
        (folder / f"{i:02}.txt").write_text(story(1000 + i, 80))
    (folder / "zz-again.txt").write_text(story(1000, 80))
    (folder / ".hidden.txt").write_bytes(b"\0\0")
    (folder / "picture.png").write_bytes(b"\0\0")
    return folder


@pytest.fixture(scope="session")
def small_set(text_dir: Path, tokenizer: TrieTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "small"
    prepare_set([str(text_dir)], tokenizer, out, val_fraction=0.2, shard_tokens=1000)
    return out


@pytest.fixture(scope="session")
def nano_golden() -> Path:
    """The folder of files that Nano's own programs wrote."""
    where = os.environ.get("NANO_GOLDEN")
    if not where:
        pytest.skip("NANO_GOLDEN does not name a folder with files of Nano's own programs")
    return Path(where)


@pytest.fixture(scope="session")
def nano_infer_binary() -> Path:
    """The C program, built by `make`."""
    binary = ROOT / "runtime_c" / "build" / "nano-infer"
    if not binary.exists():
        subprocess.run(["make", "-s", "-C", str(ROOT / "runtime_c")], check=True)
    return binary
