"""Encoding speed of byte-level BPE: ours beside the `tokenizers` library, one thread each, on the same documents.

    python benchmarks/bpe.py HF_FOLDER TEXT…       # a folder with tokenizer.json of Hugging Face

Processor time for documents of 20,000 characters, caches cold, at most 6 MB of each file; the ids must be equal.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers

from nano_ds.interop.hf_tokenizer import read_hf_tokenizer

DOCUMENT = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with tokenizer.json of Hugging Face")
    parser.add_argument("texts", nargs="+", help="UTF-8 text files")
    args = parser.parse_args()
    ours = read_hf_tokenizer(args.folder)
    theirs = tokenizers.Tokenizer.from_file(str(Path(args.folder) / "tokenizer.json"))
    theirs.encode_special_tokens = True
    for name in args.texts:
        text = Path(name).read_bytes()[:6_000_000].decode("utf-8", "ignore")
        documents = [text[i : i + DOCUMENT] for i in range(0, len(text), DOCUMENT)]
        size = len(text.encode()) / 1e6
        started = time.process_time()
        made = [ours.encode_array(d) for d in documents]
        ours_s = time.process_time() - started
        started = time.process_time()
        wanted = [theirs.encode(d, add_special_tokens=False).ids for d in documents]
        theirs_s = time.process_time() - started
        assert [m.tolist() for m in made] == wanted, name
        print(f"{Path(name).name:<24} nano_ds {size / ours_s:5.1f} MB/s   tokenizers {size / theirs_s:5.1f} MB/s")


if __name__ == "__main__":
    main()
