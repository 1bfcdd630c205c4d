"""Hugging Face directories: against transformers itself where a number is computed, by hand where a file is damaged."""

import dataclasses
import json
import os
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from bin_helpers import SPECIAL, TOKENS, golden, import_golden, make_model_dir, small_config, vocabulary
from hf_helpers import agree, lively_model, load_peer, our_logits, peer_logits, same_tensors, token_ids
from safetensors.numpy import save_file
from safetensors.torch import load_file

from nano_ds.bf16 import from_bf16, to_bf16
from nano_ds.cli import main
from nano_ds.errors import UserError
from nano_ds.interop.hf import export_hf, import_hf
from nano_ds.interop.hf_config import read_hf_config
from nano_ds.interop.hf_names import hf_module, our_module, to_halves, to_pairs
from nano_ds.interop.nano_bin import NanoBin
from nano_ds.interop.nano_bin_import import import_adapter
from nano_ds.interop.peft import export_peft
from nano_ds.interop.vocabulary import Vocabulary
from nano_ds.model_dir import AdapterDir, ModelDir, expected_shapes, new_meta, write_model_dir
from nano_ds.tensors import SafetensorsWriter, TensorFile
from nano_ds.tokenizer import load_tokenizer

OURS = {
    "llama": ({}, "LlamaForCausalLM"),
    "llama, halves": ({"rope_interleaved": False, "norm_eps": 1e-6}, "LlamaForCausalLM"),
    "llama, untied": ({"tie_embeddings": False, "rope_theta": 5e5, "dropout": 0.1}, "LlamaForCausalLM"),
    "llama, biases": ({"bias": True, "head_dim": 8}, "LlamaForCausalLM"),
    "qwen2": ({"qkv_bias": True, "rope_theta": 1e6}, "Qwen2ForCausalLM"),
    "qwen2, wide heads": ({"qkv_bias": True, "head_dim": 24}, "Qwen2ForCausalLM"),
    "qwen3": ({"qk_norm": True, "head_dim": 32, "n_kv_head": 1}, "Qwen3ForCausalLM"),
    "qwen3, halves": ({"qk_norm": True, "rope_interleaved": False, "tie_embeddings": False}, "Qwen3ForCausalLM"),
}
SHAPE = {
    "vocab_size": 11,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
THEIRS = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama, attention biases": ("Llama", {"attention_bias": True, "rms_norm_eps": 1e-5}),
    "llama, feed-forward biases": ("Llama", {"mlp_bias": True, "head_dim": 8}),
    "qwen2.5": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3": ("Qwen3", {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3, biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
}


@pytest.mark.parametrize("kind", OURS)
def test_ours_in_transformers(kind, tmp_path):
    pytest.importorskip("transformers")
    more, cls = OURS[kind]
    model = lively_model(tmp_path / "m", **more)
    export_hf(model, tmp_path / "hf")
    peer = load_peer(tmp_path / "hf")
    assert type(peer).__name__ == cls and peer.dtype == torch.float32
    assert peer.config.max_position_embeddings == 16 and peer.generation_config.eos_token_id == 3
    ids = token_ids(model.config)
    agree(our_logits(model, ids), peer_logits(peer, ids))


@pytest.mark.parametrize("kind", OURS)
def test_there_and_back_changes_nothing(kind, tmp_path):
    model = lively_model(tmp_path / "m", **OURS[kind][0])
    export_hf(model, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "back", licence="CC0")
    back = ModelDir(tmp_path / "back")
    assert back.config == model.config and back.meta["licence"] == "CC0"
    assert Vocabulary.load(back.tokenizer_path) == vocabulary()
    same_tensors(model, back)


@pytest.mark.parametrize("kind", THEIRS)
def test_theirs_here(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    family, more = THEIRS[kind]
    torch.manual_seed(3)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **more})
    peer = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, p in peer.named_parameters():
            p.normal_(1.0 if "norm" in name else 0.0, 0.3)
    peer.save_pretrained(tmp_path / "hf", max_shard_size="50KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
    import_hf(tmp_path / "hf", tmp_path / "m")
    model = ModelDir(tmp_path / "m")
    assert model.config.block_size == 32 and not model.config.rope_interleaved
    ids = token_ids(model.config)
    agree(peer_logits(peer, ids), our_logits(model, ids))
    if kind == "qwen3, biases":
        with pytest.raises(UserError, match="Qwen3 has no biases in its feed-forward"):
            export_hf(model, tmp_path / "again")
        return
    export_hf(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    for name, tensor in peer.state_dict().items():
        if name in again:
            assert torch.equal(again.pop(name), tensor), name
        else:
            assert name == "lm_head.weight" and config.tie_word_embeddings
    assert all("bias" in name and not tensor.any() for name, tensor in again.items())  # biases that theirs lacks


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_width_weights_come_through_exactly(dtype, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    peer = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE)).to(getattr(torch, dtype))
    peer.save_pretrained(tmp_path / "hf")
    facts = import_hf(tmp_path / "hf", tmp_path / "m")
    assert ("bf16" if dtype == "bfloat16" else "f16") in facts["read"]
    model = ModelDir(tmp_path / "m")
    state = peer.state_dict()
    for name in model.tensors:
        theirs = state["lm_head.weight" if name == "head.weight" else _hf(name)]
        assert torch.equal(torch.from_numpy(model.tensors[name]), theirs.float()), name
    # Written in their type again, the file is theirs.
    export_hf(model, tmp_path / "again", "bf16" if dtype == "bfloat16" else "f16")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[n], t) and again[n].dtype == t.dtype for n, t in state.items())


def _hf(name):
    module, _, leaf = name.rpartition(".")
    return f"{hf_module(module)}.{leaf}"


def test_bf16_rounds_as_torch_does():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    bits[:4] = 0x7F800001, 0xFF800001, 0x7F7FFFFF, 0x3F808000  # NaN, NaN, the largest, half way
    x = bits.view(np.float32)
    theirs = torch.from_numpy(x).bfloat16()
    ours = from_bf16(to_bf16(x))
    assert np.array_equal(ours, theirs.float().numpy(), equal_nan=True)
    assert np.array_equal(from_bf16(np.arange(1 << 16, dtype=np.uint16)).view(np.uint32) >> 16, np.arange(1 << 16))


def test_names_and_rows():
    for ours in ("tok_emb", "blocks.0.attn.wq", "blocks.12.ffn.w2", "blocks.3.ffn_norm", "final_norm", "head"):
        assert our_module(hf_module(ours)) == ours
    assert hf_module("blocks.12.ffn.w2") == "model.layers.12.mlp.down_proj"
    for theirs in ("model.layers.x.mlp.up_proj", "model.layers.01.mlp.up_proj", "model.layers.0.mlp", "score"):
        with pytest.raises(KeyError):
            our_module(theirs)
    config = small_config(n_embd=12, n_head=2, head_dim=6)
    rows = np.arange(12)
    assert to_halves(rows, config).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    matrix = np.arange(36).reshape(12, 3)
    assert (to_pairs(to_halves(matrix, config), config) == matrix).all()


def test_commands(tmp_path, capsys):
    lively_model(tmp_path / "m")
    m, hf, back = (str(tmp_path / n) for n in ("m", "hf", "back"))
    assert main(["export", m, "-o", hf, "--to", "hf"]) == 0
    said = capsys.readouterr().err
    assert "LlamaForCausalLM, float32" in said and "no tokenizer.json" in said
    assert main(["import", hf, "-o", back, "--licence", "CC0"]) == 0
    assert "vocabulary" in capsys.readouterr().err
    assert main(["export", m, "-o", hf, "--to", "hf", "--quant", "bf16"]) == 0  # replaces what it wrote
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "hf", "m"]
    for args, says in (
        (["import", m, "-o", back], "already"),
        (["import", hf, "-o", back, "--base", m], "belongs to adapters"),
        (["import", hf, "-o", back, "--tokenizer", "x"], "belongs to .pt files"),
        (["export", m, "-o", m, "--to", "hf"], "did not write it"),
        (["export", m, "-o", hf, "--to", "hf", "--lora", "a"], "--to peft"),
        (["export", m, "-o", hf, "--to", "peft"], "--lora"),
    ):
        capsys.readouterr()
        assert main(args) == 2, args
        assert says in capsys.readouterr().err
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    assert main(["export", m, "-o", hf, "--to", "hf"]) == 2
    assert "holds notes.txt" in capsys.readouterr().err


def test_shards(tmp_path):
    model = lively_model(tmp_path / "m")
    export_hf(model, tmp_path / "hf", shard_bytes=60_000)
    files = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(sum(t.nbytes for t in TensorFile(f).values()) <= 60_000 for f in files)
    import_hf(tmp_path / "hf", tmp_path / "back")
    same_tensors(model, ModelDir(tmp_path / "back"))


def test_what_transformers_has_no_class_for(tmp_path):
    for more, says in (
        ({"use_rope": False}, "learned positions"),
        ({"is_causal": False}, "is_causal"),
        ({"qk_norm": True, "bias": True}, "bias with qk_norm"),
        ({"qk_norm": True, "qkv_bias": True}, "qkv_bias with qk_norm"),
        ({"n_head": 3, "n_kv_head": 1, "head_dim": 16}, "n_head: 3 does not divide"),
    ):
        with pytest.raises(UserError, match=says):
            export_hf(make_model_dir(tmp_path / "m", small_config(**more)), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    with pytest.raises(UserError, match="float16 ends at 65504"):
        with write_model_dir(tmp_path / "m", small_config(), None, new_meta()) as writer:
            for name in writer.names:
                writer.write(name, np.full(expected_shapes(small_config())[name], 1e6))
        export_hf(tmp_path / "m", tmp_path / "hf", "f16")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def hf_config(**more):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 11,
        **more,
    }


def read(**more):
    return read_hf_config(hf_config(**more), "config.json").config


def test_what_a_config_leaves_out_is_what_transformers_assumes():
    config = read()
    assert (config.block_size, config.rope_theta, config.norm_eps) == (2048, 1e4, 1e-6)
    assert config.n_kv_head == 4 and config.head_dim is None and not config.tie_embeddings
    qwen3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    config = read(**qwen3, num_attention_heads=32)
    assert config.head_dim == 128 and config.n_kv_head == 32 and config.block_size == 32768 and config.qk_norm
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 5e5}).rope_theta == 5e5  # transformers 5
    assert read(rope_theta=1e5).rope_theta == 1e5  # transformers 4
    assert read(rope_theta=1e5, rope_scaling={"type": "default"}).rope_theta == 1e5
    assert read(num_key_value_heads=None, head_dim=None).n_kv_head == 4
    assert read(head_dim=16).head_dim is None and read(head_dim=32).head_dim == 32
    # SmolLM2 says rope_interleaved: false and more that transformers does not read.
    assert not read(rope_interleaved=True, is_llama_config=True).rope_interleaved
    assert read(architectures=None).n_embd == 64


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rotary positions of type 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "type 'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one set of rotary positions"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised .gptq."),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "code of its own"),
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM; nano_ds can represent LlamaForCausalLM"),
        ({"architectures": ["LlamaForCausalLM", "X"]}, "can represent"),
        ({"model_type": "qwen2"}, "one is wrong"),
        ({"attention_bias": "yes"}, "attention_bias: expected true or false"),
        ({"nano_ds": {"rope_interleaved": 1}}, "is not what nano_ds writes"),
        ({"hidden_size": "wide"}, "n_embd: expected a whole number"),
        ({"hidden_size": 1 << 40}, "n_embd"),
        ({"num_key_value_heads": 3}, "n_kv_head: 3 does not divide"),
        ({"num_hidden_layers": -1}, "n_layer"),
        ({"max_position_embeddings": 1 << 40}, "block_size"),
    ],
)
def test_configs_that_are_refused(more, says):
    with pytest.raises(UserError, match=says):
        read(**more)


@pytest.fixture
def exported(tmp_path):
    """A directory of a tied model, and what is in its files: config, tensors."""
    export_hf(lively_model(tmp_path / "m"), tmp_path / "hf")
    tensors = dict(TensorFile(tmp_path / "hf" / "model.safetensors"))
    return tmp_path / "hf", json.loads((tmp_path / "hf" / "config.json").read_text()), tensors


def refused(folder, says):
    out = folder.parent / "out"
    with pytest.raises(UserError, match=says):
        import_hf(folder, out)
    assert not out.exists() and not list(folder.parent.glob(".*"))


def test_tensors_that_do_not_fit(exported):
    folder, _, tensors = exported
    file = folder / "model.safetensors"
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, file)  # says the same twice
    import_hf(folder, folder.parent / "same")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file)
    refused(folder, "tie_word_embeddings is true")
    save_file({**tensors, "lm_head.weight": np.zeros((3, 3), np.float32)}, file)
    refused(folder, "tie_word_embeddings is true")
    frequencies = (1e4 ** (-np.arange(0, 16, 2) / 16)).astype(np.float16)
    save_file({**tensors, "model.layers.1.self_attn.rotary_emb.inv_freq": frequencies}, file)
    import_hf(folder, folder.parent / "same")
    save_file({**tensors, "model.layers.1.self_attn.rotary_emb.inv_freq": frequencies / 2}, file)
    refused(folder, "not that of rope_theta 10000")
    bent = {**tensors, "extra": np.zeros(2, np.float32)}
    del bent["model.norm.weight"]
    bent["model.layers.0.self_attn.q_proj.weight"] = np.zeros((3, 64), np.float32)
    bent["model.layers.1.mlp.up_proj.weight"] = np.zeros((128, 64), np.int8)
    save_file(bent, file)
    with pytest.raises(UserError) as e:
        import_hf(folder, folder.parent / "out")
    for line in (
        "model.norm.weight: missing",
        "extra: unexpected",
        "q_proj.weight: shape [3, 64], expected [64, 64]",
        "up_proj.weight: I8, expected F32 or F16 or BF16",
    ):
        assert line in str(e.value)
    save_file({**tensors, "model.norm.weight": np.full(64, np.nan, np.float32)}, file)
    import_hf(folder, folder.parent / "nan")
    assert np.isnan(ModelDir(folder.parent / "nan").tensors["final_norm.weight"]).all()


def test_files_that_are_damaged(exported):
    folder = exported[0]
    file = folder / "model.safetensors"
    good = file.read_bytes()
    length = struct.unpack("<Q", good[:8])[0]
    for cut in [*range(0, 200), *range(200, len(good), 997), len(good) - 1]:
        file.write_bytes(good[:cut])
        refused(folder, "model.safetensors: no readable safetensors file")
    file.write_bytes(good + b"\0")
    refused(folder, "its tensors end at byte")
    header = json.loads(good[8 : 8 + length])
    entry = header["model.norm.weight"]
    for bent, says in (
        ({**entry, "shape": [1 << 60, 1 << 60]}, "has 256 bytes"),
        ({**entry, "shape": [-64]}, "describes model.norm.weight"),
        ({**entry, "shape": [64.0]}, "describes model.norm.weight"),
        ({**entry, "dtype": "F4"}, "describes model.norm.weight"),
        ({**entry, "dtype": ["F32"]}, "describes model.norm.weight"),
        ({**entry, "data_offsets": [0, 256]}, "begins at byte"),
        ({**entry, "data_offsets": [256, 0]}, "has -256 bytes"),
        ({**entry, "data_offsets": [1 << 63, (1 << 63) + 256]}, "begins at byte"),
        ({"dtype": "F32"}, "describes model.norm.weight"),
        (None, "describes model.norm.weight"),
    ):
        text = json.dumps({**header, "model.norm.weight": bent}).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + good[8 + length :])
        refused(folder, says)
    for text in (b"[1]", b"{", b"\xff", b"[" * 100_000, b'{"a":1,"a":1}'):
        file.write_bytes(struct.pack("<Q", len(text)) + text)
        refused(folder, "no readable safetensors file")
    file.write_bytes(struct.pack("<Q", 1 << 60) + good[8:])
    refused(folder, "claims 1152921504606846976 bytes")
    file.unlink()
    refused(folder, r"lacks model\.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, "a pickle, which can run code")
    for text in ("{", "[" * 100_000):
        (folder / "config.json").write_text(text)
        refused(folder, "not JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, "expected the config")
    (folder / "config.json").unlink()
    refused(folder, "no such file")


def test_indexes_that_are_wrong(tmp_path):
    model = lively_model(tmp_path / "m")
    folder = tmp_path / "hf"
    export_hf(model, folder, shard_bytes=100_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = "model.embed_tokens.weight"
    secret = tmp_path / "secret.safetensors"
    shutil.copy(folder / index["weight_map"][first], secret)

    def points(name, tensor=first):
        path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], tensor: name}}))

    for outside in ("../secret.safetensors", str(secret), "a/../../secret.safetensors", "..\\secret.safetensors", ".."):
        points(outside)
        refused(folder, "shards are .safetensors files in the same folder")
    points("config.json")
    refused(folder, "shards are .safetensors files")
    points("model-00009-of-00009.safetensors")
    refused(folder, "model-00009-of-00009.safetensors: no such file; expected a shard")
    points(index["weight_map"]["model.norm.weight"])
    refused(folder, "lacks model.embed_tokens.weight, which")
    points(index["weight_map"][first], "model.layers.7.mlp.up_proj.weight")
    refused(folder, "lacks model.layers.7")
    less = {k: v for k, v in index["weight_map"].items() if k != first}
    path.write_text(json.dumps({**index, "weight_map": less}))
    refused(folder, "does not list model.embed_tokens.weight")
    for tree in ({}, [], {"weight_map": {}}, {"weight_map": {first: 1}}):
        path.write_text(json.dumps(tree))
        refused(folder, "lacks weight_map")


def test_a_directory_of_theirs_is_not_replaced(exported):
    folder, config, _ = exported
    theirs = folder.parent / "theirs"  # has the files of a model directory, and no others
    theirs.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(folder / name, theirs)
    before = (theirs / "model.safetensors").read_bytes()
    for src in (theirs, folder):
        with pytest.raises(UserError, match="is no model directory of nano_ds"):
            import_hf(src, theirs)
    assert (theirs / "model.safetensors").read_bytes() == before
    (theirs / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "nano_ds"}))
    with pytest.raises(UserError, match="did not write it"):
        export_hf(folder.parent / "m", theirs)


def test_token_ids_and_vocabularies(exported):
    folder, config, _ = exported
    assert config["eos_token_id"] == 3 and config["bos_token_id"] == 2 and config["pad_token_id"] == 0
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    import_hf(folder, folder.parent / "back")
    back = ModelDir(folder.parent / "back")
    assert back.meta["generation"] == {"bos_token_id": 2, "eos_token_id": [3, 5], "pad_token_id": 0}
    export_hf(back, folder.parent / "again")
    assert json.loads((folder.parent / "again" / "generation_config.json").read_text())["eos_token_id"] == [3, 5]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": "x"}))
    refused(folder, "expected a token id")
    (folder / "generation_config.json").unlink()
    Vocabulary([*TOKENS, "zz"], SPECIAL).save(folder / "nano_tokenizer.json")
    refused(folder, "the tokenizer has 12 tokens, the model 11")
    (folder / "nano_tokenizer.json").unlink()
    assert "none" in import_hf(folder, folder.parent / "without")["vocabulary"]
    assert not ModelDir(folder.parent / "without").tokenizer_path.exists()
    (folder / "tokenizer.model").write_text("")
    refused(folder, "vocabulary is in tokenizer.model only")


def test_a_large_matrix_is_never_whole_in_memory(tmp_path):
    config = dataclasses.replace(small_config(n_layer=1), vocab_size=300_000)
    shapes = expected_shapes(config)
    row = np.ones((1000, 64), np.float32)
    with write_model_dir(tmp_path / "m", config, None, new_meta()) as writer:
        writer.write_pieces("tok_emb.weight", (row for _ in range(300)))
        for name in writer.names[1:]:
            writer.write(name, np.ones(shapes[name]))
    for step in (
        lambda: export_hf(tmp_path / "m", tmp_path / "hf", "bf16"),
        lambda: import_hf(tmp_path / "hf", tmp_path / "m"),
    ):
        tracemalloc.start()
        step()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 24 << 20, peak  # the matrix alone is 73 MiB
    assert ModelDir(tmp_path / "m").tensors["tok_emb.weight"].min() == 1


def test_pieces_are_counted(tmp_path):
    with (
        pytest.raises(ValueError, match="a has 3 numbers"),
        SafetensorsWriter(tmp_path / "x", {"a": (4,)}) as writer,
    ):
        writer.write_pieces("a", iter([np.zeros(2), np.zeros(1)]))


def test_bpe_vocabulary_goes_along(exported):
    """A small one, trained by the tokenizers library, in transformers' files."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|endoftext|>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator(["the cat sat on the mat, 猫 and naïve café"] * 9, trainer)
    folder = exported[0].parent
    export_hf(lively_model(folder / "big", vocab_size=300), folder / "qwen")
    (folder / "qwen" / "nano_tokenizer.json").unlink()
    theirs.save(str(folder / "qwen" / "tokenizer.json"))
    (folder / "qwen" / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    (folder / "qwen" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 0]}))
    config = json.loads((folder / "qwen" / "config.json").read_text())
    (folder / "qwen" / "config.json").write_text(json.dumps({**config, "eos_token_id": 1}))
    facts = import_hf(folder / "qwen", folder / "m2")
    assert facts["vocabulary"] == "280 tokens (the model has room for 300)"
    model = ModelDir(folder / "m2")
    tokenizer = load_tokenizer(model.tokenizer_path)
    export_hf(model, folder / "again")
    again = transformers.AutoTokenizer.from_pretrained(folder / "again")
    for text in ("the cat", "naïve 猫 café", "", "<|im_end|>the", "\x00\xff 12 345", "\U0001f600"):
        ids = theirs.encode(text).ids
        assert tokenizer.encode(text, allow_special=True) == ids == again(text)["input_ids"]
    assert again.eos_token == "<|im_end|>" and tokenizer.eos_id == 1
    assert load_peer(folder / "again").generation_config.eos_token_id == [1, 0]
    # Without the ids that the model came with, those of the vocabulary say it.
    meta = json.loads((model.path / "meta.json").read_text())
    (model.path / "meta.json").write_text(json.dumps({**meta, "generation": {}}))
    export_hf(model.path, folder / "again")
    ends = json.loads((folder / "again" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [1, 0]


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
def test_real_vocabulary_of_qwen(family, tmp_path):
    """Random weights in the shape of the real embedding, with the tokenizer that Qwen ships."""
    where = os.environ.get("NANO_DATA")
    found = sorted(Path(where).rglob("tokenizer-qwen3/package/models/tokenizer.json")) if where else []
    if not found:
        pytest.skip("NANO_DATA does not name a folder with the tokenizer of Qwen3")
    folder = found[0].parent
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, "vocab_size": 151936, "tie_word_embeddings": True})
    peer = getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16).eval()
    peer.save_pretrained(tmp_path / "hf")
    for file in folder.iterdir():
        shutil.copy(file, tmp_path / "hf")
    facts = import_hf(tmp_path / "hf", tmp_path / "m")
    assert "the model has room for 151,936" in facts["vocabulary"]
    model = ModelDir(tmp_path / "m")
    export_hf(model, tmp_path / "again", "bf16")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[n], t) for n, t in peer.state_dict().items() if n in again)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    ours = load_tokenizer(model.tokenizer_path)
    for text in (
        "def f(x):\n    return x  # 计算",
        "２０２４年，naïve Ⅷ",
        "<|im_start|>user\nhi<|im_end|>\n",
        "e\u0301 🇨🇳",
    ):
        ids = theirs(text)["input_ids"]
        assert written(text)["input_ids"] == ids == ours.encode(text, allow_special=True)
    ids = torch.tensor([theirs("The capital of France is")["input_ids"]])
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32).eval()
    a, b = our_logits(model, ids), peer_logits(wide, ids)
    assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


def test_transformers_gives_the_logits_of_nano(tmp_path):
    """A trained model of Nano's and its adapter, as directories for transformers and PEFT, against Nano's program."""
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    model = import_golden("v2026_1/base_f32.bin", tmp_path / "m")
    import_adapter(NanoBin(golden("v2026_1/lora.bin")), tmp_path / "a", model)
    export_hf(model, tmp_path / "hf")
    export_peft(AdapterDir(tmp_path / "a"), model, tmp_path / "peft")
    peers = {
        "": load_peer(tmp_path / "hf"),
        "v2026_1/lora.bin": peft.PeftModel.from_pretrained(load_peer(tmp_path / "hf"), tmp_path / "peft").eval(),
    }
    compared = set()
    for run in json.loads(golden("outputs.json").read_text()):
        if run["file"] == "v2026_1/base_f32.bin" and run.get("logits_file"):
            theirs = np.fromfile(golden(run["logits_file"]), "<f4").reshape(-1, model.config.vocab_size)
            ids = torch.tensor([run["prompt_ids"]])
            agree(torch.from_numpy(theirs), peer_logits(peers[run["lora"]], ids)[0])
            compared.add(run["lora"])
    assert compared == set(peers)
