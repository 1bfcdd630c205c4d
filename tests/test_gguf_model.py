"""Models, tokenizers and adapters in GGUF: what goes out comes back, and what cannot come in is refused by name."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from bin_helpers import SPECIAL, TOKENS, make_model_dir, random_tensors, small_config
from gguf_helpers import ARCHITECTURE, ARRAY, F32, STRING, U32, VARIANTS, build, by_hand, write
from tokenizers_of_the_tests import byte_level

from nano_ds import lora
from nano_ds.cli import main
from nano_ds.errors import UserError
from nano_ds.instruct import template_of
from nano_ds.interop import gguf_tokenizer, importance
from nano_ds.interop.block_search import quantize
from nano_ds.interop.blocks import dequantize
from nano_ds.interop.gguf_adapter import import_adapter, write_adapter
from nano_ds.interop.gguf_export import QUANTS, write_gguf
from nano_ds.interop.gguf_file import GGUFFile, GGUFWriter
from nano_ds.interop.gguf_import import import_gguf
from nano_ds.interop.gguf_layout import tensor_names, tensor_types, turn_rows
from nano_ds.model import Transformer
from nano_ds.model_dir import AdapterDir, ModelDir, expected_shapes, new_meta, write_model_dir
from nano_ds.tokenizer import TrieTokenizer, load_tokenizer
from nano_ds.tokenizer.bpe import BPETokenizer


def trie():
    return TrieTokenizer(TOKENS, SPECIAL)


def export(path, config, tokenizer=None, quant="f32", tensors=None, **more):
    return write_gguf(path, config, tensors or random_tensors(config), tokenizer, new_meta(**more), quant)


def loaded(config, tensors):
    model = Transformer(config).eval()
    model.load_state_dict({n: torch.from_numpy(t.copy()) for n, t in tensors.items()})
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_comes_back_bit_for_bit(variant, tmp_path):
    config = small_config(**VARIANTS[variant])
    tensors = random_tensors(config)
    done = export(tmp_path / "x.gguf", config, trie(), tensors=tensors, step=3, licence="CC0")
    assert done.architecture == ARCHITECTURE[variant] and bool(done.reasons) == (done.architecture == "nano")
    found = import_gguf(tmp_path / "x.gguf", tmp_path / "m")
    model = ModelDir(tmp_path / "m")
    assert found.config == model.config == config
    for name in expected_shapes(config):
        assert model.tensors[name].tobytes() == tensors[name].tobytes(), name
    assert model.meta["step"] == 3 and model.meta["licence"] == "CC0" and model.meta["name"] == "x"
    assert load_tokenizer(model.tokenizer_path).fingerprint == trie().fingerprint


@pytest.mark.parametrize("variant", [v for v, a in ARCHITECTURE.items() if a != "nano"])
def test_a_reader_without_our_keys_computes_the_same(variant, tmp_path):
    """Other programs go by the architecture alone: rows must lie as it prescribes."""
    config = small_config(**VARIANTS[variant])
    export(tmp_path / "x.gguf", config, trie())
    data = (tmp_path / "x.gguf").read_bytes()
    write(tmp_path / "y.gguf", data.replace(b"nano_ds.rope_interleaved", b"nano_ds.rope_unknown_key"))
    foreign = import_gguf(tmp_path / "y.gguf", tmp_path / "m").config
    assert foreign.rope_interleaved == (ARCHITECTURE[variant] == "llama")
    ids = torch.randint(0, config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = loaded(config, random_tensors(config))(ids)
        theirs = loaded(foreign, dict(ModelDir(tmp_path / "m").tensors))(ids)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert torch.equal(theirs, ours) == (foreign == config)


def test_turning_rows_is_undone_by_turning_them_back():
    rows = np.arange(48).reshape(12, 4)
    turned = turn_rows(rows, 6, interleaved=True)
    assert turned[:6, 0].tolist() == [4 * i for i in (0, 3, 1, 4, 2, 5)]
    assert (turn_rows(turned, 6, interleaved=False) == rows).all()


@pytest.mark.parametrize(
    ("arch", "variant"),
    [("llama", "plain"), ("llama", "untied"), ("llama", "bias"), ("qwen2", "qwen2"), ("qwen3", "qwen3")],
)
def test_reads_files_assembled_by_hand(arch, variant, tmp_path):
    config = small_config(**VARIANTS[variant])
    tensors = random_tensors(config)
    more = {f"{arch}__attention__key_length": (U32, config.head_width)} if config.head_dim else {}
    found = import_gguf(write(tmp_path / "x.gguf", by_hand(config, tensors, arch, **more)), tmp_path / "m", "CC0")
    assert found.config == config and found.tokenizer is None
    model = ModelDir(tmp_path / "m")
    assert all((model.tensors[n] == tensors[n]).all() for n in tensors)
    assert not model.tokenizer_path.exists() and model.meta["licence"] == "CC0"


def refusals():
    yield {"general__architecture": (STRING, "gpt2")}, "architecture 'gpt2'; nano_ds reads llama, qwen2, qwen3, nano"
    yield {"general__type": (STRING, "mmproj")}, "not a model"
    yield {"split__count": (2, 4)}, "split model"
    yield {"llama__rope__scaling__type": (STRING, "yarn")}, "'yarn' asks for scaled rotary positions"
    yield {"llama__rope__scaling__factor": (F32, 8.0)}, "8.0 asks for scaled rotary positions"
    yield {"llama__attention__sliding_window": (U32, 4096)}, "a sliding window"
    yield {"llama__expert_count": (U32, 8)}, "experts"
    yield {"llama__rope__dimension_count": (U32, 8)}, "rotates part of a head of 16"
    yield {"llama__attention__value_length": (U32, 8)}, "differs from the width of keys, 16"
    yield {"llama__attention__key_length": (U32, 8)}, "blk.0.attn_q.weight: shape [64, 64], its keys ask for [32, 64]"
    yield {"llama__logit_scale": (F32, 2.0)}, "llama.logit_scale: 2.0: unknown here"
    yield {"llama__context_length": None}, "llama.context_length: is missing"
    yield {"llama__block_count": (STRING, "2")}, "expected a positive whole number, not '2'"
    yield {"llama__block_count": (U32, 1 << 31)}, "n_layer"
    yield {"llama__attention__head_count": (U32, 3)}, "n_head"
    yield {"llama__attention__head_count_kv": (ARRAY, (5, [2, 4]))}, "differs between layers"
    yield {"llama__attention__layer_norm_rms_epsilon": (F32, float("nan"))}, "expected a number, not nan"
    yield {"llama__attention__causal": (U32, 1)}, "expected true or false"
    yield {"llama__vocab_size": (U32, 12)}, "token_embd.weight: shape [11, 64], its keys ask for [12, 64]"
    yield {"llama__block_count": (U32, 3)}, "blk.2.attn_norm.weight: missing"
    yield {"llama__block_count": (U32, 1)}, "blk.1.attn_norm.weight: has no place"
    yield {"tokenizer__ggml__model": (STRING, "llama")}, "SentencePiece ('llama')"
    yield {"tokenizer__ggml__model": None}, "tokenizer is missing"
    yield {"tokenizer__ggml__model": (STRING, "rwkv")}, "expected 11 texts, one per embedding, found none"


@pytest.mark.parametrize(("more", "says"), list(refusals()))
def test_what_cannot_be_represented_is_refused_by_name(more, says, tmp_path):
    config = small_config()
    path = write(tmp_path / "x.gguf", by_hand(config, random_tensors(config), **more))
    with pytest.raises(UserError) as e:
        import_gguf(path, tmp_path / "m")
    assert says in str(e.value) and not (tmp_path / "m").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    if "tokenizer" in next(iter(more)):
        assert import_gguf(path, tmp_path / "m", with_tokenizer=False).tokenizer is None


def test_tensors_without_a_place_are_named(tmp_path):
    config = small_config()
    path = tmp_path / "x.gguf"
    export(path, config)
    file = GGUFFile(path)
    extra = [("rope_freqs.weight", (8,), "f32"), ("blk.0.ffn_gate_inp.weight", (8, 64), "f32")]
    with GGUFWriter(path, dict(file.metadata), [(n, i.shape, "f32") for n, i in file.infos.items()] + extra) as writer:
        for name in file:
            writer.write(name, file[name])
        for name, shape, _ in extra:
            writer.write(name, np.zeros(shape, np.float32))
    with pytest.raises(UserError) as e:
        import_gguf(path, tmp_path / "m")
    assert "rope_freqs.weight: has no place in a model of ours; it scales rotary positions" in str(e.value)
    assert "blk.0.ffn_gate_inp.weight: has no place" in str(e.value)


def test_every_truncation_of_a_model_is_refused(tmp_path):
    config = small_config(n_embd=8, n_hidden=8, n_layer=1)
    tensors = random_tensors(config)
    export(tmp_path / "x.gguf", config, trie(), tensors=tensors)
    data = (tmp_path / "x.gguf").read_bytes()
    import_gguf(tmp_path / "x.gguf", tmp_path / "m")
    for cut in range(len(data)):
        with pytest.raises(UserError):
            import_gguf(write(tmp_path / "x.gguf", data[:cut]), tmp_path / "n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "x.gguf"]


@pytest.mark.parametrize("kind", ["trie", "bpe", "adapter"])
def test_a_bent_head_ends_in_an_import_or_a_user_error(kind, tmp_path):
    made = byte_level("qwen2") if kind == "bpe" else trie()
    config = small_config(n_embd=8, n_hidden=8, n_layer=1, vocab_size=made.vocab_size)
    path = tmp_path / "x.gguf"
    export(path, config, made)
    if kind == "adapter":
        folder = make_model_dir(tmp_path / "m", small_config(n_embd=8, n_hidden=8, n_layer=1))
        adapter_of(folder)
        write_adapter(path, AdapterDir(tmp_path / "adapter"), folder)
    data = path.read_bytes()
    head = data.index(b"output_norm.weight") if kind != "adapter" else len(data) - 600
    rng = random.Random(1)
    outcomes = set()
    for _ in range(300):
        bent = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            bent[rng.randrange(8, head)] = rng.choice((0, 1, 3, 8, 9, 0x20, 0x7F, 0xFF, rng.randrange(256)))
        try:
            if kind == "adapter":
                import_adapter(write(path, bytes(bent)), tmp_path / "out", folder)
            else:
                import_gguf(write(path, bytes(bent)), tmp_path / "out")
            outcomes.add("read")
        except UserError as e:
            outcomes.add("refused")
            assert str(path) in str(e) or "model" in str(e) or "--" in str(e), e
    assert outcomes == {"read", "refused"}


def test_arrays_where_one_value_belongs_are_refused(tmp_path):
    config = small_config()
    several = (ARRAY, (U32, [1, 2]))
    for key in ("general.architecture", "general.type", "split.count", "llama.rope.freq_base", "llama.block_count",
                "llama.rope.scaling.type", "llama.rope.dimension_count", "llama.attention.value_length",
                "llama.attention.key_length", "tokenizer.ggml.model"):  # fmt: skip
        data = by_hand(config, random_tensors(config), **{key.replace(".", "__"): several})
        with pytest.raises(UserError):
            import_gguf(write(tmp_path / "x.gguf", data), tmp_path / "m")


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_quantised_files_hold_what_the_types_make_of_the_weights(quant, tied, tmp_path):
    config = small_config(n_embd=256, n_hidden=320, tie_embeddings=tied, n_layer=4)
    tensors, names = random_tensors(config), tensor_names(config)
    export(tmp_path / "x.gguf", config, trie(), quant, tensors)
    file, types = GGUFFile(tmp_path / "x.gguf"), tensor_types(config, quant)
    for ours, theirs in names.items():
        assert file.infos[theirs].type.name == types[ours]
        rows = tensors[ours].reshape(-1, tensors[ours].shape[-1])
        assert (file[theirs].reshape(-1) == dequantize(types[ours], quantize(types[ours], rows))).all()
        assert types[ours] == "f32" or "norm" not in ours
    assert (file.metadata.get("general.quantization_version") == 2) == (quant[0] == "q")
    import_gguf(tmp_path / "x.gguf", tmp_path / "m")
    model = ModelDir(tmp_path / "m")
    for name in tensors:
        assert np.abs(model.tensors[name] - tensors[name]).max() < 0.08


def test_types_by_what_a_matrix_does_and_how_long_its_rows_are():
    types = tensor_types(small_config(n_embd=256, n_hidden=512, n_layer=16, tie_embeddings=False), "q4_k")
    assert types["head.weight"] == "q6_k" and types["tok_emb.weight"] == "q4_k"
    fine = [i for i in range(16) if types[f"blocks.{i}.ffn.w2.weight"] == "q6_k"]
    assert (
        fine == [0, 1, 4, 7, 10, 13, 14, 15] == [i for i in range(16) if types[f"blocks.{i}.attn.wv.weight"] == "q6_k"]
    )
    assert {types[f"blocks.{i}.ffn.w1.weight"] for i in range(16)} == {"q4_k"}
    types = tensor_types(small_config(n_embd=576, n_hidden=1536, n_head=9, n_kv_head=3), "q4_k")
    assert types["tok_emb.weight"] == "q8_0" and types["blocks.0.attn.wq.weight"] == "q5_0"
    assert types["blocks.0.ffn.w2.weight"] == "q4_k" and types["blocks.0.attn_norm.weight"] == "f32"
    assert tensor_types(small_config(n_embd=40), "q4_0")["blocks.0.attn.wq.weight"] == "f16"


def greedy(tokens, data):
    """What llama.cpp's `rwkv` does with tokens as they are spelled in the file."""
    table = {gguf_tokenizer.unescape(t): i for i, t in enumerate(tokens)}
    longest, ids, at = max(map(len, table)), [], 0
    while at < len(data):
        size = next(n for n in range(min(longest, len(data) - at), 0, -1) if data[at : at + n] in table)
        ids.append(table[data[at : at + size]])
        at += size
    return ids


def test_a_trie_goes_out_as_rwkv_and_encodes_the_same(tokenizer, tmp_path):
    config = small_config(vocab_size=tokenizer.vocab_size)
    done = export(tmp_path / "x.gguf", config, tokenizer)
    m = GGUFFile(tmp_path / "x.gguf").metadata
    assert m["tokenizer.ggml.model"] == "rwkv" and not done.remarks and m["tokenizer.ggml.add_bos_token"] is False
    for key, name in (("eos", "<|eos|>"), ("padding", "<|padding|>"), ("unknown", "<|unknown|>"), ("bos", "<|bos|>")):
        assert m[f"tokenizer.ggml.{key}_token_id"] == tokenizer.special[name]
    assert np.flatnonzero(m["tokenizer.ggml.token_type"] == 3).tolist() == sorted(tokenizer.special.values())
    assert len(set(m["tokenizer.ggml.tokens"])) == tokenizer.vocab_size
    assert all(t.isprintable() or not t.isascii() for t in m["tokenizer.ggml.tokens"])
    rng = random.Random(0)
    texts = ["the cat sat\n\ton a mat \\n 猫坐在垫子上 naïve \x00\x7f", *(bytes(rng.randbytes(40)) for _ in range(50))]
    for text in texts:
        data = text.encode() if isinstance(text, str) else text
        assert greedy(m["tokenizer.ggml.tokens"], data) == tokenizer.encode(data)
    found = import_gguf(tmp_path / "x.gguf", tmp_path / "m").tokenizer
    assert isinstance(found, TrieTokenizer) and found.fingerprint == tokenizer.fingerprint
    assert export(tmp_path / "y.gguf", small_config(), trie()).remarks[0].startswith("the vocabulary lacks byte tokens")


def test_escapes_name_every_byte():
    for token in [bytes([b]) for b in range(256)] + ["é\\x猫".encode(), b"\\t", b"\\\\x41", b"ab\xff\xfe"]:
        spelled = gguf_tokenizer.escape(token)
        assert spelled.isprintable() and gguf_tokenizer.unescape(spelled) == token
    assert gguf_tokenizer.escape(b"\xe7\n\x01\\") == r"\xe7\n\x01\\"


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_bpe_goes_out_as_gpt2_and_comes_back(pre, tmp_path):
    made = byte_level(pre)
    config = small_config(vocab_size=made.vocab_size + 5)
    export(tmp_path / "x.gguf", config, made)
    m = GGUFFile(tmp_path / "x.gguf").metadata
    assert m["tokenizer.ggml.model"] == "gpt2" and m["tokenizer.ggml.pre"] == pre
    assert m["tokenizer.ggml.merges"][0] == "Ġ t" and m["tokenizer.ggml.tokens"][ord("\n")] == "Ċ"
    assert m["tokenizer.ggml.tokens"][-1] == f"[PAD{config.vocab_size - 1}]"
    assert m["tokenizer.ggml.token_type"][-6:].tolist() == [4, *[5] * 5]
    back = import_gguf(tmp_path / "x.gguf", tmp_path / "m").tokenizer
    assert isinstance(back, BPETokenizer) and back._tree() == made._tree()
    assert load_tokenizer(tmp_path / "m" / "tokenizer.json").fingerprint == made.fingerprint
    assert back.encode("the thing is 2024 <think>") == made.encode("the thing is 2024 <think>")


def test_what_other_programs_leave_out_of_a_bpe_is_filled_in(tmp_path):
    made = byte_level("llama-bpe")
    config = small_config(vocab_size=made.vocab_size)
    export(tmp_path / "x.gguf", config, made)
    data = (tmp_path / "x.gguf").read_bytes().replace(b"nano_ds.tokenizer.", b"elsewhere.tokenizr")
    back = import_gguf(write(tmp_path / "x.gguf", data), tmp_path / "m").tokenizer
    assert back.ignore_merges and back.normalize is None
    assert back.stop == [made.special["<|im_end|>"]], "by name"


def test_tokenizers_that_nano_ds_has_not_are_refused(tmp_path):
    made = byte_level("gpt-2")
    config = small_config(vocab_size=made.vocab_size)
    export(tmp_path / "x.gguf", config, made)
    good = (tmp_path / "x.gguf").read_bytes()
    for old, new, says in (
        (b"gpt-2", b"dbrx?", "pre-tokeniser 'dbrx?'"),
        ("Ġ t".encode(), "Ġ☃".encode()[:4], "does not join two tokens"),
        (b"tokenizer.ggml.merges", b"tokenizer.ggml.nerges", "merges is missing"),
        ("Ċ".encode(), "ж".encode(), "is not spelled in GPT-2's byte alphabet"),
    ):
        assert good.count(old) >= 1 and len(old) == len(new)
        with pytest.raises(UserError, match=says.replace("?", r"\?")):
            import_gguf(write(tmp_path / "x.gguf", good.replace(old, new, 1)), tmp_path / "m")
    with pytest.raises(UserError, match="do not belong"):
        export(tmp_path / "y.gguf", small_config(vocab_size=10), made)


def test_the_chat_template_asks_as_the_instruct_template_does(tokenizer):
    jinja2 = pytest.importorskip("jinja2")
    values, _ = gguf_tokenizer.tokenizer_metadata(tokenizer, tokenizer.vocab_size)
    template = jinja2.Environment().from_string(values["tokenizer.chat_template"])
    say = lambda role, content: {"role": role, "content": content}  # noqa: E731
    text = template.render(messages=[say("user", "the cat"), say("assistant", "sat"), say("user", "a mat")])
    ours = template_of(tokenizer)
    wanted = [*ours.question("the cat"), *ours.answer(tokenizer.encode("sat")), *ours.question("a mat")]
    assert tokenizer.encode(text, allow_special=True) == wanted
    text = template.render(messages=[say("system", "be brief"), say("user", "the cat")], add_generation_prompt=True)
    assert text == "<|instruct_mark|>be brief\nthe cat<|response_mark|>"


def adapter_of(folder, targets=("wq", "wk", "wv", "w2"), seed=0):
    model = Transformer(folder.config).eval()
    folder.load_into(model)
    lora.inject(model, 3, 5.5, targets)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, m in lora.adapted(model):
            m.lora_a.normal_(generator=generator)
            m.lora_b.normal_(generator=generator)
    lora.save(model, folder.path.parent / "adapter", folder.fingerprint)
    return model


@pytest.mark.parametrize("variant", ["plain", "halves", "qwen2 interleaved", "bias halves", "positions"])
def test_adapters_come_back_and_can_be_merged(variant, tmp_path):
    folder = make_model_dir(tmp_path / "m", small_config(**VARIANTS[variant]))
    model = adapter_of(folder)
    adapter, out = AdapterDir(tmp_path / "adapter"), tmp_path / "a.gguf"
    assert write_adapter(out, adapter, folder) == ARCHITECTURE[variant]
    m = GGUFFile(out).metadata
    assert (m["general.type"], m["adapter.type"], m["adapter.lora.alpha"]) == ("adapter", "lora", 5.5)
    assert GGUFFile(out).infos["blk.0.attn_q.weight.lora_b"].shape == (64, 3)
    import_adapter(out, tmp_path / "back", folder)
    back = AdapterDir(tmp_path / "back")
    assert back.config == adapter.config and set(back.tensors) == set(adapter.tensors)
    assert all((back.tensors[n] == adapter.tensors[n]).all() for n in adapter.tensors)

    ids = torch.arange(8)[None]
    with torch.no_grad():
        wanted = model(ids)
        for path in (out, tmp_path / "adapter"):
            plain = Transformer(folder.config).eval()
            folder.load_into(plain)
            lora.load(plain, path, folder)
            torch.testing.assert_close(plain(ids), wanted)
            args = ["export", str(folder.path), "-o", str(tmp_path / "merged.gguf"), "--merge", str(path)]
            assert main(args) == 0
            import_gguf(tmp_path / "merged.gguf", tmp_path / "merged")
            merged = ModelDir(tmp_path / "merged")
            torch.testing.assert_close(loaded(merged.config, dict(merged.tensors))(ids), wanted, rtol=1e-4, atol=1e-4)
    if ARCHITECTURE[variant] != "nano":
        # As a program sees it that knows only what the files say: rows of model and adapter lie alike.
        export(tmp_path / "base.gguf", folder.config, tensors=dict(folder.tensors))
        base, delta = GGUFFile(tmp_path / "base.gguf"), GGUFFile(out)
        for name in ("blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.0.ffn_down.weight"):
            sum_ = base[name] + np.float32(5.5 / 3) * (delta[f"{name}.lora_b"] @ delta[f"{name}.lora_a"])
            np.testing.assert_allclose(sum_, GGUFFile(tmp_path / "merged.gguf")[name], rtol=1e-5, atol=1e-5)


def bad_adapters():
    a, b = ((64, 3), 0, bytes(4 * 3 * 64)), ((3, 64), 0, bytes(4 * 3 * 64))
    pair = {"blk.0.attn_q.weight.lora_a": a, "blk.0.attn_q.weight.lora_b": b}
    yield {"adapter.type": (STRING, "control_vector")}, pair, "'control_vector'; nano_ds reads lora"
    yield {"general.architecture": (STRING, "gemma")}, pair, "for architecture 'gemma'"
    yield {"adapter.lora.alpha": (F32, -1.0)}, pair, "must be a positive number"
    yield {}, {"blk.0.attn_q.weight.lora_a": a}, "without its other half"
    yield {}, {"token_embd.weight.lora_a": a}, "no adapter of a layer"
    yield {}, {**pair, "blk.0.ssm_in.weight.lora_a": a}, "no adapter of a layer"
    yield {}, {**pair, "blk.1.attn_q.weight.lora_a": ((64, 2), 0, bytes(512)),
               "blk.1.attn_q.weight.lora_b": ((2, 64), 0, bytes(512))}, "ranks [2, 3]"  # fmt: skip
    yield {}, {}, "no layers"
    yield {}, {n.replace("blk.0", "blk.7"): t for n, t in pair.items()}, "blocks.7.attn.wq, which"
    yield {}, {n.replace("attn_q", "attn_k"): t for n, t in pair.items()}, "is [64, 3], "


@pytest.mark.parametrize(("keys", "tensors", "says"), list(bad_adapters()))
def test_adapters_that_do_not_fit_are_refused(keys, tensors, says, tmp_path):
    base = make_model_dir(tmp_path / "m")
    good = {"general.architecture": (STRING, "llama"), "general.type": (STRING, "adapter")}
    good |= {"adapter.type": (STRING, "lora"), "adapter.lora.alpha": (F32, 4.0)}
    path = write(tmp_path / "a.gguf", build({**good, **keys}, tensors))
    with pytest.raises(UserError) as e:
        import_adapter(path, tmp_path / "a", base)
    assert says in str(e.value) and not (tmp_path / "a").exists()
    with pytest.raises(UserError):
        lora.load(Transformer(base.config), path)


def test_importance_is_the_mean_square_of_what_goes_in(tokenizer, tmp_path):
    config = small_config(vocab_size=tokenizer.vocab_size)
    tensors = random_tensors(config)
    with write_model_dir(tmp_path / "m", config, tokenizer, new_meta()) as writer:
        for name in writer.names:
            writer.write(name, tensors[name])
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat and then another cat came " * 20)
    got = importance.collect(ModelDir(tmp_path / "m"), text)
    assert set(got) == {n for n, s in expected_shapes(config).items() if len(s) == 2}
    ids = tokenizer.encode(text.read_text())
    model, seen = loaded(config, tensors), []
    model.blocks[1].ffn.w2.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    with torch.no_grad():
        hidden = [model.hidden(torch.tensor([ids[i : i + 16]])) for i in range(0, len(ids) - 15, 16)]
    np.testing.assert_allclose(got["tok_emb.weight"], torch.cat(hidden, 1).square().mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(got["blocks.1.ffn.w2.weight"], torch.cat(seen, 1).square().mean((0, 1)), rtol=1e-4)
    assert (got["blocks.0.attn.wq.weight"] == got["blocks.0.attn.wv.weight"]).all()
    text.write_text("cat")
    with pytest.raises(UserError, match="give at least a page"):
        importance.collect(ModelDir(tmp_path / "m"), text)


def test_calibration_changes_the_bytes_of_four_bits_only(tokenizer, tmp_path, capsys):
    config = small_config(vocab_size=tokenizer.vocab_size)
    tensors = random_tensors(config)
    with write_model_dir(tmp_path / "m", config, tokenizer, new_meta()) as writer:
        for name in writer.names:
            writer.write(name, tensors[name])
    (tmp_path / "t.txt").write_text("the cat sat on a mat " * 50)
    m, text = str(tmp_path / "m"), str(tmp_path / "t.txt")
    blind, seeing = tmp_path / "a.gguf", tmp_path / "b.gguf"
    assert main(["export", m, "-o", str(blind), "--quant", "q4_0"]) == 0
    assert main(["export", m, "-o", str(seeing), "--quant", "q4_0", "--calibrate", text]) == 0
    assert blind.stat().st_size == seeing.stat().st_size and blind.read_bytes() != seeing.read_bytes()
    assert main(["export", m, "-o", str(blind), "--quant", "q8_0", "--calibrate", text]) == 2
    assert "makes no use of it" in capsys.readouterr().err


def test_commands(tmp_path, capsys):
    folder = make_model_dir(tmp_path / "m", small_config(is_causal=False, use_rope=False))
    out, back, m = str(tmp_path / "o.gguf"), str(tmp_path / "back"), str(folder.path)
    assert main(["export", m, "-o", out, "--quant", "q8_0"]) == 0
    said = capsys.readouterr().err
    assert "architecture nano" in said and "llama.cpp has no architecture with full attention, learned" in said
    assert "15 q8_0" in said
    os.rename(out, tmp_path / "renamed.bin")  # the content decides, not the name
    assert main(["import", str(tmp_path / "renamed.bin"), "-o", back]) == 0
    assert "GGUF, nano, 15 q8_0, 6 f32" in capsys.readouterr().err and ModelDir(back).config == folder.config
    assert main(["import", str(tmp_path / "renamed.bin"), "-o", back, "--no-tokenizer"]) == 0
    assert not ModelDir(back).tokenizer_path.exists()
    assert main(["export", m, "-o", out, "--no-tokenizer"]) == 0
    assert GGUFFile(out).metadata["tokenizer.ggml.model"] == "no_vocab"
    capsys.readouterr()
    adapter_of(folder)
    a = str(tmp_path / "adapter")
    for args, says in (
        (["export", m, "-o", out, "--quant", "q80"], "gguf has f32, f16, bf16, q8_0, q4_0, q4_k"),
        (["export", m, "-o", out, "--group-size", "64"], "belongs to bin"),
        (["export", m, "-o", m, "--to", "gguf"], "is a folder"),
        (["export", m, "-o", out, "--lora", a, "--quant", "q8_0"], "adapters are written in float32"),
        (["import", str(tmp_path / "renamed.bin"), "-o", back, "--no-causal"], "belongs to Nano .bin files"),
        (["import", str(tmp_path / "renamed.bin"), "-o", back, "--base", m], "belongs to adapters"),
    ):
        assert main(args) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
    assert main(["export", m, "-o", out, "--lora", a]) == 0
    assert main(["import", out, "-o", back + "2"]) == 2, "the order of rows depends on the base"
    assert "--base MODEL_DIR" in capsys.readouterr().err
    assert main(["import", out, "-o", back + "2", "--base", m]) == 0
    assert AdapterDir(back + "2").config == AdapterDir(a).config


def test_smollm2(tmp_path):
    """The shipped file: its tensors are those of the `gguf` package, and it predicts English."""
    data = os.environ.get("NANO_DATA")
    if not data:
        pytest.skip("NANO_DATA does not name a folder with real models")
    (path,) = Path(data).rglob("SmolLM2-135M-Instruct.Q4_1.gguf")
    found = import_gguf(path, tmp_path / "m")
    c, t = found.config, found.tokenizer
    assert (c.n_layer, c.n_embd, c.hidden, c.n_head, c.n_kv_head) == (30, 576, 1536, 9, 3)
    assert (c.vocab_size, c.rope_theta, c.block_size, c.tie_embeddings) == (49152, 1e5, 8192, True)
    assert isinstance(t, BPETokenizer) and t.pre == "smollm" and t.tokens[t.eos] == "<|im_end|>"
    folder = ModelDir(tmp_path / "m")
    assert folder.meta["licence"] == "apache-2.0"
    model = Transformer(c).eval()
    folder.load_into(model)
    ids = torch.tensor([t.encode("The capital of France is")])
    with torch.no_grad():
        assert t.decode([int(model(ids)[0, -1].argmax())]) == " Paris"
    again = write_gguf(tmp_path / "x.gguf", c, folder.tensors, t, folder.meta)
    assert again.architecture == "llama"
    shipped, ours = GGUFFile(path), GGUFFile(tmp_path / "x.gguf")
    assert all((ours[n] == shipped[n]).all() for n in shipped)
    for key, value in shipped.metadata.items():
        if key.startswith(
            ("llama.", "tokenizer.ggml.tok", "tokenizer.ggml.mer", "tokenizer.ggml.bos", "tokenizer.chat")
        ):
            assert np.array_equal(ours.metadata[key], value), key
