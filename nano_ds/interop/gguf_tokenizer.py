r"""Tokenizers inside GGUF: tries as `rwkv`, byte-level BPE as `gpt2`, both ways.

`rwkv` is greedy longest match over bytes, which is what a trie with the 256 byte tokens does. Tokens are spelled with
backslashes: ``\\``, ``\t``, ``\n``, ``\r``, and ``\x`` with two digits of lower case for whatever is not plain UTF-8.
`gpt2` spells the bytes of tokens and merges in GPT-2's alphabet, and special and added tokens as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from nano_ds.errors import UserError
from nano_ds.interop.gguf_file import single
from nano_ds.tokenizer import Tokenizer, TrieTokenizer
from nano_ds.tokenizer.bpe import BPETokenizer
from nano_ds.tokenizer.byte_chars import read, spell

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
K = "tokenizer.ggml."
OWN = "nano_ds.tokenizer."
# Names by which other programs know our pre-tokenisers.
PRE = {n: n for n in ("gpt-2", "smollm", "llama-bpe", "qwen2")}
PRE |= {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
# Tokens that end an answer by their name alone, as llama.cpp has it: files list one of them, models use several.
ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")
LOSING = "import the weights alone with --no-tokenizer"

# Nano's instruct template in Jinja. It knows no system role: a system message goes before the next question.
NANO_TEMPLATE = (
    "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = ns.system + message['content'] + '\\n' %}{% elif message['role'] == 'user' %}"
    "{{ '<|instruct_mark|>' + ns.system + message['content'] + '<|response_mark|>' }}{% set ns.system = '' %}"
    "{% else %}{{ message['content'] + '<|eos|>' }}{% endif %}{% endfor %}"
)


def tokenizer_metadata(tokenizer: Tokenizer | None, vocab_size: int) -> tuple[dict[str, Any], list[str]]:
    """The ``tokenizer.*`` keys of a model with ``vocab_size`` embeddings, and what its user should know.

    Raises:
        UserError: the tokenizer has more tokens than the model.
    """
    if tokenizer is None:
        return {f"{K}model": "no_vocab"}, ["no tokenizer: programs can feed it ids only"]
    spare = vocab_size - tokenizer.vocab_size
    if spare < 0:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}; they do not belong")
    if isinstance(tokenizer, BPETokenizer):
        values, types, remarks = _from_bpe(tokenizer)
    else:
        assert isinstance(tokenizer, TrieTokenizer), type(tokenizer)
        values, types, remarks = _from_trie(tokenizer)
    # A file has as many tokens as embeddings; those without a meaning are called so by convention.
    values[f"{K}tokens"] += [f"[PAD{i}]" for i in range(tokenizer.vocab_size, vocab_size)]
    values[f"{K}token_type"] = np.array(types + [UNUSED] * spare, np.int32)
    return values, remarks


def _from_trie(t: TrieTokenizer) -> tuple[dict[str, Any], list[int], list[str]]:
    special = set(t.special.values())
    values: dict[str, Any] = {
        f"{K}model": "rwkv",
        f"{K}tokens": [escape(t.token_bytes(i)) for i in range(t.vocab_size)],
    }
    names = {"bos": "<|bos|>", "eos": "<|eos|>", "unknown": "<|unknown|>", "padding": "<|padding|>"}
    for key, name in names.items():
        if name in t.special:
            values[f"{K}{key}_token_id"] = t.special[name]
    values[f"{K}add_bos_token"] = False
    if {"<|instruct_mark|>", "<|response_mark|>", "<|eos|>"} <= t.special.keys():
        values["tokenizer.chat_template"] = NANO_TEMPLATE
    remarks = []
    if not t.has_bytes:
        remarks.append(
            "the vocabulary lacks byte tokens: llama.cpp never ends on characters it does not know; nano-infer does"
        )
    return values, [CONTROL if i in special else NORMAL for i in range(t.vocab_size)], remarks


def _from_bpe(t: BPETokenizer) -> tuple[dict[str, Any], list[int], list[str]]:
    special, added = set(t.special.values()), set(t.added)
    types = [CONTROL if i in special else USER_DEFINED if i in added else NORMAL for i in range(t.vocab_size)]
    spelled = [spell(t.token_bytes(i)) for i in range(t.vocab_size)]
    values: dict[str, Any] = {
        f"{K}model": "gpt2",
        f"{K}pre": t.pre,
        f"{K}tokens": [spelled[i] if types[i] == NORMAL else t.tokens[i] for i in range(t.vocab_size)],
        f"{K}merges": [f"{spelled[a]} {spelled[b]}" for a, b in t.merges.tolist()],
        f"{K}add_bos_token": t.add_bos,
        f"{OWN}normalize": t.normalize or "none",
        f"{OWN}ignore_merges": t.ignore_merges,
        f"{OWN}stop": np.array(t.stop, np.int32),
    }
    if t.bos is not None:
        values[f"{K}bos_token_id"] = t.bos
    if t.eos is not None:
        values[f"{K}eos_token_id"] = t.eos
        values[f"{K}padding_token_id"] = t.eos
    if others := [i for i in t.stop if i != t.eos]:
        values[f"{K}eot_token_id"] = others[0]
    if t.chat_template:
        values["tokenizer.chat_template"] = t.chat_template
    remarks = []
    if t.normalize:
        remarks.append(f"llama.cpp does not normalise text ({t.normalize}); nano-infer does")
    if t.ignore_merges != (t.pre == "llama-bpe"):
        remarks.append(
            "llama.cpp decides by the pre-tokeniser's name whether whole words skip the merges: ids may differ"
        )
    return values, types, remarks


def escape(token: bytes) -> str:
    """A token as `rwkv` spells it."""
    out = []
    for char in token.decode("utf-8", "surrogateescape"):
        if char == "\\" or char in "\t\n\r":
            out.append({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}[char])
        elif "\udc80" <= char <= "\udcff":
            out.append(f"\\x{ord(char) - 0xDC00:02x}")
        elif char < " " or char == "\x7f":
            out.append(f"\\x{ord(char):02x}")
        else:
            out.append(char)
    return "".join(out)


_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|(.))", re.DOTALL)


def unescape(text: str) -> bytes:
    """The inverse of ``escape``; knows every backslash that llama.cpp knows."""
    plain = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}

    def one(found: re.Match[bytes]) -> bytes:
        return bytes([int(found[1], 16)]) if found[1] else plain.get(found[2], found[2])

    return _ESCAPE.sub(one, text.encode("utf-8", "surrogateescape"))


def read_tokenizer(metadata: Mapping[str, Any], vocab_size: int, source: str) -> Tokenizer | None:
    """The tokenizer of a file whose model has ``vocab_size`` embeddings; None where it says that it has none.

    Raises:
        UserError: it is of a kind that nano_ds has not, or damaged; the message names the way round.
    """
    kind = single(metadata, f"{K}model")
    if kind in ("no_vocab", "none"):
        return None
    if kind not in ("rwkv", "gpt2"):
        raise UserError(
            f"{source}: its tokenizer is {_called(kind)}; nano_ds has BPE over bytes (gpt2) and tries; {LOSING}"
        )
    tokens = metadata.get(f"{K}tokens")
    if not _texts(tokens) or len(tokens) != vocab_size:
        found = f"{len(tokens)} texts" if _texts(tokens) else "none"
        raise UserError(f"{source}: {K}tokens: expected {vocab_size} texts, one per embedding, found {found}")
    types = _types(metadata, len(tokens), source)
    tokens = list(tokens)
    while tokens and types[len(tokens) - 1] == UNUSED and tokens[-1] == f"[PAD{len(tokens) - 1}]":
        tokens.pop()
    types = types[: len(tokens)]
    return (_to_trie if kind == "rwkv" else _to_bpe)(metadata, tokens, types, source)


def _to_trie(metadata: Mapping[str, Any], tokens: list[str], types: list[int], source: str) -> TrieTokenizer:
    texts = [unescape(t).decode("utf-8", "surrogateescape") for t in tokens]
    return TrieTokenizer(texts, [i for i, t in enumerate(types) if t in (CONTROL, UNKNOWN)], source)


def _to_bpe(metadata: Mapping[str, Any], tokens: list[str], types: list[int], source: str) -> BPETokenizer:
    pre = single(metadata, f"{K}pre")
    if pre not in PRE:
        raise UserError(f"{source}: pre-tokeniser {pre!r}; nano_ds has {', '.join(PRE)}; {LOSING}")
    merges = metadata.get(f"{K}merges")
    if not _texts(merges):
        raise UserError(f"{source}: {K}merges is missing; without it no text can be encoded; {LOSING}")
    texts: list[str] = []
    ids: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind not in (NORMAL, BYTE):
            texts.append(token)
            continue
        data = read(token)
        if not data:
            raise UserError(
                f"{source}: token {i} {token!r} is not spelled in GPT-2's byte alphabet; the file is damaged"
            )
        texts.append(data.decode("utf-8", "surrogateescape"))
        ids.setdefault(token, i)
    special = [i for i, t in enumerate(types) if t in (CONTROL, UNKNOWN, UNUSED)]
    template = metadata.get("tokenizer.chat_template")
    bos, eos = (_id(metadata, f"{K}{n}_token_id", len(tokens), source) for n in ("bos", "eos"))
    normalize = single(
        metadata, f"{OWN}normalize", "nfc" if PRE[pre] == "qwen2" else "none"
    )  # as Qwen's tokenizer.json
    return BPETokenizer(
        texts,
        _merge_ids(merges, ids, source),
        PRE[pre],
        normalize=None if normalize == "none" else normalize,
        ignore_merges=metadata.get(f"{OWN}ignore_merges", PRE[pre] == "llama-bpe") is True,
        special=special,
        added=[i for i, t in enumerate(types) if t == USER_DEFINED],
        eos=eos,
        bos=bos,
        add_bos=bos is not None and metadata.get(f"{K}add_bos_token", PRE[pre] == "llama-bpe") is True,
        stop=_stops(metadata, tokens, special, eos, source),
        chat_template=template if isinstance(template, str) and template else None,
        source=source,
    )


def _merge_ids(merges: Sequence[str], ids: Mapping[str, int], source: str) -> np.ndarray:
    pairs = np.empty((len(merges), 2), np.int64)
    for k, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids:
            raise UserError(f"{source}: merge {k} {merge!r} does not join two tokens; the file is damaged")
        pairs[k] = ids[left], ids[right]
    return pairs


def _stops(
    metadata: Mapping[str, Any], tokens: Sequence[str], special: Sequence[int], eos: int | None, source: str
) -> list[int]:
    """What ends an answer beside ``eos``: what our own key says, else the keys and names that llama.cpp knows."""
    own = metadata.get(f"{OWN}stop")
    if isinstance(own, np.ndarray):
        return [int(i) for i in own]
    found = [_id(metadata, f"{K}{n}_token_id", len(tokens), source) for n in ("eot", "eom")]
    found += [i for i in special if tokens[i] in ENDS]
    return [i for i in dict.fromkeys(found) if i is not None and i != eos]


def _types(metadata: Mapping[str, Any], count: int, source: str) -> list[int]:
    types = metadata.get(f"{K}token_type")
    if types is None:
        return [NORMAL] * count
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != count:
        raise UserError(f"{source}: {K}token_type: expected {count} whole numbers; the file is damaged")
    listed: list[int] = types.tolist()
    if wrong := sorted(set(listed) - set(range(NORMAL, BYTE + 1))):
        raise UserError(f"{source}: {K}token_type: {wrong[0]} is none of 1 to 6; the file is damaged")
    return listed


def _id(metadata: Mapping[str, Any], key: str, count: int, source: str) -> int | None:
    id = metadata.get(key)
    if id is None:
        return None
    if type(id) is not int or not 0 <= id < count:
        raise UserError(f"{source}: {key} is {id!r}, outside the {count} tokens; the file is damaged")
    return id


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _called(kind: Any) -> str:
    names = {"llama": "SentencePiece", "bert": "WordPiece", "t5": "Unigram"}
    return f"{names[kind]} ({kind!r})" if kind in names else "missing" if kind is None else repr(kind)
