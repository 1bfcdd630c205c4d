"""Which reader a file or folder is for, by what is in it, and what each of them is called with."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nano_ds.errors import UserError
from nano_ds.model_dir import ADAPTER, META, ModelDir, shape_line

Facts = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line may say beside source and target; each kind takes its own few of them."""

    licence: str = ""
    base: ModelDir | None = None
    no_causal: bool = False
    no_tokenizer: bool = False
    tokenizer: str | None = None


def _bin(src: Path, out: Path, o: Options) -> Facts:
    from nano_ds.interop.nano_bin import NanoBin
    from nano_ds.interop.nano_bin_import import describe, import_adapter, import_model

    file = NanoBin(src, causal=not o.no_causal)
    lines = {"read": f"{src} ({describe(file.header)})"}
    if file.is_lora:
        _refuse(o, "no_causal", "models; this is an adapter")
        import_adapter(file, out, o.base)
        lines["adapter"] = f"rank {file.header.rank}, alpha {file.header.alpha}"
        lines["base"] = _base(o)
    else:
        _refuse(o, "base", f"adapters; {src} is a model")
        import_model(file, out, o.licence)
        lines["model"] = shape_line(file.config)
        lines["vocabulary"] = f"{len(file.vocabulary.tokens):,} tokens, {len(file.vocabulary.special)} special"
        if file.vocabulary.scores is not None:
            lines["vocabulary"] += "; merged by score, which cannot encode text here yet (the weights are complete)"
        lines["attention"] = "full" if o.no_causal else "causal (assumed: the file cannot say; else --no-causal)"
    for i, remark in enumerate(file.remarks):
        lines["note" if i == 0 else f"note {i + 1}"] = remark
    return lines


def _gguf(src: Path, out: Path, o: Options) -> Facts:
    from nano_ds.interop.gguf_adapter import import_adapter, is_adapter
    from nano_ds.interop.gguf_file import GGUFFile
    from nano_ds.interop.gguf_import import import_gguf

    if is_adapter(GGUFFile(src)):
        adapter = import_adapter(src, out, o.base)
        return {
            "read": f"{src} (GGUF LoRA for {adapter.architecture})",
            "adapter": f"rank {adapter.rank}, alpha {adapter.alpha:g}, on {len(adapter.linears)} layers",
            "base": _base(o),
        }
    _refuse(o, "base", f"adapters; {src} is a model")
    found = import_gguf(src, out, o.licence, with_tokenizer=not o.no_tokenizer)
    t = found.tokenizer
    special = f"{len(t.special)} special" if t else ""
    return {
        "read": f"{src} ({found.description})",
        "model": shape_line(found.config),
        "vocabulary": f"{t.vocab_size:,} tokens, {special}" if t else "none: it can only be fed ids",
    }


def _directory(src: Path, out: Path, o: Options) -> Facts:
    from nano_ds.interop.hf import import_hf
    from nano_ds.interop.peft import PEFT_CONFIG, import_peft

    if (src / PEFT_CONFIG).is_file():
        if o.base is None:
            raise UserError(f"{src}: is a PEFT adapter; say --base MODEL_DIR, the imported model that it belongs to")
        return import_peft(src, out, o.base)
    if (src / ADAPTER).is_file() or (src / META).is_file():
        raise UserError(f"{src}: is a directory of nano_ds already; use it as it is, or copy it")
    _refuse(o, "base", f"adapters; {src} is a model")
    return import_hf(src, out, o.licence)


def _pt(src: Path, out: Path, o: Options) -> Facts:
    from nano_ds.interop.pt import import_pt

    return import_pt(src, out, o.licence, tokenizer=o.tokenizer, base=o.base)


@dataclass(frozen=True)
class Kind:
    """A kind of source: its name (of many), how to know it, what reads it, the options that only some kinds take."""

    name: str
    is_it: Callable[[Path, bytes], bool]  # the path and a file's first 8 bytes
    read: Callable[[Path, Path, Options], Facts]
    takes: tuple[str, ...] = ()


KINDS = (
    Kind("directories", lambda path, head: path.is_dir(), _directory),
    Kind("GGUF files", lambda path, head: head[:4] == b"GGUF", _gguf, ("no_tokenizer",)),
    Kind("Nano .bin files", lambda path, head: head == b"S4DBMLRU", _bin, ("no_causal",)),
    Kind(
        ".pt files",
        lambda path, head: path.suffix == ".pt" or head[:1] == b"\x80" or zipfile.is_zipfile(path),
        _pt,
        ("tokenizer",),
    ),
)
FLAGS = {"no_causal": "--no-causal", "no_tokenizer": "--no-tokenizer", "tokenizer": "--tokenizer", "base": "--base"}


def import_any(src: Path, out: Path, options: Options) -> Facts:
    """Reads whatever ``src`` is into a model or adapter directory; returns facts to print.

    Raises:
        UserError: it is of no known kind, an option does not belong to its kind, or the kind's reader refuses it.
    """
    kind = _kind(src)
    for option in ("no_causal", "no_tokenizer", "tokenizer"):
        if option not in kind.takes:
            owner = next(k.name for k in KINDS if option in k.takes)
            _refuse(options, option, f"{owner}; {src} is none")
    facts = kind.read(src, out, options)
    base = options.base.path if options.base else "MODEL_DIR"
    hint = f"-m {base} -l {out}" if (out / ADAPTER).is_file() else f"-m {out}"
    return {**facts, "written": str(out), "next": f"python inference/generate.py {hint} TEXT"}


def _kind(src: Path) -> Kind:
    head = b""
    if not src.is_dir():
        try:
            with open(src, "rb") as f:
                head = f.read(8)
        except FileNotFoundError:
            raise UserError(f"{src}: no such file or folder") from None
        except OSError as e:
            raise UserError(f"{src}: cannot read it: {e.strerror}") from None
    for kind in KINDS:
        if kind.is_it(src, head):
            return kind
    if src.suffix == ".safetensors":
        raise UserError(f"{src}: holds weights only; name the folder that it is in, with its config.json")
    raise UserError(
        f"{src}: begins with {head!r}; nano_ds imports Nano .bin and .pt files, GGUF files and Hugging Face directories"
        + (" (it is empty)" if not head else "")
    )


def _refuse(options: Options, option: str, owner: str) -> None:
    if getattr(options, option):
        raise UserError(f"{FLAGS[option]}: belongs to {owner}")


def _base(o: Options) -> str:
    return str(o.base.path) if o.base else "not given: nothing stops you from using it with the wrong model"
