"""What a model directory can become: one entry per target, with what it takes and what writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nano_ds.errors import UserError
from nano_ds.interop.adapters import Adapter, Merged
from nano_ds.interop.block_search import quantises_with_importance
from nano_ds.model_dir import AdapterDir, ModelDir, shape_line
from nano_ds.tokenizer import Tokenizer, load_tokenizer

Facts = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the command line asks for. ``model`` has its adapter merged in where that was asked for."""

    model: ModelDir
    out: Path
    quant: str = "f32"
    lora: Path | None = None  # write this adapter, not the model
    calibrate: Path | None = None
    no_tokenizer: bool = False
    bin_version: str | None = None
    group_size: int | None = None
    allow_noncausal: bool = False

    def importance(self) -> dict[str, np.ndarray] | None:
        if self.calibrate is None:
            return None
        from nano_ds.interop.importance import collect

        return collect(self.model, self.calibrate)


def _bin(job: Job) -> Facts:
    from nano_ds.interop.nano_bin_import import describe
    from nano_ds.interop.nano_bin_writer import write_model
    from nano_ds.interop.vocabulary import NANO_MAX_TOKEN, Vocabulary

    model = job.model
    if not model.tokenizer_path.exists():
        raise UserError(f"{model.tokenizer_path}: no such file; a .bin file needs the vocabulary inside")
    vocabulary = Vocabulary.load(model.tokenizer_path)
    header = write_model(
        job.out,
        model.config,
        model.tensors,
        vocabulary,
        version=job.bin_version or "2026.1",
        quant=job.quant,
        group_size=job.group_size,
        allow_noncausal=job.allow_noncausal,
        importance=job.importance(),
    )
    longest = max(map(len, vocabulary.tokens))
    lines = {
        "format": describe(header),
        "model": shape_line(model.config),
        "vocabulary": f"{len(vocabulary.tokens):,} tokens",
    }
    if longest > NANO_MAX_TOKEN:
        lines["note"] = f"tokens of up to {longest} characters; Nano's own programs take {NANO_MAX_TOKEN}, ours all"
    if not model.config.is_causal:
        lines["attention"] = "full; the file cannot say so, tell every program that reads it"
    return {**lines, "next": f"runtime_c/build/nano-infer run {job.out} -i TEXT"}


def _bin_adapter(job: Job, adapter: AdapterDir) -> Facts:
    from nano_ds.interop.nano_bin_import import describe
    from nano_ds.interop.nano_bin_writer import write_adapter

    header = write_adapter(job.out, adapter, job.model)
    hint = f"nano-infer run MODEL.bin -l {job.out} -i TEXT, with MODEL.bin exported from {job.model.path}"
    return {"format": describe(header), **_adapter_facts(job, adapter), "next": hint}


def _gguf(job: Job) -> Facts:
    from nano_ds.interop.gguf_export import write_gguf
    from nano_ds.interop.gguf_layout import NANO, type_summary

    model = job.model
    tokenizer = _tokenizer(job)
    done = write_gguf(job.out, model.config, model.tensors, tokenizer, model.meta, job.quant, job.importance())
    lines = {
        "format": f"GGUF, architecture {done.architecture}; matrices: {type_summary(done.types, model.config)}",
        "model": shape_line(model.config),
        "vocabulary": f"{tokenizer.vocab_size:,} tokens" if tokenizer else "none",
    }
    if done.architecture == NANO:
        lines["programs"] = f"ours only: llama.cpp has no architecture with {', '.join(done.reasons)}"
    for i, remark in enumerate(done.remarks):
        lines["note" if i == 0 else f"note {i + 1}"] = remark
    return {**lines, "next": f"runtime_c/build/nano-infer run {job.out} -i TEXT"}


def _gguf_adapter(job: Job, adapter: AdapterDir) -> Facts:
    from nano_ds.interop.gguf_adapter import write_adapter

    architecture = write_adapter(job.out, adapter, job.model)
    hint = f"nano-infer run MODEL.gguf -l {job.out} -i TEXT, with MODEL.gguf exported from {job.model.path}"
    return {"format": f"GGUF LoRA for {architecture}, f32", **_adapter_facts(job, adapter), "next": hint}


def _hf(job: Job) -> Facts:
    from nano_ds.interop.hf import export_hf

    facts = export_hf(job.model, job.out, job.quant)
    return {**facts, "next": f"transformers.AutoModelForCausalLM.from_pretrained({str(job.out)!r})"}


def _peft(job: Job, adapter: AdapterDir) -> Facts:
    from nano_ds.interop.peft import export_peft

    return export_peft(adapter, job.model, job.out)


@dataclass(frozen=True)
class Target:
    """A container: the number formats it has, what writes models and adapters into it, the options it alone takes."""

    quants: tuple[str, ...]
    model: Callable[[Job], Facts] | None
    adapter: Callable[[Job, AdapterDir], Facts] | None
    takes: tuple[str, ...] = ()
    folder: bool = False


TARGETS = {
    "bin": Target(
        ("f32", "q80", "q4k"), _bin, _bin_adapter, ("bin_version", "group_size", "allow_noncausal", "calibrate")
    ),
    "gguf": Target(("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k"), _gguf, _gguf_adapter, ("calibrate", "no_tokenizer")),
    "hf": Target(("f32", "bf16", "f16"), _hf, None, folder=True),
    "peft": Target(("f32",), None, _peft, folder=True),
}
QUANTS = tuple(dict.fromkeys(q for target in TARGETS.values() for q in target.quants))
OPTIONS = ("bin_version", "group_size", "allow_noncausal", "calibrate", "no_tokenizer")


def choose_target(to: str | None, out: Path, lora: bool) -> str:
    """The target that the command line means: --to, or the suffix of the file."""
    name = to or out.suffix.removeprefix(".")
    if name not in TARGETS:
        folders = " or ".join(f"--to {n}" for n, t in TARGETS.items() if t.folder)
        raise UserError(
            f"-o {out}: cannot write {out.suffix or 'a file without a suffix'}; name it {out.stem or 'model'}.bin or "
            f"{out.stem or 'model'}.gguf, or say {folders} for a directory"
        )
    target = TARGETS[name]
    if lora and target.adapter is None:
        raise UserError("--lora: an adapter goes to a directory with --to peft")
    if not lora and target.model is None:
        raise UserError(f"--to {name}: writes adapters; say which with --lora ADAPTER_DIR, or --to hf for the model")
    if not target.folder and out.is_dir():
        raise UserError(f"{out}: is a folder; -o names the file to write, such as {out / f'model.{name}'}")
    return name


def export_any(name: str, job: Job, merge: Path | None = None) -> Facts:
    """Writes ``job`` into the target ``name``; returns facts to print.

    Raises:
        UserError: an option does not belong to the target, or the target cannot hold the model.
    """
    target = TARGETS[name]
    for option in OPTIONS:
        if getattr(job, option) and option not in target.takes:
            owners = " and ".join(n for n, t in TARGETS.items() if option in t.takes)
            raise UserError(f"--{option.replace('_', '-')}: belongs to {owners}, not to {name}")
    if job.quant not in target.quants:
        raise UserError(f"--quant {job.quant}: {name} has {', '.join(target.quants)}")
    if job.calibrate and not quantises_with_importance(job.quant):
        raise UserError(f"--calibrate: {job.quant} makes no use of it; it belongs to types of four bits")
    if job.lora is not None:
        if job.quant != "f32" or merge:
            raise UserError(f"{'--merge' if merge else '--quant'}: belongs to models; adapters are written in float32")
        assert target.adapter is not None
        facts = target.adapter(job, AdapterDir(job.lora))
    else:
        assert target.model is not None
        if merge is not None:
            adapter = Adapter(merge, job.model)
            job.model.tensors = Merged(job.model.tensors, adapter)
        facts = target.model(job)
        if merge is not None:
            facts = {"merged": f"{merge}, rank {adapter.rank}, alpha {adapter.alpha:g}", **facts}
    if not target.folder:
        facts = {"written": f"{job.out} ({job.out.stat().st_size:,} bytes)", **facts}
    return facts


def _tokenizer(job: Job) -> Tokenizer | None:
    path = job.model.tokenizer_path
    return load_tokenizer(path) if path.exists() and not job.no_tokenizer else None


def _adapter_facts(job: Job, adapter: AdapterDir) -> Facts:
    c = adapter.config
    return {
        "adapter": f"rank {c.rank}, alpha {c.alpha:g}, on {len(adapter.linears)} layers",
        "base": str(job.model.path),
    }
