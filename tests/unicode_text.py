"""Random text over all characters that Python's Unicode tables know, and text that has broken tokenizers before."""

from __future__ import annotations

import random
import unicodedata
from functools import cache

NASTY = [
    "",
    " ",
    "  ",
    "\n",
    "a  b   c",
    "  \n\n \t x \r\n\r\n  ",
    " \u00a0\u2003x\u3000 \u0085y\u2028",
    "\x00\x01\x04\x1c\x1d\x1e\x1f \x7f",
    "don't DON'T we'LL they'Ve 'S ''s 'ſ 'K'm'd",
    "1234567 12 ٣٤٥ ½ Ⅷ ²³ 一二三",
    "x1y22z333  4444 5",
    " 1  2   3\n4",
    "naïve café ﬁ ǅ ʰ ª",
    "e\u0301 \u0301 a\u0323\u0307 \u212b \u1100\u1161\u11a8 \ufb1d \u0344",
    "猫坐在垫子上。「はい」、한국어 조선말",
    "हिन्दी ไทย العربية עברית",
    "👩‍👩‍👧 👍🏽 🇩🇪 ❤️ \U0001f9d1\u200d",
    "\u200b\u200c\u200d\ufeff\u2060 \u180e",
    "!!!???...---___***\n\n\n###   ;;;",
    "\t\tif (x != y) { return a[i]++; }  // 0x1F\n",
    "<|eos|> <|im_start|> <think> </think> <|endoftext|",
    "\ufffd\ufffe\U0010ffff\ue000\U000f0000",
    "a" * 300,
    "ab" * 200 + " " * 130 + "\n" * 70,
    "ÀÁ" * 90,
]


@cache
def assigned() -> list[str]:
    """Every character but the surrogates that has a category in `unicodedata`."""
    return [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs")]


def random_text(rng: random.Random, longest: int = 24) -> str:
    """A few runs of characters of one sort each: ASCII, spaces, digits, one script, marks, anything."""
    every = assigned()
    parts = []
    for _ in range(rng.randint(1, 6)):
        sort, n = rng.randrange(8), rng.randint(1, max(1, longest // 4))
        if sort == 0:
            parts.append("".join(rng.choices(every, k=n)))
        elif sort == 1:
            at = rng.randrange(len(every))
            parts.append("".join(rng.choices(every[at : at + 64], k=n)))
        elif sort == 2:
            parts.append("".join(rng.choices(" \n\t\r\u00a0\u3000", k=n)))
        elif sort == 3:
            parts.append("".join(rng.choices("0123456789٣½Ⅷ", k=n)))
        elif sort == 4:
            parts.append(rng.choice(["'s", "'T", "'re", "'VE", "'ll", "n't", " '", "’s"]))
        elif sort == 5:
            parts.append("".join(rng.choices("aeo\u0301\u0323\u0308\u0327é가\u1161한", k=n)))
        else:
            parts.append("".join(rng.choices(" abcdetinos.,-_(ABC", k=2 * n)))
    return "".join(parts)
