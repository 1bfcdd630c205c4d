"""Byte-level BPE tokenizers in the files of Hugging Face: `tokenizer.json` and its companions, both ways.

Read are `tokenizer.json` (tokens, merges, pre-tokeniser, normaliser), `tokenizer_config.json` (end, beginning, chat
template), `chat_template.jinja`, `special_tokens_map.json`, `generation_config.json` and `config.json` (ids that end an
answer). What a BPETokenizer cannot do exactly as the `tokenizers` library does is refused with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nano_ds.errors import UserError
from nano_ds.files import read_json, write_json
from nano_ds.tokenizer.bpe import BPETokenizer
from nano_ds.tokenizer.byte_chars import read, spell
from nano_ds.tokenizer.pre import PATTERNS

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
WHAT = "a tokenizer.json of Hugging Face"


def read_hf_tokenizer(folder: str | Path) -> BPETokenizer:
    """The tokenizer of a Hugging Face model directory.

    Raises:
        UserError: a file is missing or damaged, or asks for something that byte-level BPE here does not do.
    """
    folder = Path(folder)
    source = str(folder / TOKENIZER)
    tree = read_json(source, WHAT)
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise UserError(f"{source}: has no model; expected {WHAT}")
    config = _companion(folder / CONFIG)
    tokens, merges, special, added = _vocabulary(tree, config, source)
    ids = {t: i for i, t in enumerate(tokens)}
    ids |= {tokens[i]: i for i in (*added, *special)}
    eos, stop = _ends(folder, config, ids, len(tokens), source)
    bos = _named(folder, config, "bos_token", ids, source)
    leading = _leading(tree.get("post_processor"), source)
    if leading is not None and leading not in ids:
        raise UserError(f"{source}: post_processor puts {leading!r} first, which is no token")
    add_bos = leading is not None or (config.get("add_bos_token") is True and bos is not None)
    tokenizer = BPETokenizer(
        tokens,
        merges,
        _pre(tree.get("pre_tokenizer"), source),
        normalize=_normalize(tree.get("normalizer"), source),
        ignore_merges=tree["model"].get("ignore_merges") is True,
        special=special,
        added=added,
        eos=eos,
        bos=ids[leading] if leading is not None else bos,
        add_bos=add_bos,
        stop=stop,
        chat_template=_template(folder, config),
        source=source,
    )
    if tokenizer.missing_bytes and tree["model"].get("unk_token") is not None:
        raise UserError(
            f"{source}: lacks {len(tokenizer.missing_bytes)} of the 256 bytes and turns them into unk_token "
            f"{tree['model']['unk_token']!r}, which nano_ds cannot do (it leaves such bytes out)"
        )
    _check_search(_added(tree, config, source), tokenizer.normalize, source)
    return tokenizer


def write_hf_tokenizer(tokenizer: BPETokenizer, folder: str | Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` (with the chat template) into ``folder``.

    `tokenizers.Tokenizer.from_file` and `transformers.AutoTokenizer` give the same ids with them. The ids that end an
    answer (``tokenizer.stop_ids``) belong into `generation_config.json`, which goes with the model.

    Raises:
        UserError: two tokens have the same bytes, which the format cannot hold.
    """
    folder = Path(folder)
    marks = sorted({*tokenizer.special.values(), *tokenizer.added})
    is_mark = set(marks)
    ordinary = [i for i in range(tokenizer.vocab_size) if i not in is_mark]
    # Marks behind all other tokens stand in added_tokens alone; others need their place in the vocabulary.
    tail = ordinary[-1] if ordinary else -1
    vocab: dict[str, int] = {}
    for id in range(tail + 1):
        text = tokenizer.tokens[id] if id in is_mark else spell(tokenizer.token_bytes(id))
        if text in vocab:
            raise UserError(
                f"tokens {vocab[text]} and {id} are both {text!r}, and Hugging Face's format holds each once; "
                "export to .gguf instead"
            )
        vocab[text] = id
    spelled = {id: text for text, id in vocab.items()}
    special = set(tokenizer.special.values())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokenizer.tokens[i], **flags, "special": i in special} for i in marks],
        "normalizer": {"type": "NFC"} if tokenizer.normalize == "nfc" else None,
        "pre_tokenizer": _pre_tree(tokenizer.pre),
        "post_processor": _post_tree(tokenizer) or byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": tokenizer.ignore_merges,
            "vocab": vocab,
            "merges": [[spelled[a], spelled[b]] for a, b in tokenizer.merges.tolist()],
        },
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    for key, named in (("eos_token", tokenizer.eos), ("bos_token", tokenizer.bos)):
        config[key] = None if named is None else tokenizer.tokens[named]
    if "<|padding|>" in tokenizer.special:
        config["pad_token"] = "<|padding|>"
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    write_json(folder / TOKENIZER, tree)
    write_json(folder / CONFIG, config)


def _vocabulary(
    tree: Mapping[str, Any], config: Mapping[str, Any], source: str
) -> tuple[list[str], list[list[int]], list[int], list[int]]:
    """Tokens by id, merges as ids, special ids, ids of other added tokens."""
    model = tree["model"]
    _check_model(model, tree.get("decoder"), source)
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise UserError(f"{source}: model.vocab must map tokens to ids and model.merges be a list; the file is damaged")
    marks = _added(tree, config, source)
    by_id: dict[int, str] = {}
    for text, id in vocab.items():
        if type(id) is not int or id < 0:
            raise UserError(f"{source}: token {text!r} has id {id!r}; ids are whole numbers from 0")
        if id in by_id:
            raise UserError(f"{source}: tokens {by_id[id]!r} and {text!r} share id {id}; the file is damaged")
        by_id[id] = text
    for id, mark in marks.items():
        if by_id.setdefault(id, mark["content"]) != mark["content"]:
            raise UserError(f"{source}: id {id} is {by_id[id]!r} and added token {mark['content']!r}; mend one of them")
        if vocab.get(mark["content"], id) != id:
            raise UserError(
                f"{source}: {mark['content']!r} has ids {vocab[mark['content']]} and {id}; mend one of them"
            )
    gap = next((i for i in range(len(by_id)) if i not in by_id), None)
    if gap is not None:
        raise UserError(f"{source}: no token has id {gap}, though there are higher ones; ids must have no gaps")
    tokens = []
    for id in range(len(by_id)):
        data = None if id in marks else read(by_id[id])
        # What spells no bytes is never made from text; it keeps its place.
        tokens.append(by_id[id] if data is None else data.decode("utf-8", "surrogateescape"))
    pairs = []
    for k, entry in enumerate(merges):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(t, str) and t in vocab for t in pair):
            raise UserError(f"{source}: merge {k} is {entry!r}, not two tokens of the vocabulary")
        pairs.append([vocab[pair[0]], vocab[pair[1]]])
    special = [i for i, mark in marks.items() if mark.get("special")]
    return tokens, pairs, special, [i for i in marks if i not in special]


def _check_model(model: Mapping[str, Any], decoder: Any, source: str) -> None:
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise UserError(f"{source}: a {kind} model; nano_ds reads byte-level BPE")
    if model.get("byte_fallback"):
        raise UserError(
            f"{source}: BPE over characters with byte_fallback (SentencePiece); nano_ds reads byte-level BPE"
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(f"{source}: model.{key} is {model[key]!r}, which nano_ds cannot do")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        found = decoder.get("type") if isinstance(decoder, dict) else decoder
        raise UserError(f"{source}: decoder {found!r}; byte-level BPE has ByteLevel")


def _added(tree: Mapping[str, Any], config: Mapping[str, Any], source: str) -> dict[int, Mapping[str, Any]]:
    """Added tokens by id, of both files that may name them."""
    found: dict[int, Mapping[str, Any]] = {}
    listed = tree.get("added_tokens") or []
    more = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, list) or not isinstance(more, dict):
        raise UserError(f"{source}: added_tokens must be a list; the file is damaged")
    for mark in [
        *listed,
        *({"id": int(i), **m} for i, m in more.items() if str(i).isdecimal() and isinstance(m, dict)),
    ]:
        if not isinstance(mark, dict) or type(mark.get("id")) is not int or not isinstance(mark.get("content"), str):
            raise UserError(f"{source}: added token {mark!r} lacks id or content; the file is damaged")
        for flag in ("single_word", "lstrip", "rstrip"):
            if mark.get(flag):
                raise UserError(f"{source}: added token {mark['content']!r} has {flag}, which nano_ds cannot do")
        if found.setdefault(mark["id"], mark)["content"] != mark["content"]:
            raise UserError(f"{source}: added token {mark['id']} is another in {CONFIG}; mend one of them")
    return dict(sorted(found.items()))


def _check_search(marks: Mapping[int, Mapping[str, Any]], normalize: str | None, source: str) -> None:
    """Raises UserError where searching all added tokens at once, in the text as it came, would find others.

    The `tokenizers` library searches those with "normalized" after the rest, in text already normalised.
    """
    late = [m["content"] for m in marks.values() if m.get("normalized")]
    if late and normalize:
        raise UserError(f"{source}: added token {late[0]!r} is searched in normalised text, which nano_ds cannot do")
    for a in late:
        for b in (m["content"] for m in marks.values() if not m.get("normalized")):
            shared = range(1, min(len(a), len(b)) + 1)
            if a in b or b in a or any(a.endswith(b[:k]) or b.endswith(a[:k]) for k in shared):
                raise UserError(f"{source}: added tokens {a!r} and {b!r} overlap, and {a!r} is searched later; mend it")


def _normalize(tree: Any, source: str) -> str | None:
    steps = tree["normalizers"] if isinstance(tree, dict) and tree.get("type") == "Sequence" else [tree] if tree else []
    kinds = [s.get("type") for s in steps]
    if kinds not in ([], ["NFC"]):
        raise UserError(f"{source}: normaliser {', '.join(map(str, kinds))}; nano_ds does NFC or none")
    return "nfc" if kinds else None


def _pre(tree: Any, source: str) -> str:
    """The name of a pre-tokeniser of Hugging Face."""
    steps = (
        tree["pretokenizers"] if isinstance(tree, dict) and tree.get("type") == "Sequence" else [tree] if tree else []
    )
    kinds = [s.get("type") for s in steps]
    if kinds and kinds[-1] == "ByteLevel":
        if steps[-1].get("add_prefix_space"):
            raise UserError(f"{source}: pre-tokeniser with add_prefix_space, which nano_ds cannot do")
        cuts = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and cuts:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and cuts and steps[0].get("individual_digits"):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not cuts and steps[0].get("behavior") == "Isolated":
            given = (steps[0].get("pattern") or {}).get("Regex")
            for name, known in PATTERNS.items():
                if given == known and not steps[0].get("invert"):
                    return name
            raise UserError(f"{source}: pre-tokeniser {given!r} is not one that nano_ds knows ({', '.join(PATTERNS)})")
    named = " + ".join(map(str, kinds)) or "none"
    raise UserError(f"{source}: pre-tokeniser {named} is not one that nano_ds knows ({', '.join(PATTERNS)})")


def _pre_tree(pre: str) -> dict[str, Any]:
    """The inverse of ``_pre``."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    if pre == "gpt-2":
        return {**byte_level, "use_regex": True}
    if pre == "smollm":
        first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
    else:
        first = {"type": "Split", "pattern": {"Regex": PATTERNS[pre]}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [first, {**byte_level, "use_regex": pre == "smollm"}]}


def _leading(tree: Any, source: str) -> str | None:
    """The token that a post-processor puts before every text, if any."""
    steps = tree["processors"] if isinstance(tree, dict) and tree.get("type") == "Sequence" else [tree] if tree else []
    leading = None
    for step in steps:
        if step.get("type") == "ByteLevel":
            continue
        parts = step.get("single") if step.get("type") == "TemplateProcessing" else None
        names = [p["SpecialToken"]["id"] if "SpecialToken" in p else None for p in parts] if parts else []
        if names not in ([None], [*names[:1], None]) or leading is not None:
            raise UserError(f"{source}: post_processor {step.get('type')} does more than put one token before the text")
        leading = names[0]
    return leading


def _post_tree(tokenizer: BPETokenizer) -> dict[str, Any] | None:
    if not tokenizer.add_bos or tokenizer.bos is None:
        return None
    token = tokenizer.tokens[tokenizer.bos]
    first: dict[str, Any] = {"SpecialToken": {"id": token, "type_id": 0}}
    single = [first, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    names = {token: {"id": token, "ids": [tokenizer.bos], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": names}


def _companion(path: Path) -> dict[str, Any]:
    """A JSON object beside tokenizer.json; empty where there is none."""
    if not path.exists():
        return {}
    tree = read_json(path, "a JSON object of Hugging Face")
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}; expected a JSON object of Hugging Face")
    return tree


def _named(folder: Path, config: Mapping[str, Any], key: str, ids: Mapping[str, int], source: str) -> int | None:
    """The id of `eos_token` or `bos_token`, a string or an object with "content"."""
    for tree in (config, _companion(folder / "special_tokens_map.json")):
        token = tree.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if token not in ids:
                raise UserError(f"{source}: {key} {token!r} is no token of the vocabulary; mend {CONFIG}")
            return ids[token]
    return None


def _ends(
    folder: Path, config: Mapping[str, Any], ids: Mapping[str, int], size: int, source: str
) -> tuple[int | None, list[int]]:
    """The token that ends a document, and those that end an answer."""
    stop: list[int] = []
    for name in ("generation_config.json", "config.json"):
        given = _companion(folder / name).get("eos_token_id")
        stop += [i for i in (given if isinstance(given, list) else [given]) if type(i) is int]
    stop = [i for i in dict.fromkeys(stop) if i < size]
    eos = _named(folder, config, "eos_token", ids, source)
    return (stop[0] if eos is None and stop else eos), stop


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, a string, or the one of several that is called "default"."""
    if (folder / TEMPLATE).exists():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    given = config.get("chat_template")
    if isinstance(given, list):
        given = next((t.get("template") for t in given if isinstance(t, dict) and t.get("name") == "default"), None)
    return given if isinstance(given, str) else None
