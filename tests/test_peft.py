"""PEFT directories: against the library itself, and by hand where one is refused."""

import json

import numpy as np
import pytest
import torch
from hf_helpers import agree, lively_model, load_peer, our_logits, peer_logits, token_ids
from safetensors.numpy import load_file, save_file

from nano_ds.cli import main
from nano_ds.errors import UserError
from nano_ds.interop.hf import export_hf, import_hf
from nano_ds.interop.peft import export_peft, import_peft
from nano_ds.model_dir import AdapterConfig, AdapterDir, ModelDir, adapter_shapes, expected_shapes, write_adapter_dir

ATTENTION = ("wq", "wk", "wv", "wo")
BASES = {
    "llama, pairs": {},
    "llama, halves": {"rope_interleaved": False, "tie_embeddings": False},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 32},
}


def make_adapter(path, base, targets=ATTENTION, only="", rank=3, alpha=4.5):
    shapes = {}
    for name, shape in expected_shapes(base.config).items():
        linear = name.removesuffix(".weight")
        if name.endswith(".weight") and linear.rpartition(".")[2] in targets and only in linear:
            shapes |= adapter_shapes(linear, rank, *shape)
    config = AdapterConfig(rank=rank, alpha=alpha, targets=targets, base_fingerprint=base.fingerprint)
    rng = np.random.default_rng(5)
    with write_adapter_dir(path, config, shapes) as writer:
        for name in writer.names:
            writer.write(name, rng.normal(0, 0.3, shapes[name]))
    return AdapterDir(path)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize(("targets", "only"), [(ATTENTION, ""), (("w1", "w2", "wk"), ""), (("wq", "w3"), "blocks.1.")])
def test_ours_in_peft(kind, targets, only, tmp_path):
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base = lively_model(tmp_path / "m", **BASES[kind])
    make_adapter(tmp_path / "a", base, targets, only)
    export_hf(base, tmp_path / "hf")
    export_peft(AdapterDir(tmp_path / "a"), base, tmp_path / "peft")
    peer = peft.PeftModel.from_pretrained(load_peer(tmp_path / "hf"), tmp_path / "peft").eval()
    ids = token_ids(base.config)
    ours = our_logits(base, ids, tmp_path / "a")
    agree(ours, peer_logits(peer, ids))
    assert float((ours - our_logits(base, ids)).abs().max()) > 0.1  # the adapter does something


@pytest.mark.parametrize("kind", BASES)
def test_theirs_here(kind, tmp_path):
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base = lively_model(tmp_path / "m", **BASES[kind])
    export_hf(base, tmp_path / "hf")
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM")
    peer = peft.get_peft_model(load_peer(tmp_path / "hf"), config).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in peer.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.3)
    peer.save_pretrained(tmp_path / "peft", save_embedding_layers=True)  # stores them beside the adapter
    import_peft(tmp_path / "peft", tmp_path / "a", base)
    adapter = AdapterDir(tmp_path / "a")
    adapter.check_base(base)
    assert adapter.config.rank == 4 and adapter.config.alpha == 6
    ids = token_ids(base.config)
    agree(peer_logits(peer, ids), our_logits(base, ids, tmp_path / "a"))
    # The base that came in from the Hugging Face directory takes the same adapter.
    import_hf(tmp_path / "hf", tmp_path / "back")
    import_peft(tmp_path / "peft", tmp_path / "b", ModelDir(tmp_path / "back"))
    assert all((AdapterDir(tmp_path / "b").tensors[n] == t).all() for n, t in adapter.tensors.items())


@pytest.mark.parametrize("kind", BASES)
def test_there_and_back_changes_nothing(kind, tmp_path):
    base = lively_model(tmp_path / "m", **BASES[kind])
    adapter = make_adapter(tmp_path / "a", base, ("wq", "wk", "w1"), "blocks.")
    export_peft(adapter, base, tmp_path / "peft")
    import_peft(tmp_path / "peft", tmp_path / "b", base)
    back = AdapterDir(tmp_path / "b")
    assert back.config.rank == 3 and back.config.alpha == 4.5 and set(back.config.targets) == {"wq", "wk", "w1"}
    assert back.config.base_fingerprint == base.fingerprint
    assert set(back.tensors) == set(adapter.tensors)
    for name, tensor in adapter.tensors.items():
        assert back.tensors[name].tobytes() == tensor.tobytes(), name


def test_files_as_peft_names_them(tmp_path):
    base = lively_model(tmp_path / "m")
    export_peft(make_adapter(tmp_path / "a", base), base, tmp_path / "all")
    config = json.loads((tmp_path / "all" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 3 and config["lora_alpha"] == 4.5
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    stored = load_file(tmp_path / "all" / "adapter_model.safetensors")
    assert stored["base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"].shape == (32, 3)
    export_peft(make_adapter(tmp_path / "b", base, only="blocks.0."), base, tmp_path / "some")
    config = json.loads((tmp_path / "some" / "adapter_config.json").read_text())
    assert "model.layers.0.self_attn.q_proj" in config["target_modules"]  # else PEFT would adapt layer 1, too


@pytest.fixture
def written(tmp_path):
    base = lively_model(tmp_path / "m")
    export_peft(make_adapter(tmp_path / "a", base), base, tmp_path / "peft")
    return base, tmp_path / "peft"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"use_rslora": True}, "use_rslora: True; it scales by"),
        ({"use_dora": True}, "use_dora: True; it has a magnitude"),
        ({"bias": "lora_only"}, "bias: 'lora_only'; it trains biases"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: .'lm_head'.; it replaces"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; nano_ds has LORA"),
        ({"r": 0}, "r: 0; expected a rank"),
        ({"r": 4}, r"shape \[3, 64\], expected \[4, 64\]"),
        ({"lora_alpha": "x"}, "lora_alpha: 'x'"),
    ],
)
def test_configs_that_are_refused(more, says, written):
    base, folder = written
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    with pytest.raises(UserError, match=says):
        import_peft(folder, folder.parent / "out", base)
    assert not (folder.parent / "out").exists()


def test_weights_that_are_refused(written):
    base, folder = written
    file = folder / "adapter_model.safetensors"
    good = load_file(file)
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    a = np.zeros((3, 64), np.float32)
    for bent, says in (
        ({n: t for n, t in good.items() if n != first}, "q_proj.lora_A.weight: missing"),
        ({**good, first: np.zeros((3, 60), np.float32)}, r"shape \[3, 60\], expected \[3, 64\]"),
        ({**good, first.replace("lora_A.weight", "lora_magnitude_vector"): a}, "no LoRA weight of a layer"),
        ({**good, "base_model.model.model.embed_tokens.lora_embedding_A": a}, "no LoRA weight of a layer"),
        ({**good, "base_model.model.model.embed_tokens.lora_A.weight": a}, "which is no linear layer of a block"),
        ({**good, "base_model.model.model.norm.lora_A.weight": a}, "which is no linear layer of a block"),
        ({**good, "base_model.model.lm_head.lora_A.weight": a}, "adapts lm_head, which is no"),
        ({**good, first.replace("layers.0", "layers.2"): a}, "adapts model.layers.2.self_attn.q_proj, which is no"),
        ({**good, first.replace("base_model.model.", ""): a}, "no LoRA weight of a layer"),
        ({**good, "base_model.model.lm_head.weight": np.zeros((11, 64), np.float32)}, "is another than that of"),
        ({**good, "base_model.model.model.embed_tokens.weight": a}, "is another than that of"),
        ({}, "adapts nothing"),
    ):
        save_file(bent, file)
        with pytest.raises(UserError, match=says):
            import_peft(folder, folder.parent / "out", base)
    file.unlink()
    with pytest.raises(UserError, match="lacks adapter_model"):
        import_peft(folder, folder.parent / "out", base)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="a pickle, which can run code"):
        import_peft(folder, folder.parent / "out", base)
    assert not (folder.parent / "out").exists()


def test_commands(tmp_path, capsys):
    make_adapter(tmp_path / "a", lively_model(tmp_path / "m"))
    m, a, peft, b = (str(tmp_path / n) for n in ("m", "a", "peft", "b"))
    assert main(["export", m, "--lora", a, "-o", peft, "--to", "peft"]) == 0
    assert main(["import", peft, "-o", b, "--base", m]) == 0
    assert "rank 3, alpha 4.5, on 8 layers" in capsys.readouterr().err
    assert main(["import", peft, "-o", b]) == 2
    assert "say --base MODEL_DIR" in capsys.readouterr().err
    lively_model(tmp_path / "other", seed=1)
    assert main(["export", str(tmp_path / "other"), "--lora", a, "-o", peft, "--to", "peft"]) == 2
    assert "another base model" in capsys.readouterr().err
