#!/usr/bin/env python3
"""Writes nano_ds/tokenizer/unassigned.py: the code points that are no characters in Unicode 16.

python tools/unassigned.py            # needs Unicode 16: Python 3.14, or pip install unicodedata2==16.0.0
python tools/unassigned.py --check    # only say whether the file is what this would write
"""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

VERSION = "16.0.0"
OUT = Path(__file__).resolve().parent.parent / "nano_ds" / "tokenizer" / "unassigned.py"
HEAD = f'''"""Code points that Unicode {VERSION} does not assign. Made by tools/unassigned.py; do not edit.

The pre-tokenisers (pre.py) treat them as neither letter, number nor white space, as the regular expressions of
`tokenizers` and the tables of the C engine do, whatever a newer Unicode has made of them since.
"""

from __future__ import annotations

VERSION = "{VERSION}"
'''


def ranges(unicodedata) -> list[tuple[int, int]]:  # type: ignore[no-untyped-def]
    """First and last code point of each run."""
    found: list[tuple[int, int]] = []
    for code_point in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code_point)) == "Cn":
            if found and found[-1][1] == code_point - 1:
                found[-1] = found[-1][0], code_point
            else:
                found.append((code_point, code_point))
    return found


def contents(unicodedata) -> str:  # type: ignore[no-untyped-def]
    runs = " ".join(f"{a:x}-{b:x}" if a != b else f"{a:x}" for a, b in ranges(unicodedata))
    body = textwrap.fill(runs, 112, break_on_hyphens=False)
    return f'{HEAD}\nRUNS = """\n{textwrap.indent(body, "    ")}\n"""\n'


def main() -> int:
    for name in ("unicodedata2", "unicodedata"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if module.unidata_version == VERSION:
            made = contents(module)
            if "--check" not in sys.argv:
                OUT.write_text(made)
            elif OUT.read_text() != made:
                print(f"{OUT} is not what this tool writes", file=sys.stderr)
                return 1
            return 0
    print(f"no Unicode {VERSION} here: pip install unicodedata2=={VERSION}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
