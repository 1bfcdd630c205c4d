"""Which reader or writer a directory or a `.pt` file is for."""

from __future__ import annotations

from pathlib import Path

from nano_ds.errors import UserError


def import_foreign(
    src: Path, out: str, *, licence: str = "", base: str | None = None, tokenizer: str | None = None
) -> dict[str, str]:
    """Reads a Hugging Face directory, a PEFT directory or a `.pt` checkpoint; returns facts to print."""
    from nano_ds.interop.hf import import_hf
    from nano_ds.interop.peft import PEFT_CONFIG, import_peft
    from nano_ds.interop.pt import import_pt
    from nano_ds.model_dir import ADAPTER, META, ModelDir

    model = ModelDir(base) if base else None
    if tokenizer and src.is_dir():
        raise UserError(f"--tokenizer: belongs to .pt files; {src} is a directory, which holds its own")
    if not src.is_dir():
        facts = import_pt(src, out, licence, tokenizer=tokenizer, base=model)
    elif (src / PEFT_CONFIG).is_file():
        if model is None:
            raise UserError(f"{src}: is a PEFT adapter; say --base MODEL_DIR, the imported model that it belongs to")
        facts = import_peft(src, out, model)
    elif (src / ADAPTER).is_file() or (src / META).is_file():
        raise UserError(f"{src}: is a directory of nano_ds already; use it as it is, or copy it")
    elif base:
        raise UserError(f"--base: belongs to adapters; {src} is a model")
    else:
        facts = import_hf(src, out, licence)
    adapter = (Path(out) / ADAPTER).is_file()
    hint = f"-m {base or 'MODEL_DIR'} -l {out}" if adapter else f"-m {out}"
    return {**facts, "written": out, "next": f"python inference/generate.py {hint} TEXT"}


def export_foreign(model: str, out: Path, *, to: str, lora: str | None = None, dtype: str = "f32") -> dict[str, str]:
    """Writes a Hugging Face directory (``to`` hf), or an adapter as a PEFT directory; returns facts to print."""
    from nano_ds.interop.hf import export_hf
    from nano_ds.interop.peft import export_peft
    from nano_ds.model_dir import AdapterDir, ModelDir

    if to == "peft" and not lora:
        raise UserError("--to peft: writes adapters; say which with --lora ADAPTER_DIR, or --to hf for the model")
    if to == "hf" and lora:
        raise UserError("--lora: an adapter goes to a directory with --to peft")
    base = ModelDir(model)
    if lora:
        return export_peft(AdapterDir(lora), base, out)
    facts = export_hf(base, out, dtype)
    return {**facts, "next": f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"}
