"""The printable characters by which GPT-2's files (Hugging Face, GGUF) spell the 256 bytes in tokens and merges.

Printable characters of Latin-1 stand for themselves; the other 68 bytes, in order, are U+0100, U+0101, …
(so a space is U+0120, "Ġ").
"""

from __future__ import annotations


def _table() -> list[str]:
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b if b in itself else next(others)) for b in range(256)]


CHARS = _table()  # by byte
_SPELL = {b: c for b, c in enumerate(CHARS)}
_READ = {c: b for b, c in enumerate(CHARS)}


def spell(data: bytes) -> str:
    """Each byte as its character."""
    return data.decode("latin-1").translate(_SPELL)


def read(text: str) -> bytes | None:
    """The bytes that ``text`` spells; None where it holds a character that spells none."""
    try:
        return bytes([_READ[c] for c in text])
    except KeyError:
        return None
