"""A byte-level BPE vocabulary small enough to read: 256 bytes, a few merges, special and added tokens."""

from __future__ import annotations

from nano_ds.tokenizer.bpe import BPETokenizer


def byte_level(pre: str) -> BPETokenizer:
    tokens = [chr(b) if b < 0x80 else chr(0xDC00 + b) for b in range(256)]
    merges: list[tuple[int, int]] = []
    ids = {token.encode("utf-8", "surrogateescape"): i for i, token in enumerate(tokens)}

    def merge(left: bytes, right: bytes) -> None:
        merges.append((ids[left], ids[right]))
        ids[left + right] = len(tokens)
        tokens.append((left + right).decode("utf-8", "surrogateescape"))

    for left, right in ((b" ", b"t"), (b" t", b"h"), (b" th", b"e"), (b"i", b"n"), (b"in", b"g")):
        merge(left, right)
    for left, right in ((b"\xe7", b"\x8c"), (b"\xe7\x8c", b"\xab")):
        merge(left, right)
    eos, end, think = len(tokens), len(tokens) + 1, len(tokens) + 2
    return BPETokenizer(
        [*tokens, "<|endoftext|>", "<|im_end|>", "<think>"],
        merges,
        pre,
        normalize="nfc" if pre == "qwen2" else None,
        ignore_merges=pre == "llama-bpe",
        special=[eos, end],
        added=[think],
        eos=eos,
        bos=eos,
        add_bos=pre == "llama-bpe",
        stop=[end],
        chat_template="{{ messages }}",
    )
