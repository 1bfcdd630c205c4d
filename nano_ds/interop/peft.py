"""Adapters of the PEFT library (plain LoRA on linear layers) to and from adapter directories.

``adapter_config.json`` says rank, alpha and targets; ``adapter_model.safetensors`` holds, for each adapted module M of
the Hugging Face model, ``base_model.model.M.lora_A.weight`` [r, in] and ``…lora_B.weight`` [out, r]. The rows of B are
rows of the weight: where they make queries and keys, they follow the order of its rotary pairs (``hf_names``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds.config import ModelConfig
from nano_ds.errors import UserError
from nano_ds.files import atomic_dir, read_json, write_json
from nano_ds.interop.hf_config import hf_family
from nano_ds.interop.hf_files import HFWeights
from nano_ds.interop.hf_names import hf_module, our_module, rotates, to_halves, to_pairs
from nano_ds.model_dir import (
    AdapterConfig,
    AdapterDir,
    ModelDir,
    adapter_shapes,
    expected_shapes,
    refuse_to_replace,
    write_adapter_dir,
)
from nano_ds.tensors import SafetensorsWriter, Shape

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

# Keys of adapter_config.json whose effect an adapter directory cannot hold; absent, null, false and empty are well.
REFUSED = {
    "use_rslora": "scales by alpha / sqrt(rank)",
    "use_dora": "has a magnitude beside A and B",
    "use_qalora": "quantises its input",
    "lora_bias": "has biases",
    "modules_to_save": "replaces whole modules",
    "fan_in_fan_out": "stores its weights transposed",
    "rank_pattern": "has several ranks",
    "alpha_pattern": "has several alphas",
    "layer_replication": "repeats layers",
    "target_parameters": "adapts parameters that are no linear layers",
    "trainable_token_indices": "replaces rows of the embedding",
    "alora_invocation_tokens": "switches itself on inside a text",
}


def import_peft(src: str | Path, out: str | Path, base: ModelDir) -> dict[str, str]:
    """Writes the PEFT directory ``src`` as an adapter directory of ``base``; returns facts to print.

    Raises:
        UserError: with everything that an adapter directory cannot hold, or that does not fit the base.
    """
    src = Path(src)
    rank, alpha = _read_config(src / PEFT_CONFIG)
    weights = _weights(src)
    copies = _copies(src, weights, base)
    linears = _linears(src, [name for name in weights.shapes if name not in copies])
    shapes: dict[str, Shape] = {}
    in_base = expected_shapes(base.config)
    for linear in linears:
        shape = in_base.get(f"{linear}.weight", ())
        # Transformer multiplies by the output matrix itself: an adapter on its module would do nothing.
        if len(shape) != 2 or linear in ("tok_emb", "head"):
            raise UserError(f"{src}: adapts {hf_module(linear)}, which is no linear layer of a block of {base.path}")
        shapes |= adapter_shapes(linear, rank, *shape)
    theirs = {_peft_name(name): shape for name, shape in shapes.items()}
    weights.check(theirs, f"rank {rank} on {base.path}", copies)
    targets = tuple(dict.fromkeys(linear.rpartition(".")[2] for linear in linears))
    config = AdapterConfig(rank=rank, alpha=alpha, targets=targets, base_fingerprint=base.fingerprint)
    with write_adapter_dir(out, config, shapes) as writer:
        for name in writer.names:
            tensor = weights[_peft_name(name)]
            writer.write(name, to_pairs(tensor, base.config) if _reordered(name, base.config) else tensor)
    return {
        "read": f"{src} (PEFT LoRA)",
        "adapter": f"rank {rank}, alpha {alpha:g}, on {len(linears)} layers ({', '.join(targets)})",
        "base": str(base.path),
    }


def export_peft(adapter: AdapterDir, base: ModelDir, out: str | Path) -> dict[str, str]:
    """Writes an adapter of ``base`` for the directory that ``export_hf`` writes of it; returns facts to print.

    Raises:
        UserError: the adapter belongs to another model, or no class of transformers computes that.
    """
    adapter.check_base(base)
    hf_family(base.config)
    out = Path(out).resolve()
    refuse_to_replace(out, {PEFT_CONFIG, PEFT_WEIGHTS}, {PEFT_CONFIG, PEFT_WEIGHTS})
    tree = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": adapter.config.rank,
        "lora_alpha": adapter.config.alpha,
        "lora_dropout": 0.0,
        "target_modules": _target_modules(adapter, base),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    shapes = {_peft_name(name): shape for name, shape in adapter.tensors.shapes.items()}
    with atomic_dir(out) as tmp:
        write_json(tmp / PEFT_CONFIG, tree)
        with SafetensorsWriter(tmp / PEFT_WEIGHTS, shapes) as writer:
            for name in adapter.tensors:
                tensor = adapter.tensors[name]
                tensor = to_halves(tensor, base.config) if _reordered(name, base.config) else tensor
                writer.write(_peft_name(name), tensor)
    return {
        "written": str(out),
        "adapter": f"rank {adapter.config.rank}, alpha {adapter.config.alpha:g}, on {len(adapter.linears)} layers",
        "base": f"{base.path}, as `nano-ds export {base.path} --to hf` writes it",
        "next": f"peft.PeftModel.from_pretrained(MODEL, {str(out)!r})",
    }


def _reordered(name: str, config: ModelConfig) -> bool:
    return config.rope_interleaved and name.endswith(".lora_b") and rotates(name.removesuffix(".lora_b"))


def _peft_name(ours: str) -> str:
    """``blocks.0.attn.wq.lora_a`` is ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``."""
    linear, _, part = ours.rpartition(".")
    return f"{PREFIX}{hf_module(linear)}.lora_{part[-1].upper()}.weight"


def _target_modules(adapter: AdapterDir, base: ModelDir) -> list[str]:
    """Last names where all layers of such a name are adapted, else whole names: PEFT adapts what ends like them."""
    linears = [n.removesuffix(".weight") for n in expected_shapes(base.config) if n.endswith(".weight")]
    ends = {n.rpartition(".")[2] for n in adapter.linears}
    if {n for n in linears if n.rpartition(".")[2] in ends} == set(adapter.linears):
        return sorted({hf_module(n).rpartition(".")[2] for n in adapter.linears})
    return sorted(map(hf_module, adapter.linears))


def _read_config(path: Path) -> tuple[int, float]:
    """Rank and alpha."""
    tree = read_json(path, "the config of a PEFT adapter")
    if not isinstance(tree, dict) or tree.get("peft_type") != "LORA":
        kind = tree.get("peft_type") if isinstance(tree, dict) else type(tree).__name__
        raise UserError(f"{path}: peft_type is {kind!r}; nano_ds has LORA adapters only")
    problems = [f"{key}: {_brief(tree[key])}; it {why}" for key, why in REFUSED.items() if tree.get(key)]
    if tree.get("bias", "none") != "none":
        problems.append(f"bias: {tree['bias']!r}; it trains biases, adapters of nano_ds have none")
    rank, alpha = tree.get("r", 8), tree.get("lora_alpha", 8)  # PEFT's defaults
    if type(rank) is not int or not 0 < rank <= 1 << 16:
        problems.append(f"r: {rank!r}; expected a rank such as 8")
    if type(alpha) not in (int, float) or not 0 < alpha < 1e9:
        problems.append(f"lora_alpha: {alpha!r}; expected a positive number")
    if problems:
        raise UserError(f"{path}: nano_ds cannot represent this adapter:" + "".join(f"\n  - {p}" for p in problems))
    return rank, float(alpha)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _weights(src: Path) -> HFWeights:
    if not (src / PEFT_WEIGHTS).is_file() and (src / "adapter_model.bin").is_file():
        raise UserError(
            f"{src}: its weights are in adapter_model.bin, a pickle, which can run code when it is read. Convert it "
            "where you trust it: load it with PEFT and save it again with save_pretrained"
        )
    if not (src / PEFT_WEIGHTS).is_file():
        raise UserError(f"{src}: lacks {PEFT_WEIGHTS}")
    return HFWeights(src, single=PEFT_WEIGHTS)


def _copies(src: Path, weights: HFWeights, base: ModelDir) -> set[str]:
    """Embedding and output matrix, where PEFT stored them beside the adapter; they must be those of the base."""
    found = set()
    for name in weights.shapes:
        copied = re.fullmatch(re.escape(PREFIX) + r"(model\.embed_tokens|lm_head)(\.base_layer)?\.weight", name)
        if copied is None:
            continue
        ours = "tok_emb.weight" if base.config.tie_embeddings else f"{our_module(copied[1])}.weight"
        same = weights.shapes[name] == base.tensors.shapes[ours]
        pairs = zip(weights.pieces(name), base.tensors.pieces(ours), strict=False)
        if not same or not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            raise UserError(f"{src}: holds {name}, which is another than that of {base.path}; it cannot be kept")
        found.add(name)
    return found


def _linears(src: Path, names: Iterable[str]) -> list[str]:
    """The adapted layers by our names, in the order of the model."""
    found: set[str] = set()
    for name in names:
        parts = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_[AB]\.weight", name)
        try:
            if parts is None:
                raise KeyError
            found.add(our_module(parts[1]))
        except KeyError:
            raise UserError(
                f"{src / PEFT_WEIGHTS}: holds {name}, which is no LoRA weight of a layer known here"
            ) from None
    if not found:
        raise UserError(f"{src / PEFT_WEIGHTS}: adapts nothing")
    return sorted(found, key=_order)


def _order(linear: str) -> tuple[int, str]:
    block = re.match(r"blocks\.(\d+)\.", linear)
    return (int(block[1]) if block else 1 << 20, linear)
