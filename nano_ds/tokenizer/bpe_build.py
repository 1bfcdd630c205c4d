"""Learns the merges of a byte-level BPE vocabulary from text, with the `rustbpe` package.

The vocabulary begins as a trie's does: Nano's special tokens (ids 0-6), the 256 bytes (7-262), then what the merges
make, in their order. `rustbpe` was taken over the trainer of `tokenizers`: the same merges but for ties, in a quarter
of the time on Chinese (8.4 s to 39 s for 6 MB and 4,096 tokens), and no further packages. It is optional: only learning
needs it.
"""

from __future__ import annotations

from collections.abc import Iterable

from nano_ds.errors import UserError
from nano_ds.tokenizer.bpe import BPETokenizer
from nano_ds.tokenizer.build import SMALLEST, SPECIAL, sample
from nano_ds.tokenizer.merges import merge
from nano_ds.tokenizer.pre import PATTERNS, check_name
from nano_ds.tokenizer.trie import byte_token, to_bytes

MOST_CHARS = 100_000_000  # of more text an even sample is used
INSTALL = "pip install 'rustbpe>=0.1,<1'"


def build_bpe(documents: Iterable[str], vocab_size: int, pre: str = "gpt-2", total_chars: int = 0) -> BPETokenizer:
    """A vocabulary of ``vocab_size`` tokens (fewer if the text has no more pairs to merge).

    The same text in the same order gives the same vocabulary.

    Args:
        pre: the pre-tokeniser; "qwen2" keeps single digits, "llama-bpe" up to three together.
        total_chars: roughly how much text is coming; of more than 100 M characters an even sample is used.

    Raises:
        UserError: too small a size, no text, an unknown pre-tokeniser, or rustbpe is not installed.
    """
    check_trainer()
    check_name(pre, "--pre")
    if vocab_size < SMALLEST:
        raise UserError(f"--vocab-size: {vocab_size} leaves no room for {SMALLEST} special and byte tokens; take more")
    texts = sample(documents, MOST_CHARS / total_chars if total_chars > MOST_CHARS else 1.0)
    if not any(texts):
        raise UserError("no text to build a vocabulary from; give files that hold some")
    learned = _learn(texts, vocab_size - len(SPECIAL), PATTERNS[pre])
    first = len(SPECIAL)
    merges: list[list[int]] = []
    table: dict[tuple[int, int], tuple[int, int]] = {}
    for id, token in enumerate(learned, start=SMALLEST):
        # The two tokens that this one was merged from: what the merges before it leave of its bytes.
        (left, right), _ = merge([first + b for b in token], table)
        table[left, right] = (len(merges), id)
        merges.append([left, right])
    tokens = [*SPECIAL, *map(byte_token, range(256)), *(t.decode("utf-8", "surrogateescape") for t in learned)]
    special = range(len(SPECIAL))
    return BPETokenizer(
        tokens, merges, pre, special=special, eos=SPECIAL.index("<|eos|>"), bos=SPECIAL.index("<|bos|>")
    )


def check_trainer() -> None:
    """Raises UserError where `rustbpe` is missing: before any text is read."""
    try:
        import rustbpe  # noqa: F401
    except ImportError:
        raise UserError(f"learning a BPE vocabulary needs the rustbpe package; {INSTALL}") from None


def _learn(texts: Iterable[str], size: int, expression: str) -> list[bytes]:
    """The bytes of each token that merges make, in the order of the merges."""
    import rustbpe

    trainer = rustbpe.Tokenizer()
    valid = (to_bytes(t).decode("utf-8", "ignore") for t in texts)  # a byte that is no UTF-8 stays a token by itself
    trainer.train_from_iterator(valid, size, pattern=expression)
    ranked = sorted(trainer.get_mergeable_ranks(), key=lambda entry: entry[1])
    return [bytes(token) for token, _ in ranked[256:]]
