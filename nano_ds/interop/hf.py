"""Hugging Face directories of Llama, Qwen2 and Qwen3 models, in and out, a tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nano_ds.errors import UserError
from nano_ds.files import atomic_dir, read_json, write_json
from nano_ds.interop.hf_config import MARKER, HFModel, hf_family, read_hf_config, write_hf_config
from nano_ds.interop.hf_files import INDEX, SINGLE, HFWeights
from nano_ds.interop.hf_names import hf_name, rotates, to_halves, to_pairs
from nano_ds.model_dir import CONFIG, TOKENIZER, ModelDir, expected_shapes, new_meta, shape_line, write_model_dir
from nano_ds.report import byte_bar
from nano_ds.tensors import DTYPES, PIECE, SafetensorsWriter, Shape
from nano_ds.tokenizer import BPETokenizer, Tokenizer, load_tokenizer

GENERATION = "generation_config.json"
OUR_TOKENIZER = "nano_tokenizer.json"  # in a directory that we write: a vocabulary that theirs cannot express
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
KNOWN = {
    *(CONFIG, GENERATION, INDEX, OUR_TOKENIZER, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
}
SHARD_BYTES = 5_000_000_000  # of the weights in one file, as in transformers
TORCH_NAMES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}


def import_hf(src: str | Path, out: str | Path, licence: str = "") -> dict[str, str]:
    """Writes the model in the directory ``src`` as a model directory; returns facts to print.

    Raises:
        UserError: with everything that nano_ds cannot represent, or that is missing or damaged.
    """
    src = Path(src)
    tree = read_json(src / CONFIG, "the config of a Hugging Face model")
    model = read_hf_config(tree, str(src / CONFIG))
    shapes = expected_shapes(model.config)
    weights = HFWeights(src)
    leave_out = _leave_out(weights, model)
    stored = {hf_name(n): shape for n, shape in shapes.items() if not n.endswith(tuple(model.absent_biases))}
    weights.check(stored, CONFIG, leave_out)
    tokenizer = _read_tokenizer(src, model.config.vocab_size)
    dtypes = "/".join(sorted({weights.dtypes[n].lower() for n in stored}))
    meta = new_meta(
        source=f"{src.resolve().name} (Hugging Face {model.family.architecture}, {dtypes})",
        licence=licence,
        generation=_generation(src, tree),
    )
    total = sum(4 * math.prod(shape) for shape in shapes.values())
    with write_model_dir(out, model.config, tokenizer, meta) as writer, byte_bar(str(out), total) as bar:
        for name in writer.names:
            if hf_name(name) not in stored:
                writer.write(name, np.zeros(shapes[name], np.float32))
            elif model.config.rope_interleaved and rotates(name.rpartition(".")[0]):
                writer.write(name, to_pairs(weights[hf_name(name)], model.config))
            else:
                writer.write_pieces(name, weights.pieces(hf_name(name)))
            bar.update(4 * math.prod(shapes[name]))
    facts = {
        "read": f"{src} ({model.family.architecture}, {dtypes})",
        "model": shape_line(model.config),
        "vocabulary": "none: the directory has no tokenizer.json",
    }
    if tokenizer is not None:
        size = tokenizer.vocab_size
        facts["vocabulary"] = f"{size:,} tokens" + (
            f" (the model has room for {model.config.vocab_size:,})" if size < model.config.vocab_size else ""
        )
    if model.absent_biases:
        facts["note"] = "zeros for biases that the model does not have: " + ", ".join(sorted(model.absent_biases))
    return facts


def _leave_out(weights: HFWeights, model: HFModel) -> list[str]:
    """Tensors that say again what others or the config say; raises UserError where they say something else."""
    config, names = model.config, []
    if config.tie_embeddings and "lm_head.weight" in weights.shapes:
        pairs = zip(weights.pieces("lm_head.weight"), weights.pieces("model.embed_tokens.weight"), strict=False)
        same = weights.shapes["lm_head.weight"] == weights.shapes.get("model.embed_tokens.weight")
        if not same or not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            raise UserError(
                f"{weights.folder}: tie_word_embeddings is true, but lm_head.weight is not model.embed_tokens.weight; "
                "set it to false if the model has an output matrix of its own"
            )
        names.append("lm_head.weight")
    # Directories of the first Llama models carry the rotary frequencies.
    d = config.head_width
    for layer in range(config.n_layer):
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        if name not in weights.shapes:
            continue
        usual = config.rope_theta ** (-np.arange(0, d, 2) / d)
        if weights.shapes[name] != usual.shape or not np.allclose(weights[name], usual, rtol=0.01):
            raise UserError(f"{weights.folder}: {name} is not that of rope_theta {config.rope_theta:g} in {CONFIG}")
        names.append(name)
    return names


def _read_tokenizer(src: Path, vocab_size: int) -> Tokenizer | None:
    tokenizer: Tokenizer | None = None
    if (src / OUR_TOKENIZER).is_file():
        tokenizer = load_tokenizer(src / OUR_TOKENIZER)
    elif (src / TOKENIZER).is_file():
        from nano_ds.interop.hf_tokenizer import read_hf_tokenizer

        tokenizer = read_hf_tokenizer(src)
    elif other := [n for n in ("tokenizer.model", "vocab.json") if (src / n).is_file()]:
        raise UserError(
            f"{src}: its vocabulary is in {other[0]} only; nano_ds reads tokenizer.json, which transformers writes: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise UserError(f"{src}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}; one is wrong")
    return tokenizer


def _generation(src: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that begin, end and pad a text: generation_config.json says so, else config.json."""
    own = read_json(src / GENERATION, "token ids") if (src / GENERATION).is_file() else {}
    if not isinstance(own, dict):
        raise UserError(f"{src / GENERATION}: expected a JSON object")
    found = {key: own.get(key, config.get(key)) for key in TOKEN_IDS}
    for key, value in found.items():
        ids = value if isinstance(value, list) else [value]
        if value is not None and not all(type(i) is int and i >= 0 for i in ids):
            raise UserError(f"{src}: {key} is {value!r}; expected a token id")
    return {key: value for key, value in found.items() if value is not None}


def export_hf(
    model_dir: str | Path | ModelDir, out: str | Path, dtype: str = "f32", shard_bytes: int = SHARD_BYTES
) -> dict[str, str]:
    """Writes a model directory as a directory that transformers loads; returns facts to print.

    With f32 the way back (``import_hf``) gives the same tensors bit for bit.

    Raises:
        UserError: with every reason why no class of transformers computes the model; a number float16 has no room for.
    """
    model = model_dir if isinstance(model_dir, ModelDir) else ModelDir(model_dir)
    if dtype not in TORCH_NAMES:
        raise UserError(f"cannot write a Hugging Face directory in {dtype}; choose {', '.join(TORCH_NAMES)}")
    stored_as, torch_name = TORCH_NAMES[dtype]
    family = hf_family(model.config)
    tokenizer = load_tokenizer(model.tokenizer_path) if model.tokenizer_path.exists() else None
    ids = _token_ids(model.meta, tokenizer)
    out = Path(out).resolve()
    _refuse_to_replace(out)
    shapes = expected_shapes(model.config)
    width = np.dtype(DTYPES[stored_as]).itemsize
    shards = _plan(shapes, width, shard_bytes)
    files = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    total = sum(width * math.prod(shape) for shape in shapes.values())
    with atomic_dir(out) as tmp, byte_bar(out.name, total) as bar:
        write_json(tmp / CONFIG, write_hf_config(model.config, torch_name, ids))
        write_json(tmp / GENERATION, ids)
        for file, names in zip(files, shards, strict=True):
            declared = {hf_name(n): shapes[n] for n in names}
            with SafetensorsWriter(tmp / file, declared, dict.fromkeys(declared, stored_as)) as writer:
                for name in names:
                    writer.write_pieces(hf_name(name), _in_halves(model, name))
                    bar.update(width * math.prod(shapes[name]))
        if len(shards) > 1:
            where = {hf_name(n): file for file, names in zip(files, shards, strict=True) for n in names}
            write_json(tmp / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
        facts = {
            "written": str(out),
            "format": f"Hugging Face {family.architecture}, {torch_name}, {len(files)} file(s)",
        }
        facts["model"] = shape_line(model.config)
        facts["vocabulary"] = _write_tokenizer(tokenizer, tmp)
    return facts


def _in_halves(model: ModelDir, name: str) -> Iterator[np.ndarray]:
    if model.config.rope_interleaved and rotates(name.rpartition(".")[0]):
        yield to_halves(model.tensors[name], model.config)
    else:
        yield from model.tensors.pieces(name, PIECE)


def _plan(shapes: Mapping[str, Shape], width: int, limit: int) -> list[list[str]]:
    """The tensors of each shard: as many, in order, as stay within ``limit`` bytes; at least one."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = width * math.prod(shape)
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _shard_name(i: int, count: int) -> str:
    return f"model-{i + 1:05}-of-{count:05}.safetensors"


def _token_ids(meta: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Ids for config.json: those the model came with, else the vocabulary's own."""
    kept = meta.get("generation")
    if isinstance(kept, dict) and kept:
        return {key: kept[key] for key in TOKEN_IDS if key in kept}
    ids: dict[str, Any] = {}
    if isinstance(tokenizer, BPETokenizer):
        ends = list(dict.fromkeys([*([] if tokenizer.eos is None else [tokenizer.eos]), *tokenizer.stop]))
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    elif tokenizer is not None:
        names = {"bos_token_id": "<|bos|>", "eos_token_id": "<|eos|>", "pad_token_id": "<|padding|>"}
        ids = {key: tokenizer.special.get(name) for key, name in names.items()}
    return {key: id for key, id in ids.items() if id is not None}


def _write_tokenizer(tokenizer: Tokenizer | None, folder: Path) -> str:
    if tokenizer is None:
        return "none: the model directory has none"
    if not isinstance(tokenizer, BPETokenizer):
        tokenizer.save(folder / OUR_TOKENIZER)
        return (
            f"no tokenizer.json: Hugging Face has no longest-match vocabularies. {OUR_TOKENIZER} holds the "
            f"{tokenizer.vocab_size:,} tokens; encode with nano_ds.tokenizer.load_tokenizer"
        )
    from nano_ds.interop.hf_tokenizer import write_hf_tokenizer

    write_hf_tokenizer(tokenizer, folder)
    return f"tokenizer.json, {tokenizer.vocab_size:,} tokens"


def _refuse_to_replace(out: Path) -> None:
    """Only a directory that we wrote, with nothing beside it, may be replaced (or none, or an empty one)."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: a file of that name is in the way; -o names a folder")
    held = sorted(p.name for p in out.iterdir())
    try:
        ours = not held or MARKER in json.loads((out / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise UserError(
            f"{out}: would be replaced, but `nano-ds export` did not write it; choose another -o or empty it"
        )
    if other := [n for n in held if n not in KNOWN and not n.endswith(".safetensors")]:
        raise UserError(f"{out}: would be replaced, but holds {', '.join(other[:3])}; choose another -o or empty it")
