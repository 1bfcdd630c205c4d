"""Hugging Face's `config.json` of Llama, Qwen2 and Qwen3 against our ModelConfig.

Facts from transformers 4.40 to 5.24: what a class computes, and what it assumes for a key that the file lacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nano_ds.config import ModelConfig, from_tree
from nano_ds.errors import UserError


@dataclass(frozen=True)
class Family:
    """A class of transformers: what is fixed in it and what its config can switch."""

    architecture: str
    model_type: str
    qkv_bias: bool  # always has biases on q, k and v, none elsewhere
    qk_norm: bool
    bias_keys: tuple[str, ...]  # switches: attention_bias (q, k, v, o), mlp_bias (gate, up, down)
    defaults: Mapping[str, Any]


_COMMON = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "head_dim": None,  # hidden_size / num_attention_heads
}
_LLAMA = {
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_key_value_heads": None,  # as many as query heads
    "max_position_embeddings": 2048,
}
_QWEN = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
LLAMA = Family("LlamaForCausalLM", "llama", False, False, ("attention_bias", "mlp_bias"), _COMMON | _LLAMA)
QWEN2 = Family("Qwen2ForCausalLM", "qwen2", True, False, (), _COMMON | _QWEN)
QWEN3 = Family("Qwen3ForCausalLM", "qwen3", False, True, ("attention_bias",), _COMMON | _QWEN | {"head_dim": 128})
FAMILIES = {family.architecture: family for family in (LLAMA, QWEN2, QWEN3)}
MARKER = "nano_ds"  # our key in a config.json that we wrote: what a way back needs, and the class does not say


@dataclass(frozen=True)
class HFModel:
    """What a config.json describes."""

    family: Family
    config: ModelConfig  # rope_interleaved: the tensors are those of such a model of ours, put in halves
    absent_biases: frozenset[str]  # endings such as attn.wo.bias that ours has and theirs lacks: zeros


def read_hf_config(tree: Any, source: str) -> HFModel:
    """What the parsed ``config.json`` describes; ``source`` names it in messages.

    Raises:
        UserError: with every reason why nano_ds cannot represent the model.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{source}: expected the config.json of a Hugging Face model")
    family = _family(tree, source)
    given = {**family.defaults, **tree}
    theta, problems = _rope(tree, given["rope_theta"])
    problems += _problems(given)
    switched = {key for key in family.bias_keys if given.get(key)}
    marker = tree.get(MARKER, {})
    if not isinstance(marker, dict) or type(marker.get("rope_interleaved", False)) is not bool:
        problems.append(f"{MARKER}: {marker!r} is not what nano_ds writes there")
        marker = {}
    if problems:
        raise UserError(f"{source}: nano_ds cannot represent this model:" + "".join(f"\n  - {p}" for p in problems))
    heads, width = given["num_attention_heads"], given["hidden_size"]
    head_dim = given["head_dim"]
    if head_dim is not None and _whole(heads, width, head_dim) and head_dim * heads == width:
        head_dim = None
    config = from_tree(
        ModelConfig,
        {
            "block_size": given["max_position_embeddings"],
            "vocab_size": given["vocab_size"],
            "n_layer": given["num_hidden_layers"],
            "n_head": heads,
            "n_kv_head": heads if given["num_key_value_heads"] is None else given["num_key_value_heads"],
            "n_embd": width,
            "n_hidden": given["intermediate_size"],
            "head_dim": head_dim,
            # Attention dropout of theirs is not dropout of ours, and neither changes an answer.
            "dropout": marker.get("dropout", 0.0),
            "bias": bool(switched),
            "qkv_bias": family.qkv_bias,
            "qk_norm": family.qk_norm,
            "rope_theta": theta,
            "rope_interleaved": marker.get("rope_interleaved", False),
            "norm_eps": given["rms_norm_eps"],
            "tie_embeddings": given["tie_word_embeddings"],
        },
        source,
    )
    absent: set[str] = set()
    if switched and "attention_bias" not in switched:
        absent |= {f"attn.{w}.bias" for w in ("wq", "wk", "wv", "wo")}
    if switched and "mlp_bias" not in switched:
        absent |= {f"ffn.{w}.bias" for w in ("w1", "w2", "w3")}
    return HFModel(family, config, frozenset(absent))


def _whole(*values: Any) -> bool:
    return all(type(v) is int for v in values)


def _family(tree: dict[str, Any], source: str) -> Family:
    names = tree.get("architectures")
    known = ", ".join(FAMILIES)
    if names is None:
        found = next((f for f in FAMILIES.values() if f.model_type == tree.get("model_type")), None)
        named = f"model_type {tree.get('model_type')!r}"
    else:
        named = ", ".join(map(str, names)) if isinstance(names, list) else str(names)
        found = FAMILIES.get(named)
    if found is None:
        raise UserError(f"{source}: the model is {named}; nano_ds can represent {known}")
    if tree.get("model_type", found.model_type) != found.model_type:
        raise UserError(f"{source}: architectures says {named}, model_type {tree['model_type']!r}; one is wrong")
    return found


def _rope(tree: dict[str, Any], theta: Any) -> tuple[Any, list[str]]:
    """The base of the rotary frequencies, and what about them cannot be represented.

    ``rope_scaling`` (transformers 4) or ``rope_parameters`` (5, where the base is inside); the first wins, as there.
    """
    key = "rope_scaling" if tree.get("rope_scaling") else "rope_parameters"
    rope = tree.get(key) or {}
    if not isinstance(rope, dict) or any(isinstance(v, dict) for v in rope.values()):
        return theta, [f"{key}: {rope!r}; expected one set of rotary positions for all layers"]
    problems = []
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        problems.append(f"{key}: rotary positions of type {kind!r}; only unscaled ones are known here")
    for part in (rope.get("partial_rotary_factor"), tree.get("partial_rotary_factor")):
        if part not in (None, 1, 1.0):
            problems.append(f"partial_rotary_factor: {part!r}; here all of a head rotates")
            break
    return rope.get("rope_theta", theta), problems


def _problems(given: Mapping[str, Any]) -> Iterator[str]:
    if given["hidden_act"] != "silu":
        yield f"hidden_act: {given['hidden_act']!r}; here the feed-forward is w2(silu(w1 x) * w3 x)"
    if given.get("use_sliding_window"):
        yield "use_sliding_window: true; here every layer sees the whole context (if it is unused, set it to false)"
    layer_types = given.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        yield f"layer_types: {layer_types!r}; here every layer is full_attention"
    if quantised := given.get("quantization_config"):
        method = quantised.get("quant_method", quantised) if isinstance(quantised, dict) else quantised
        yield f"quantization_config: the weights are quantised ({method}); take the model in bf16, f16 or f32"
    auto = given.get("auto_map")
    if isinstance(auto, dict) and "AutoModelForCausalLM" in auto:
        yield "auto_map: the model brings code of its own, which nano_ds does not run"
    for key in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        if type(given.get(key, False)) is not bool:
            yield f"{key}: expected true or false, not {given[key]!r}"


def hf_family(config: ModelConfig) -> Family:
    """The class of transformers that computes this model.

    Raises:
        UserError: with every reason why none of them does.
    """
    c = config
    family = QWEN3 if c.qk_norm else LLAMA if c.bias or not c.qkv_bias else QWEN2
    checks = [
        (not c.use_rope, "use_rope: false; the classes have no learned positions"),
        (not c.is_causal, "is_causal: false; the classes are causal"),
        (c.qk_norm and c.bias, "bias with qk_norm: Qwen3 has no biases in its feed-forward"),
        (
            c.qk_norm and c.qkv_bias and not c.bias,
            "qkv_bias with qk_norm: Qwen3 has biases on all four projections of attention or on none",
        ),
        (
            family is LLAMA and c.n_embd % c.n_head != 0,
            f"n_head: {c.n_head} does not divide n_embd {c.n_embd}, which LlamaForCausalLM asks for",
        ),
        (not math.isfinite(c.norm_eps), f"norm_eps: {c.norm_eps}"),
    ]
    if problems := [text for wrong, text in checks if wrong]:
        shown = "".join(f"\n  - {p}" for p in problems)
        raise UserError(f"no class of transformers ({', '.join(FAMILIES)}) computes this model:{shown}")
    return family


def write_hf_config(config: ModelConfig, dtype: str, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of a model. ``dtype`` is float32, float16 or bfloat16.

    Dropout has no place in it that means the same, and none in inference: it only goes into our marker.
    """
    c, family = config, hf_family(config)
    tree = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.n_embd,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "head_dim": c.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": c.block_size,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": c.tie_embeddings,
        **{key: c.bias for key in family.bias_keys},
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **{key: token_ids.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "torch_dtype": dtype,
        MARKER: {"rope_interleaved": c.rope_interleaved, "dropout": c.dropout},
    }
    return tree if family is LLAMA else {**tree, "use_sliding_window": False}
