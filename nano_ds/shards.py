"""The shard file (tokens of many documents, memory-mapped) and the set: a folder of shards with a manifest.

    train-00000.bin …  val-00000.bin …  tokenizer.json  manifest.json

A shard, little-endian: a 128-byte header, the tokens (u16, or u32 for vocabularies above 65,536) padded to 8 bytes,
then the place of each document's first token (u64). Nothing in a file is believed before it is checked.

    0   8s   magic "NANOTOKS"          32  u64  documents
    8   u32  version (1)               40  u64  bytes of UTF-8 text
    12  u32  bytes per token (2 or 4)  48  32s  fingerprint of the tokenizer
    16  u32  vocabulary size           80  u32  CRC-32 of everything after the header
    20  u32  zero                      84  40s  zero
    24  u64  tokens                    124 u32  CRC-32 of bytes 0-123
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from nano_ds.errors import UserError
from nano_ds.files import read_json, sha256_file

MAGIC = b"NANOTOKS"
VERSION = 1
HEADER = struct.Struct("<8sIIIIQQQ32sI40sI")
SPLITS = ("train", "val")
SET_FORMAT = "nano_ds.tokens"
VERIFY_BELOW = 1 << 28  # bytes of a shard up to which opening it also checks its CRC (a fraction of a second)
FIX = "run `nano-ds prepare` again"
assert HEADER.size == 128


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class ShardWriter:
    """Writes one shard; documents come in order. ``close`` puts the header in place."""

    def __init__(self, path: Path, vocab_size: int, fingerprint: str):
        self.path = path
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.fingerprint = fingerprint
        self.tokens = self.text_bytes = 0
        self._crc = 0
        self._starts: list[np.ndarray] = []
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 (closed by close or abandon)
        self._file.write(bytes(HEADER.size))

    @property
    def documents(self) -> int:
        return sum(map(len, self._starts))

    def add(self, tokens: np.ndarray, lengths: np.ndarray, text_bytes: int) -> None:
        """Appends documents: their tokens one after another, and how many each has."""
        assert tokens.dtype == self.dtype and int(lengths.sum()) == len(tokens), (tokens.dtype, len(tokens))
        self._starts.append((self.tokens + np.cumsum(lengths) - lengths).astype("<u8"))
        self._write(tokens.tobytes())
        self.tokens += len(tokens)
        self.text_bytes += text_bytes

    def close(self) -> dict[str, Any]:
        """Finishes the file and returns its entry in the manifest."""
        self._write(bytes(-self.tokens * self.dtype.itemsize % 8))
        self._write(b"".join(s.tobytes() for s in self._starts))
        documents = self.documents
        head = HEADER.pack(
            MAGIC,
            VERSION,
            self.dtype.itemsize,
            self.vocab_size,
            0,
            self.tokens,
            documents,
            self.text_bytes,
            bytes.fromhex(self.fingerprint),
            self._crc,
            b"",
            0,
        )[:-4]
        self._file.seek(0)
        self._file.write(head + struct.pack("<I", zlib.crc32(head)))
        self._file.close()
        return {
            "file": self.path.name,
            "tokens": self.tokens,
            "documents": documents,
            "text_bytes": self.text_bytes,
            "sha256": sha256_file(self.path),
        }

    def abandon(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._file.write(data)


class Shard:
    """One shard, memory-mapped.

    Raises:
        UserError: the file is missing, no shard, of another version, cut short or damaged.
    """

    def __init__(self, path: str | Path, verify: bool | None = None):
        """``verify``: compare the CRC of the whole file too (None: only if the file is small)."""
        self.path = path = Path(path)
        try:
            size = path.stat().st_size
            with open(path, "rb") as f:
                head = f.read(HEADER.size)
        except OSError as e:
            raise UserError(f"{path}: cannot read the shard: {e.strerror}; {FIX}") from None
        if len(head) < HEADER.size:
            raise UserError(f"{path}: {size} bytes are too few for a shard; {FIX}")
        magic, version, width, vocab, zero, tokens, documents, text, mark, crc, pad, head_crc = HEADER.unpack(head)
        if magic != MAGIC:
            raise UserError(f"{path}: no shard of tokens (it begins with {magic!r}); {FIX}")
        if zlib.crc32(head[:-4]) != head_crc:
            raise UserError(f"{path}: the header is damaged (its checksum is wrong); {FIX}")
        if version != VERSION:
            raise UserError(f"{path}: shard version {version}, this program reads {VERSION}; {FIX}")
        if vocab < 1 or width != token_dtype(vocab).itemsize or zero or any(pad):
            raise UserError(f"{path}: the header contradicts itself ({vocab} tokens of {width} bytes); {FIX}")
        body = -(-tokens * width // 8) * 8
        wanted = HEADER.size + body + 8 * documents
        if size != wanted:
            raise UserError(f"{path}: {size} bytes, but its header promises {wanted}: cut short or mixed up; {FIX}")
        self.vocab_size, self.text_bytes, self.fingerprint = vocab, text, mark.hex()
        self.tokens = self._map(token_dtype(vocab), HEADER.size, tokens)
        self.starts = self._map(np.dtype("<u8"), HEADER.size + body, documents)
        self._crc = crc
        if verify or (verify is None and size <= VERIFY_BELOW):
            self.verify()
        starts = self.starts
        if documents and (
            starts[0] != 0 or starts[-1] >= tokens or (documents > 1 and (starts[1:] <= starts[:-1]).any())
        ):
            raise UserError(f"{path}: the table of documents is damaged; {FIX}")
        if bool(documents) != bool(tokens):
            raise UserError(f"{path}: {tokens} tokens in {documents} documents cannot be; {FIX}")

    def verify(self) -> None:
        """Reads the whole file against its checksum, and every token against the vocabulary."""
        crc = 0
        with open(self.path, "rb") as f:
            f.seek(HEADER.size)
            while chunk := f.read(1 << 20):
                crc = zlib.crc32(chunk, crc)
        if crc != self._crc:
            raise UserError(f"{self.path}: damaged (its checksum is wrong); {FIX}")
        if len(self.tokens) and int(self.tokens.max()) >= self.vocab_size:
            raise UserError(f"{self.path}: holds token {self.tokens.max()} of a vocabulary of {self.vocab_size}; {FIX}")

    def _map(self, dtype: np.dtype[Any], offset: int, count: int) -> np.ndarray:
        if not count:
            return np.zeros(0, dtype)
        return np.memmap(self.path, dtype, "r", offset, (count,))


def new_manifest(vocab_size: int, fingerprint: str, shards: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The manifest of a set; ``shards`` are the entries that ``ShardWriter.close`` returned, by split."""
    total = {
        split: {key: sum(s[key] for s in shards[split]) for key in ("tokens", "documents", "text_bytes")}
        for split in SPLITS
    }
    digest = hashlib.sha256(fingerprint.encode())
    for split in SPLITS:
        digest.update("".join(f"{split} {s['sha256']}\n" for s in shards[split]).encode())
    return {
        "format": SET_FORMAT,
        "version": VERSION,
        "fingerprint": digest.hexdigest(),
        "tokenizer": {"fingerprint": fingerprint, "vocab_size": vocab_size},
        "total": total,
        "shards": shards,
    }


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The checked manifest of a set; raises UserError when the folder holds none or a bent one."""
    path = Path(folder) / "manifest.json"
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder of token shards; make it with `nano-ds prepare`")
    tree = read_json(path, "the manifest of a set that `nano-ds prepare` writes")
    if not isinstance(tree, dict) or tree.get("format") != SET_FORMAT:
        raise UserError(f"{path}: not the manifest of a set of token shards; {FIX}")
    if tree.get("version") != VERSION:
        raise UserError(f"{path}: version {tree.get('version')!r}, this program reads {VERSION}; {FIX}")
    try:
        for split in SPLITS:
            for s in tree["shards"][split]:
                name = str(s["file"])
                fine = Path(name).name == name and all(type(s[k]) is int for k in ("tokens", "documents", "text_bytes"))
                if not fine or not isinstance(s["sha256"], str):
                    raise KeyError(name)
        mark, vocab = tree["tokenizer"]["fingerprint"], tree["tokenizer"]["vocab_size"]
        same = new_manifest(vocab, mark, {split: tree["shards"][split] for split in SPLITS})
        if any(tree[key] != same[key] for key in ("fingerprint", "total")):
            raise UserError(f"{path}: damaged (its totals or its fingerprint do not fit its shards); {FIX}")
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged (keys are missing or of the wrong kind); {FIX}") from None
    return tree


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """One split of a set, opened and checked."""

    folder: Path
    split: str
    shards: tuple[Shard, ...]
    fingerprint: str  # of the whole set
    tokenizer_fingerprint: str
    vocab_size: int

    @classmethod
    def open(cls, folder: str | Path, split: str, tokenizer_fingerprint: str | None = None) -> TokenSet:
        """Opens ``train`` or ``val``; raises UserError if anything in the folder is not what the manifest says."""
        assert split in SPLITS, split
        folder = Path(folder)
        tree = read_manifest(folder)
        mark, vocab = tree["tokenizer"]["fingerprint"], tree["tokenizer"]["vocab_size"]
        if tokenizer_fingerprint is not None and mark != tokenizer_fingerprint:
            raise UserError(
                f"{folder}: made with another tokenizer ({mark[:12]}…, vocabulary {vocab}) than this run's "
                f"({tokenizer_fingerprint[:12]}…); run `nano-ds prepare --force` again, or use {folder}/tokenizer.json"
            )
        shards = []
        for entry in tree["shards"][split]:
            shard = Shard(folder / entry["file"])
            if shard.fingerprint != mark or shard.vocab_size != vocab:
                raise UserError(f"{shard.path}: its tokenizer is not that of {folder}/manifest.json; {FIX}")
            found = (len(shard.tokens), len(shard.starts), shard.text_bytes)
            if found != (entry["tokens"], entry["documents"], entry["text_bytes"]):
                raise UserError(f"{shard.path}: not the file that {folder}/manifest.json describes; {FIX}")
            shards.append(shard)
        return cls(
            folder=folder,
            split=split,
            shards=tuple(shards),
            fingerprint=tree["fingerprint"],
            tokenizer_fingerprint=mark,
            vocab_size=vocab,
        )

    @property
    def tokens(self) -> int:
        return sum(len(s.tokens) for s in self.shards)

    @property
    def text_bytes(self) -> int:
        return sum(s.text_bytes for s in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token, for bits per byte."""
        return self.text_bytes / max(1, self.tokens)
