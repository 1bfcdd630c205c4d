"""Tokenizers: text to ids and back. One interface, one file `tokenizer.json` per vocabulary."""

from __future__ import annotations

from pathlib import Path

from nano_ds.errors import UserError
from nano_ds.files import read_json
from nano_ds.tokenizer.base import Codec, StreamDecoder, Tokenizer
from nano_ds.tokenizer.bpe import BPETokenizer
from nano_ds.tokenizer.trie import TrieTokenizer

__all__ = ["BPETokenizer", "Codec", "StreamDecoder", "Tokenizer", "TrieTokenizer", "load_tokenizer"]

WHAT = "a tokenizer.json (`nano-ds tokenizer trie` or `bpe` builds one from text)"


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in ``path``: one of our own formats, or the JSON that Nano's programs use.

    Raises:
        UserError: the file is missing, is neither of them, or contradicts itself.
    """
    tree = read_json(path, WHAT)
    if isinstance(tree, dict) and tree.get("format") == TrieTokenizer.FORMAT:
        return TrieTokenizer.from_tree(tree, str(path))
    if isinstance(tree, dict) and tree.get("format") == BPETokenizer.FORMAT:
        return BPETokenizer.from_tree(tree, str(path))
    if isinstance(tree, dict) and "stoi" in tree:
        return TrieTokenizer.from_nano_json(tree, str(path))
    found = f"format {tree.get('format')!r}" if isinstance(tree, dict) else f"a {type(tree).__name__}"
    raise UserError(f"{path}: {found} is no tokenizer that nano_ds knows; expected {WHAT}")
