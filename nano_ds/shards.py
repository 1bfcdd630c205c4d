"""The shard file (tokens of many documents, memory-mapped) and the set: a folder of shards with a manifest.

    train-00000.bin …  val-00000.bin …  tokenizer.json  manifest.json

A shard, little-endian: a 128-byte header, the tokens (u16, or u32 for vocabularies above 65,536) padded to 8 bytes,
then the place of each document's first token (u64). Nothing in a file is believed before it is checked.

    0   8s   magic "NANOTOKS"              40  u64  bytes of UTF-8 text
    8   u32  version (1 text, 2 packed)    48  32s  fingerprint of the tokenizer
    12  u32  bytes per token (2 or 4)      80  u32  CRC-32 of everything after the header
    16  u32  vocabulary size               84  u32  zero
    20  u32  tokens of a row; 0 in text    88  u64  tokens that carry loss; 0 in text
    24  u64  tokens                        96  u64  tokens of padding; 0 in text
    32  u64  documents                     104 20s  zero
                                           124 u32  CRC-32 of bytes 0-123

Version 2 holds documents (question and answer) packed into rows of equal length, block size + 1, which do not overlap.
No document reaches over the end of a row; padding lies behind the last of a row. Between tokens and places stands one
bit for each token, the lowest first, every row padded to a byte and all rows to 8: whether the token carries loss. The
first of a document never does. "Bytes of text" are those of the answers, so that bits per byte are theirs.
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
VERSION, PACKED = 1, 2  # of text, of packed documents
HEADER = struct.Struct("<8sIIIIQQQ32sIIQQ20sI")
SPLITS = ("train", "val")
SET_FORMAT = "nano_ds.tokens"
COUNTS, PACKED_COUNTS = ("tokens", "documents", "text_bytes"), ("answers", "padding")
VERIFY_BELOW = 1 << 28  # bytes of a shard up to which opening it also checks its CRC (a fraction of a second)
FIX = "run `nano-ds prepare` again"
assert HEADER.size == 128


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class ShardWriter:
    """Writes one shard; documents come in order. ``close`` puts the header in place."""

    def __init__(self, path: Path, vocab_size: int, fingerprint: str, row: int = 0):
        """``row``: tokens of each row of packed documents; 0 for text."""
        self.path, self.row = path, row
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.fingerprint = fingerprint
        self.tokens = self.text_bytes = self.answers = self.padding = 0
        self._crc = 0
        self._starts: list[np.ndarray] = []
        self._bits: list[bytes] = []
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

    def add_row(self, tokens: np.ndarray, lengths: np.ndarray, loss: np.ndarray, text_bytes: int, padding: int) -> None:
        """Appends a row of packed documents; the last of ``lengths`` takes in the padding.

        ``loss``: bool [row], which tokens carry loss.
        """
        assert len(tokens) == len(loss) == self.row, (len(tokens), len(loss), self.row)
        self.add(tokens, lengths, text_bytes)
        self._bits.append(np.packbits(loss, bitorder="little").tobytes())
        self.answers += int(loss.sum())
        self.padding += padding

    def close(self) -> dict[str, Any]:
        """Finishes the file and returns its entry in the manifest."""
        self._write(bytes(-self.tokens * self.dtype.itemsize % 8))
        bits = b"".join(self._bits)
        self._write(bits + bytes(-len(bits) % 8))
        self._write(b"".join(s.tobytes() for s in self._starts))
        documents = self.documents
        head = HEADER.pack(
            MAGIC,
            PACKED if self.row else VERSION,
            self.dtype.itemsize,
            self.vocab_size,
            self.row,
            self.tokens,
            documents,
            self.text_bytes,
            bytes.fromhex(self.fingerprint),
            self._crc,
            0,
            self.answers,
            self.padding,
            b"",
            0,
        )[:-4]
        self._file.seek(0)
        self._file.write(head + struct.pack("<I", zlib.crc32(head)))
        self._file.close()
        entry: dict[str, Any] = {
            "file": self.path.name,
            "tokens": self.tokens,
            "documents": documents,
            "text_bytes": self.text_bytes,
        }
        if self.row:
            entry |= {"answers": self.answers, "padding": self.padding}
        return {**entry, "sha256": sha256_file(self.path)}

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
        fields = HEADER.unpack(head)
        magic, version, width, vocab, row, tokens, documents, text, mark, crc, *rest = fields
        zero, answers, padding, pad, check = rest
        if magic != MAGIC:
            raise UserError(f"{path}: no shard of tokens (it begins with {magic!r}); {FIX}")
        if zlib.crc32(head[:-4]) != check:
            raise UserError(f"{path}: the header is damaged (its checksum is wrong); {FIX}")
        if version not in (VERSION, PACKED):
            raise UserError(f"{path}: shard version {version}, this program reads {VERSION} and {PACKED}; {FIX}")
        if vocab < 1 or width != token_dtype(vocab).itemsize or zero or any(pad):
            raise UserError(f"{path}: the header contradicts itself ({vocab} tokens of {width} bytes); {FIX}")
        packed = version == PACKED
        if (row < 2 or tokens % row or answers + padding > tokens) if packed else (row or answers or padding):
            raise UserError(f"{path}: the header contradicts itself ({tokens} tokens in rows of {row}); {FIX}")
        body = -(-tokens * width // 8) * 8
        rows, row_bytes = (tokens // row, -(-row // 8)) if row else (0, 0)
        bits = -(-rows * row_bytes // 8) * 8
        wanted = HEADER.size + body + bits + 8 * documents
        if size != wanted:
            raise UserError(f"{path}: {size} bytes, but its header promises {wanted}: cut short or mixed up; {FIX}")
        self.vocab_size, self.text_bytes, self.fingerprint = vocab, text, mark.hex()
        self.row, self.answers, self.padding = row, answers, padding  # all 0 in text
        self.tokens = self._map(token_dtype(vocab), HEADER.size, tokens)
        self.bits = self._map(np.dtype("u1"), HEADER.size + body, rows * row_bytes).reshape(rows, row_bytes)
        self.starts = self._map(np.dtype("<u8"), HEADER.size + body + bits, documents)
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
        if row and int((starts % np.uint64(row) == 0).sum()) != rows:
            raise UserError(f"{path}: the table of documents does not fit the rows; {FIX}")

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
        if self.row:
            loss = self.loss(slice(None)).reshape(-1)
            if int(loss.sum()) != self.answers or loss[self.starts.astype(np.int64)].any():
                raise UserError(f"{self.path}: its marks of what carries loss are damaged; {FIX}")

    def loss(self, rows: Any) -> np.ndarray:
        """Which tokens of ``rows`` (a slice or an array of numbers) of a packed shard carry loss: bool [rows, row]."""
        return np.unpackbits(self.bits[rows], axis=1, count=self.row, bitorder="little").astype(bool)

    def _map(self, dtype: np.dtype[Any], offset: int, count: int) -> np.ndarray:
        if not count:
            return np.zeros(0, dtype)
        return np.memmap(self.path, dtype, "r", offset, (count,))


def new_manifest(
    vocab_size: int, fingerprint: str, shards: dict[str, list[dict[str, Any]]], block_size: int = 0
) -> dict[str, Any]:
    """The manifest of a set; ``shards`` are the entries that ``ShardWriter.close`` returned, by split.

    ``block_size``: of packed documents; 0 for text.
    """
    counts = (*COUNTS, *PACKED_COUNTS) if block_size else COUNTS
    total = {split: {key: sum(s[key] for s in shards[split]) for key in counts} for split in SPLITS}
    digest = hashlib.sha256(fingerprint.encode())
    for split in SPLITS:
        digest.update("".join(f"{split} {s['sha256']}\n" for s in shards[split]).encode())
    return {
        "format": SET_FORMAT,
        "version": PACKED if block_size else VERSION,
        **({"block_size": block_size} if block_size else {}),
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
    packed = tree.get("version") == PACKED
    if not packed and tree.get("version") != VERSION:
        raise UserError(f"{path}: version {tree.get('version')!r}, this program reads {VERSION} and {PACKED}; {FIX}")
    try:
        block_size = tree["block_size"] if packed else 0
        if type(block_size) is not int or (packed and block_size < 1):
            raise TypeError(block_size)
        counts = (*COUNTS, *PACKED_COUNTS) if packed else COUNTS
        for split in SPLITS:
            for s in tree["shards"][split]:
                name = str(s["file"])
                fine = Path(name).name == name and all(type(s[k]) is int for k in counts)
                if not fine or not isinstance(s["sha256"], str):
                    raise KeyError(name)
        mark, vocab = tree["tokenizer"]["fingerprint"], tree["tokenizer"]["vocab_size"]
        same = new_manifest(vocab, mark, {split: tree["shards"][split] for split in SPLITS}, block_size)
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
    block_size: int = 0  # of packed documents; 0: text, which is read at any

    @classmethod
    def open(cls, folder: str | Path, split: str, tokenizer_fingerprint: str | None = None) -> TokenSet:
        """Opens ``train`` or ``val``; raises UserError if anything in the folder is not what the manifest says."""
        assert split in SPLITS, split
        folder = Path(folder)
        tree = read_manifest(folder)
        mark, vocab = tree["tokenizer"]["fingerprint"], tree["tokenizer"]["vocab_size"]
        block_size: int = tree.get("block_size", 0)
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
            found = [len(shard.tokens), len(shard.starts), shard.text_bytes, shard.answers, shard.padding]
            wanted = [entry.get(key, 0) for key in (*COUNTS, *PACKED_COUNTS)]
            if found != wanted or shard.row != (block_size + 1 if block_size else 0):
                raise UserError(f"{shard.path}: not the file that {folder}/manifest.json describes; {FIX}")
            shards.append(shard)
        return cls(
            folder=folder,
            split=split,
            shards=tuple(shards),
            fingerprint=tree["fingerprint"],
            tokenizer_fingerprint=mark,
            vocab_size=vocab,
            block_size=block_size,
        )

    @property
    def tokens(self) -> int:
        return sum(len(s.tokens) for s in self.shards)

    @property
    def text_bytes(self) -> int:
        return sum(s.text_bytes for s in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token that carries loss, for bits per byte."""
        return self.text_bytes / max(1, sum(s.answers for s in self.shards) if self.block_size else self.tokens)
