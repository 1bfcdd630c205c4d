"""Shard files and sets: what is written comes back, and nothing bent is believed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nano_ds.errors import UserError
from nano_ds.shards import HEADER, Shard, ShardWriter, TokenSet, token_dtype

MARK = "ab" * 32


def write(path: Path, vocab: int = 300) -> np.ndarray:
    writer = ShardWriter(path, vocab, MARK)
    dtype = token_dtype(vocab)
    tokens = (np.arange(37) * 7 % vocab).astype(dtype)
    writer.add(tokens[:30], np.array([10, 20]), 100)
    writer.add(tokens[30:], np.array([7]), 23)
    writer.close()
    return tokens


@pytest.mark.parametrize("vocab", [300, 65536, 65537])
def test_round_trip(tmp_path: Path, vocab: int) -> None:
    tokens = write(tmp_path / "s.bin", vocab)
    shard = Shard(tmp_path / "s.bin")
    assert (shard.tokens == tokens).all() and shard.tokens.dtype.itemsize == (4 if vocab > 65536 else 2)
    assert shard.starts.tolist() == [0, 10, 30]
    assert (shard.vocab_size, shard.text_bytes, shard.fingerprint) == (vocab, 123, MARK)


def test_every_bent_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    write(path)
    good = path.read_bytes()
    for at in range(len(good)):
        for bit in (0x01, 0x80):
            path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
            with pytest.raises(UserError, match=r"s\.bin: .*nano-ds prepare"):
                Shard(path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    write(path)
    good = path.read_bytes()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(UserError, match=r"s\.bin"):
            Shard(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(UserError, match="cut short or mixed up"):
        Shard(path)
    with pytest.raises(UserError, match="cannot read"):
        Shard(tmp_path / "none.bin")


def test_headers_that_lie_with_a_right_checksum(tmp_path: Path) -> None:
    import struct
    import zlib

    path = tmp_path / "s.bin"
    write(path)
    good = path.read_bytes()
    for at, value in [
        (8, 2),
        (12, 4),
        (12, 0),
        (16, 0),
        (16, 1 << 20),
        (16, 5),
        (20, 1),
        (24, 1 << 60),
        (32, 1 << 62),
        (84, 1),
    ]:
        head = bytearray(good[: HEADER.size - 4])
        head[at : at + 8 if at in (24, 32) else at + 4] = struct.pack("<Q" if at in (24, 32) else "<I", value)
        path.write_bytes(head + struct.pack("<I", zlib.crc32(head)) + good[HEADER.size :])
        with pytest.raises(UserError, match=r"s\.bin"):
            Shard(path)


def test_a_set_is_what_its_manifest_says(small_set: Path, tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    tree = json.loads((small_set / "manifest.json").read_text())
    train, val = (TokenSet.open(small_set, split, tokenizer.fingerprint) for split in ("train", "val"))
    assert len(train.shards) > 1 and train.tokens == tree["total"]["train"]["tokens"] and val.tokens > 0
    assert 1 < train.bytes_per_token < 10
    assert (small_set / "tokenizer.json").exists()
    with pytest.raises(UserError, match="made with another tokenizer"):
        TokenSet.open(small_set, "train", "00" * 32)
    with pytest.raises(UserError, match="no such folder"):
        TokenSet.open(tmp_path / "none", "train")

    bad = tmp_path / "bad"
    shutil.copytree(small_set, bad)
    first, second = bad / "train-00000.bin", bad / "train-00001.bin"
    swap = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match="not the file that"):
        TokenSet.open(bad, "train")
    first.unlink()
    with pytest.raises(UserError, match=r"train-00000\.bin: cannot read"):
        TokenSet.open(bad, "train")
    first.write_bytes(swap)
    TokenSet.open(bad, "train")


def test_bent_manifests_are_refused(small_set: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(small_set, bad)
    path = bad / "manifest.json"
    text = path.read_text()
    tree = json.loads(text)

    def refused(changed: object) -> None:
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
        with pytest.raises(UserError, match=r"manifest\.json|bad"):
            TokenSet.open(bad, "train")

    for size in range(0, len(text.rstrip()), 17):
        refused(text[:size])
    for key in ("format", "version", "fingerprint", "tokenizer", "total", "shards"):
        refused({k: v for k, v in tree.items() if k != key})
        refused({**tree, key: 5})
    refused({**tree, "shards": {"train": [{**tree["shards"]["train"][0], "file": "../x"}], "val": []}})
    refused({**tree, "shards": {"train": tree["shards"]["train"][:1], "val": tree["shards"]["val"]}})
