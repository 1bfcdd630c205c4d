#!/usr/bin/env python3
"""Writes runtime_c/src/unicode_tables.c: which characters are letters, numbers and white space, and what NFC needs.

    python tools/unicode_tables.py            # with the package unicodedata2 if it is there, else Python's unicodedata
    python tools/unicode_tables.py --check    # only say whether the file is what this would write

The file names the Unicode version it was made from: that of the regular expressions in Hugging Face's `tokenizers`,
whose ids the C engine must give, which is newer than most Pythons'. `unicode.h` explains the tables.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

OUT = Path(__file__).resolve().parent.parent / "runtime_c" / "src" / "unicode_tables.c"
SHIFT = 7  # 128 code points to a block
BLOCK = 1 << SHIFT
WIDTH = 110
OTHER, LETTER, NUMBER, SPACE = range(4)  # as in unicode.h
UNSTABLE = 255
# The property White_Space, which unicodedata does not have; unchanged since Unicode 6.3 (PropList.txt).
WHITE_SPACE = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F}
WHITE_SPACE |= {0x3000}
JAMO = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # vowels and final consonants that join what is before them


def modules() -> list[ModuleType]:
    """The Unicode databases at hand, the preferred one first."""
    found = []
    for name in ("unicodedata2", "unicodedata"):
        try:
            found.append(importlib.import_module(name))
        except ImportError:
            continue
    return found


def version_in(text: str) -> str:
    """The Unicode version that a generated file names."""
    match = re.search(r"Unicode (\d+\.\d+\.\d+)", text)
    assert match, "no Unicode version in the file"
    return match[1]


def class_of(u: ModuleType, code_point: int) -> int:
    if code_point in WHITE_SPACE:
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(u.category(chr(code_point))[0], OTHER)


def pairs(u: ModuleType) -> dict[int, tuple[int, int]]:
    """Canonical decompositions, one step each; the second is 0 where a character becomes one other."""
    found = {}
    for code_point in range(sys.maxunicode + 1):
        parts = u.decomposition(chr(code_point)).split()
        if parts and not parts[0].startswith("<"):
            first, second = (int(p, 16) for p in (*parts, "0")[:2])
            found[code_point] = (first, second)
    # nfc.c takes the second apart no further.
    assert not any(second in found for _, second in found.values())
    return found


def order_table(u: ModuleType, composed: dict[int, tuple[int, int]], joins: set[int]) -> Callable[[int], int]:
    """0 for characters that NFC leaves alone whatever is before them, else the combining class or UNSTABLE."""

    def order(code_point: int) -> int:
        combining: int = u.combining(chr(code_point))
        assert combining < UNSTABLE
        if combining:
            return combining
        char = chr(code_point)
        changes = code_point in composed and u.normalize("NFC", char) != char
        return UNSTABLE if changes or code_point in joins or code_point in JAMO else 0

    return order


def stages(values: Sequence[int]) -> tuple[list[int], list[Sequence[int]]]:
    """The index of each block and the distinct blocks, without the tail where all is 0."""
    end = max(i for i, value in enumerate(values) if value) // BLOCK + 1
    index: list[int] = []
    blocks: dict[Sequence[int], int] = {}
    for at in range(0, end * BLOCK, BLOCK):
        index.append(blocks.setdefault(tuple(values[at : at + BLOCK]), len(blocks)))
    assert len(blocks) <= 256
    return index, list(blocks)


def array(declaration: str, numbers: Iterable[str]) -> str:
    lines, line = [], "   "
    for number in numbers:
        if len(line) + len(number) + 2 > WIDTH:
            lines.append(line)
            line = "   "
        line += f" {number},"
    return "\n".join([f"const {declaration} = {{", *lines, line, "};"])


def tables(u: ModuleType) -> str:
    """The whole C file, from one Unicode database."""
    classes = [class_of(u, c) for c in range(sys.maxunicode + 1)]
    composed = pairs(u)
    joining = sorted(
        (c for c, (_, second) in composed.items() if second and u.normalize("NFC", chr(c)) == chr(c)),
        key=lambda c: composed[c],
    )
    order = order_table(u, composed, {composed[c][1] for c in joining})
    class_index, class_blocks = stages(classes)
    order_index, order_blocks = stages([order(c) for c in range(sys.maxunicode + 1)])
    packed = [
        sum(value << 2 * i for i, value in enumerate(block[at : at + 4]))
        for block in class_blocks
        for at in range(0, BLOCK, 4)
    ]
    row_of = {c: i for i, c in enumerate(composed)}
    parts = [
        f"""\
/* unicode_tables.c: made by tools/unicode_tables.py from Unicode {u.unidata_version}; do not edit. See unicode.h. */
#include "unicode.h"

/* clang-format off */
const uint32_t unicode_class_end = 0x{len(class_index) * BLOCK:X}, unicode_order_end = 0x{len(order_index) * BLOCK:X};
const uint32_t unicode_n_decompositions = {len(composed)}, unicode_n_compositions = {len(joining)};""",
        array(f"uint8_t unicode_ascii[{BLOCK}]", map(str, classes[:BLOCK])),
        array(f"uint8_t unicode_class_index[{len(class_index)}]", map(str, class_index)),
        array(f"uint8_t unicode_class_blocks[{len(packed)}]", map(str, packed)),
        array(f"uint8_t unicode_order_index[{len(order_index)}]", map(str, order_index)),
        array(
            f"uint8_t unicode_order_blocks[{len(order_blocks) * BLOCK}]",
            (str(value) for block in order_blocks for value in block),
        ),
        array(
            f"unicode_pair unicode_decompositions[{len(composed)}]",
            (f"{{0x{c:X}, 0x{first:X}, 0x{second:X}}}" for c, (first, second) in composed.items()),
        ),
        array(f"uint16_t unicode_compositions[{len(joining)}]", (str(row_of[c]) for c in joining)),
        "/* clang-format on */",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        print("usage: unicode_tables.py [--check]", file=sys.stderr)
        return 2
    u = modules()[0]
    text = tables(u)
    if sys.argv[1:]:
        same = OUT.read_text() == text
        print(f"{OUT.name}: {'as' if same else 'not as'} Unicode {u.unidata_version} makes it")
        return 0 if same else 1
    OUT.write_text(text)
    print(f"{OUT}: Unicode {u.unidata_version}, {len(text) // 1024} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
