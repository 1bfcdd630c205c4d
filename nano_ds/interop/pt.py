"""Nano's `.pt` checkpoints (format v. late 2024 on): weights, config, vocabulary; adapters of its LoRA training.

A file of ``torch.save`` with a mapping of ``model`` (state dict), ``model_config`` (a dataclass), ``tokenizer_config``
(the mapping of Nano's tokenizer JSON), ``step_count``, optimiser and training options; an adapter has ``is_lora``,
``lora`` instead of ``model``, and its rank and alpha in ``train_config``. Nothing but tensors and plain data is built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nano_ds.config import ModelConfig, from_tree
from nano_ds.errors import UserError, brief
from nano_ds.interop.nano_bin_layout import LORA_TARGETS
from nano_ds.model_dir import (
    AdapterConfig,
    ModelDir,
    adapter_shapes,
    expected_shapes,
    new_meta,
    shape_line,
    write_adapter_dir,
    write_model_dir,
)
from nano_ds.report import byte_bar
from nano_ds.restricted import Inert, Refused, foreign_globals, load_restricted
from nano_ds.tensors import Shape, check_tensors
from nano_ds.tokenizer import Tokenizer, TrieTokenizer, load_tokenizer

CONFIG_CLASSES = ("ModelConfig", "TrainConfig")  # in whatever module of Nano's they were
FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")  # of torch.compile and of data-parallel training
BUFFERS = re.compile(r"(^|\.)(freqs_cos|freqs_sin|pos_cis|mask)$")  # computed from the config

OUTSIDE = {"tok_embeddings": "tok_emb", "norm": "final_norm", "output": "head"}
POSITIONS = ("pos_embeddings", "pos_embedding", "pos_emb", "position_embeddings", "wpe")
INSIDE = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn.wq",
    "attention.wk": "attn.wk",
    "attention.wv": "attn.wv",
    "attention.wo": "attn.wo",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn.w1",
    "feed_forward.w2": "ffn.w2",
    "feed_forward.w3": "ffn.w3",
}
NEEDED = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
# Of a ModelConfig: what says nothing about the model that comes out.
NO_MATTER = {"kv_cache", "use_kv_cache", "eval_only_last_token_loss"}


def import_pt(
    src: str | Path,
    out: str | Path,
    licence: str = "",
    *,
    tokenizer: str | Path | None = None,
    base: ModelDir | None = None,
) -> dict[str, str]:
    """Writes a checkpoint as a model directory, or an adapter as an adapter directory; returns facts to print.

    ``tokenizer`` names a tokenizer.json for a checkpoint without one; ``base`` is the model of an adapter.

    Raises:
        UserError: the file is no such checkpoint, asks for code, or holds what nano_ds cannot represent.
    """
    src = Path(src)
    tree = _load(src)
    if tree.get("is_lora"):
        if tokenizer:
            raise UserError(f"--tokenizer: belongs to models; {src} is an adapter")
        return _import_adapter(src, tree, out, base)
    if base is not None:
        raise UserError(f"--base: belongs to adapters; {src} is a model")
    return _import_model(src, tree, out, licence, tokenizer)


def _load(src: Path) -> Mapping[str, Any]:
    try:
        if src.stat().st_size == 0:
            raise Refused("it is empty")
        foreign = foreign_globals(src)
        if strange := [n for n in foreign if n.rpartition(".")[2] not in CONFIG_CLASSES]:
            raise UserError(
                f"{src}: asks for {', '.join(strange[:3])}; a checkpoint of Nano holds tensors, plain data and "
                f"{' and '.join(CONFIG_CLASSES)}, so this is none, or harmful. Nothing of it was run"
            )
        tree = load_restricted(src, foreign)
    except FileNotFoundError:
        raise UserError(f"{src}: no such file") from None
    except (OSError, Refused) as e:
        raise UserError(f"{src}: no readable checkpoint of PyTorch 1.6 or later ({brief(e)})") from None
    if isinstance(tree, Mapping) and tree and all(isinstance(t, Tensor) for t in tree.values()):
        raise UserError(
            f"{src}: holds weights only (as zero_to_fp32 writes them), not the model's config, and weights do not say "
            "how many heads there are; write a .bin with Nano's export.py and import that"
        )
    if not isinstance(tree, Mapping) or "model_config" not in tree:
        raise UserError(f"{src}: no checkpoint of Nano: it holds no model_config")
    return tree


def _import_model(
    src: Path, tree: Mapping[str, Any], out: str | Path, licence: str, tokenizer: str | Path | None
) -> dict[str, str]:
    state = _named(src, tree.get("model"))
    config, unknown = _config(src, tree["model_config"], state)
    shapes = expected_shapes(config)
    if config.tie_embeddings:
        state.pop("head.weight", None)
    _check(src, state, shapes)
    vocabulary = _vocabulary(src, tree.get("tokenizer_config"), tokenizer)
    if vocabulary is not None and vocabulary.vocab_size > config.vocab_size:
        raise UserError(
            f"{src}: the vocabulary has {vocabulary.vocab_size} tokens, the model {config.vocab_size}; give the right "
            "one with --tokenizer"
        )
    step = tree.get("step_count", tree.get("iter_count"))
    step = step if type(step) is int and step >= 0 else None
    meta = new_meta(step=step, source=f"{src.name} (Nano .pt)", licence=licence)
    with (
        write_model_dir(out, config, vocabulary, meta) as writer,
        byte_bar(str(out), 4 * sum(map(math.prod, shapes.values()))) as bar,
    ):
        for name in writer.names:
            writer.write(name, state[name])
            bar.update(4 * math.prod(shapes[name]))
    facts = {
        "read": f"{src} (Nano .pt{f', step {step:,}' if step is not None else ''})",
        "model": shape_line(config),
        "vocabulary": f"{vocabulary.vocab_size:,} tokens" if vocabulary else "none: give one with --tokenizer F.json",
        "attention": "causal" if config.is_causal else "full",
    }
    if unknown:
        facts["note"] = f"not known here and left out: {', '.join(unknown)} of model_config"
    return facts


def _named(src: Path, state: Any) -> dict[str, Tensor]:
    """The weights by our names; raises UserError for a name that we do not have."""
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{src}: no checkpoint of Nano: it holds no state dict under 'model'")
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = WRAPPERS.sub("", str(key))
        if name.startswith("transformer."):
            raise UserError(
                f"{src}: holds {name}: the first Nano models (GPT-2 layout with GELU) cannot be represented here"
            )
        if BUFFERS.search(name):
            continue
        ours = _our_name(name)
        if ours is None or ours in named:
            raise UserError(f"{src}: holds {name}, which a Nano model does not have{' twice' if ours else ''}")
        named[ours] = tensor
    return named


def _our_name(name: str) -> str | None:
    module, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    if module in POSITIONS:
        return f"pos_emb.{leaf}"
    layer = re.fullmatch(r"layers\.(0|[1-9]\d{0,3})\.(.+)", module)
    ours = INSIDE.get(layer[2]) if layer else OUTSIDE.get(module)
    if ours is None:
        return None
    return f"blocks.{layer[1]}.{ours}.{leaf}" if layer else f"{ours}.{leaf}"


def _plain(src: Path, value: Any, what: str) -> dict[str, Any]:
    """The fields of a dataclass that became inert, or a mapping as it is."""
    tree = vars(value) if isinstance(value, Inert) else value
    if not isinstance(tree, Mapping) or not all(isinstance(k, str) for k in tree):
        raise UserError(f"{src}: its {what} is a {type(value).__name__}; expected the fields of a config")
    return dict(tree)


def _config(src: Path, stored: Any, state: Mapping[str, Tensor]) -> tuple[ModelConfig, list[str]]:
    """The config, and the names of fields that mean nothing here. Sizes that are not stored come from the weights."""
    tree = _plain(src, stored, "model_config")
    if absent := [key for key in NEEDED if tree.get(key) is None]:
        raise UserError(f"{src}: its model_config lacks {', '.join(absent)}")
    known = {f.name for f in fields(ModelConfig)}
    unknown = sorted(set(tree) - known - NO_MATTER)
    values = {k: v for k, v in tree.items() if k in known and v is not None}
    values.setdefault("n_kv_head", values["n_head"])
    w1 = state.get("blocks.0.ffn.w1.weight")
    if w1 is not None and w1.dim() == 2:
        values.setdefault("n_hidden", w1.shape[0])
    # Nano ties; its state dict then names the matrix twice.
    head, embedding = state.get("head.weight"), state.get("tok_emb.weight")
    values["tie_embeddings"] = head is None or (embedding is not None and torch.equal(head, embedding))
    return from_tree(ModelConfig, values, f"{src}, model_config"), unknown


def _check(src: Path, state: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    dtypes = {name: FLOATS.get(t.dtype, str(t.dtype)) for name, t in state.items()}
    check_tensors(src, shapes, dtypes, expected, "its model_config", tuple(FLOATS.values()))


def _vocabulary(src: Path, stored: Any, given: str | Path | None) -> Tokenizer | None:
    if given is not None:
        return load_tokenizer(given)
    if stored is None:
        return None
    tree = _plain(src, stored, "tokenizer_config")
    if isinstance(tree.get("itos"), Mapping):
        del tree["itos"]  # by id; stoi says the same
    return TrieTokenizer.from_nano_json(tree, f"{src}, tokenizer_config")


def _import_adapter(src: Path, tree: Mapping[str, Any], out: str | Path, base: ModelDir | None) -> dict[str, str]:
    train = _plain(src, tree.get("train_config"), "train_config")
    rank: Any = train.get("lora_rank")
    alpha: Any = train.get("lora_alpha")
    if type(rank) is not int or not 0 < rank <= 1 << 16 or type(alpha) not in (int, float) or not 0 < alpha < 1e9:
        raise UserError(f"{src}: its train_config has lora_rank {rank!r} and lora_alpha {alpha!r}; expected numbers")
    state = tree.get("lora")
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{src}: no adapter of Nano: it holds no weights under 'lora'")
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = WRAPPERS.sub("", str(key)).removesuffix(".weight")
        parts = re.fullmatch(r"layers\.(0|[1-9]\d{0,3})\.attention\.(w[qkvo])\.(lora_[ab])", name)
        if parts is None:
            raise UserError(f"{src}: holds {name}, which an adapter of Nano does not have")
        named[f"blocks.{parts[1]}.attn.{parts[2]}.{parts[3]}"] = tensor
    config, _ = _config(src, tree["model_config"], {})
    in_base = expected_shapes(base.config if base else config)
    linears = list(dict.fromkeys(name.rpartition(".")[0] for name in named))
    shapes: dict[str, Shape] = {}
    for linear in linears:
        if f"{linear}.weight" not in in_base:
            raise UserError(f"{src}: adapts {linear}, which {base.path if base else 'its model_config'} does not have")
        out_rows, into = in_base[f"{linear}.weight"]
        shapes |= adapter_shapes(linear, rank, out_rows, into)
    _check(src, named, shapes)
    made = AdapterConfig(
        rank=rank,
        alpha=float(alpha),
        targets=tuple(t for t in LORA_TARGETS if any(n.endswith(f".{t}") for n in linears)),
        base_fingerprint=base.fingerprint if base else "",
    )
    with write_adapter_dir(out, made, shapes) as writer:
        for name in writer.names:
            writer.write(name, named[name])
    return {
        "read": f"{src} (Nano LoRA .pt)",
        "adapter": f"rank {rank}, alpha {alpha:g}, on {len(linears)} layers",
        "base": str(base.path) if base else "not given: nothing stops you from using it with the wrong model",
    }
