"""Nano's .pt checkpoints, put together here as its training writes them, and files that would like to run code."""

import io
import json
import os
import pickle
import sys
import types
import zipfile
from dataclasses import dataclass

import pytest
import torch
from bin_helpers import SPECIAL, TOKENS, make_model_dir, random_tensors, small_config, vocabulary

from nano_ds.cli import main
from nano_ds.errors import UserError
from nano_ds.interop.pt import import_pt
from nano_ds.interop.vocabulary import Vocabulary
from nano_ds.model_dir import AdapterDir, ModelDir
from nano_ds.tokenizer import load_tokenizer


@pytest.fixture
def nano(monkeypatch):
    """A module `model` with config classes, like Nano's; gone again before a file is read."""
    module = types.ModuleType("model")
    for name in ("ModelConfig", "TrainConfig"):
        body = {"__module__": "model", "__init__": lambda self, **fields: self.__dict__.update(fields)}
        setattr(module, name, type(name, (), body))
    monkeypatch.setitem(sys.modules, "model", module)
    return module


CONFIG = {
    "block_size": 16,
    "vocab_size": len(TOKENS),
    "n_layer": 2,
    "n_head": 4,
    "n_kv_head": 2,
    "n_embd": 64,
    "n_hidden": 128,
    "dropout": 0.1,
    "bias": False,
    "use_rope": True,
    "norm_eps": 1e-5,
    "is_causal": True,
}
NAMES = {
    "tok_emb": "tok_embeddings",
    "final_norm": "norm",
    "pos_emb": "pos_embeddings",
    "head": "output",
    "attn_norm": "attention_norm",
    "attn": "attention",
    "ffn": "feed_forward",
    "blocks": "layers",
}


def nano_tokenizer():
    return {
        "vocab_size": len(TOKENS),
        "stoi": {t: i for i, t in enumerate(TOKENS)},
        "itos": dict(enumerate(TOKENS)),
        "special_tokens": {TOKENS[i]: i for i in SPECIAL},
    }


def state_dict(config, prefix="", dtype=torch.float32):
    """Ours under Nano's names, with the buffers and the second name of the tied matrix."""
    state = torch.nn.Module().state_dict()  # an OrderedDict with _metadata
    for name, tensor in random_tensors(config).items():
        state[prefix + ".".join(NAMES.get(p, p) for p in name.split("."))] = torch.from_numpy(tensor).to(dtype)
    state.setdefault(f"{prefix}output.weight", state[f"{prefix}tok_embeddings.weight"])
    for name in ("freqs_cos", "freqs_sin", "layers.0.attention.mask"):
        state[prefix + name] = torch.zeros(3, 3)
    return state


def checkpoint(nano, config=None, prefix="", dtype=torch.float32, **more):
    config = config or small_config(dropout=0.1)
    fields = {**CONFIG, **{k: getattr(config, k) for k in CONFIG}}
    weights = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = torch.optim.AdamW(weights)
    weights[0].grad = torch.ones(2)
    optimizer.step()
    return {
        "model": state_dict(config, prefix, dtype),
        "optimizer": optimizer.state_dict(),
        "step_count": 12000,
        "train_config": nano.TrainConfig(learning_rate=6e-4, dataset_path=[["a", "b"]]),
        "model_config": nano.ModelConfig(**fields),
        "tokenizer_config": nano_tokenizer(),
        **more,
    }


@pytest.mark.parametrize(
    ("more", "prefix", "dtype"),
    [
        ({}, "", torch.float32),
        ({"n_kv_head": 4}, "_orig_mod.", torch.float32),
        ({"is_causal": False}, "module._orig_mod.", torch.float32),
        ({"use_rope": False, "bias": True}, "", torch.float32),
        ({"tie_embeddings": False}, "module.", torch.float32),
        ({}, "", torch.bfloat16),
    ],
)
def test_checkpoints(nano, more, prefix, dtype, tmp_path):
    config = small_config(dropout=0.1, **more)
    tree = checkpoint(nano, config, prefix, dtype)
    torch.save(tree, tmp_path / "c.pt")
    del sys.modules["model"]  # the reader must not need, or find, Nano's classes
    facts = import_pt(tmp_path / "c.pt", tmp_path / "m", "CC0")
    model = ModelDir(tmp_path / "m")
    assert model.config == config and "step 12,000" in facts["read"]
    assert model.meta["step"] == 12000 and model.meta["licence"] == "CC0"
    for name, tensor in random_tensors(config).items():
        assert (model.tensors[name] == torch.from_numpy(tensor).to(dtype).float().numpy()).all(), name
    assert Vocabulary.load(model.tokenizer_path) == vocabulary()
    assert list(load_tokenizer(model.tokenizer_path).encode("ab精")) == [5, 7]


def test_sizes_that_are_not_stored(nano, tmp_path):
    tree = checkpoint(nano, small_config(n_kv_head=4))
    tree["model_config"] = {k: v for k, v in CONFIG.items() if k not in ("n_kv_head", "n_hidden", "norm_eps")}
    tree["model_config"]["colour"] = "blue"
    torch.save(tree, tmp_path / "c.pt")
    facts = import_pt(tmp_path / "c.pt", tmp_path / "m")
    config = ModelDir(tmp_path / "m").config
    assert config.n_kv_head == 4 and config.n_hidden == 128 and config.norm_eps == 1e-5
    assert facts["note"] == "not known here and left out: colour of model_config"


def test_vocabulary_from_a_file(nano, tmp_path, capsys):
    tree = checkpoint(nano)
    del tree["tokenizer_config"]
    torch.save(tree, tmp_path / "c.pt")
    (tmp_path / "t.json").write_text(json.dumps({**nano_tokenizer(), "itos": TOKENS}))
    c, m, t = (str(tmp_path / n) for n in ("c.pt", "m", "t.json"))
    assert main(["import", c, "-o", m]) == 0
    assert "give one with --tokenizer" in capsys.readouterr().err
    assert main(["import", c, "-o", m, "--tokenizer", t]) == 0
    assert Vocabulary.load(ModelDir(m).tokenizer_path) == vocabulary()
    assert main(["import", c, "-o", m, "--base", m]) == 2
    Vocabulary([*TOKENS, "zz"], SPECIAL).save(t)
    assert main(["import", c, "-o", m, "--tokenizer", t]) == 2
    assert "the vocabulary has 12 tokens, the model 11" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["", ".weight"])
def test_adapters(nano, ending, tmp_path):
    base = make_model_dir(tmp_path / "m", small_config(dropout=0.1))
    lora = {}
    for layer in range(2):
        for target, out in (("wq", 64), ("wk", 32), ("wv", 32), ("wo", 64)):
            lora[f"layers.{layer}.attention.{target}.lora_a{ending}"] = torch.randn(4, 64)
            lora[f"layers.{layer}.attention.{target}.lora_b{ending}"] = torch.randn(out, 4)
    tree = {
        "is_lora": True,
        "lora": lora,
        "train_config": nano.TrainConfig(lora_rank=4, lora_alpha=8),
        "model_config": nano.ModelConfig(**CONFIG),
        "tokenizer_config": nano_tokenizer(),
    }
    torch.save(tree, tmp_path / "l.pt")
    import_pt(tmp_path / "l.pt", tmp_path / "a", base=base)
    adapter = AdapterDir(tmp_path / "a")
    adapter.check_base(base)
    assert adapter.config.rank == 4 and adapter.config.alpha == 8 and adapter.config.base_fingerprint
    for name, tensor in lora.items():
        ours = name.replace("layers", "blocks").replace("attention", "attn").removesuffix(".weight")
        assert (adapter.tensors[ours] == tensor.numpy()).all()
    assert "not given" in import_pt(tmp_path / "l.pt", tmp_path / "a")["base"]
    wide = make_model_dir(tmp_path / "wide", small_config(n_kv_head=4))
    for bent, says in (
        ({"train_config": {"lora_rank": 0, "lora_alpha": 8}}, "lora_rank 0"),
        ({"train_config": None}, "train_config is a NoneType"),
        ({"train_config": {"lora_rank": 5, "lora_alpha": 8}}, r"expected \[5, 64\]"),
        ({"lora": {}}, "no weights under 'lora'"),
        ({"lora": {"layers.0.attention.wx.lora_a": torch.zeros(4, 64)}}, "holds layers.0.attention.wx.lora_a"),
        ({"lora": {"layers.9.attention.wq.lora_a": torch.zeros(4, 64)}}, "adapts blocks.9.attn.wq"),
    ):
        torch.save({**tree, **bent}, tmp_path / "bad.pt")
        with pytest.raises(UserError, match=says):
            import_pt(tmp_path / "bad.pt", tmp_path / "b")
    with pytest.raises(UserError, match=r"shape \[32, 4\], expected \[64, 4\]"):
        import_pt(tmp_path / "l.pt", tmp_path / "b", base=wide)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model_config"), "it holds no model_config"),
        (lambda t: t.pop("model"), "no state dict under 'model'"),
        (lambda t: t["model"].pop("norm.weight"), "final_norm.weight: missing"),
        (lambda t: t["model"].update({"extra.weight": torch.zeros(1)}), "holds extra.weight"),
        (lambda t: t["model"].update({"transformer.wte.weight": torch.zeros(1)}), "GPT-2 layout"),
        (lambda t: t["model"].update({"norm.weight": torch.zeros(3)}), r"shape \[3\], expected \[64\]"),
        (lambda t: t["model"].update({"norm.weight": torch.zeros(64, dtype=torch.int64)}), "torch.int64, expected F32"),
        (lambda t: t["model_config"].__dict__.update(n_head=None), "lacks n_head"),
        (lambda t: t["model_config"].__dict__.update(n_layer=3), "blocks.2.attn_norm.weight: missing"),
        (lambda t: t["model_config"].__dict__.update(n_layer="many"), "n_layer: expected a whole number"),
        (lambda t: t.update(tokenizer_config={"stoi": []}), "must be mappings"),
        (lambda t: t.update(tokenizer_config=3), "tokenizer_config is a int"),
    ],
)
def test_checkpoints_that_are_refused(nano, change, says, tmp_path):
    tree = checkpoint(nano)
    change(tree)
    torch.save(tree, tmp_path / "c.pt")
    with pytest.raises(UserError, match=says):
        import_pt(tmp_path / "c.pt", tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_weights_alone_are_refused(tmp_path):
    torch.save({"tok_embeddings.weight": torch.zeros(2, 2)}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="holds weights only"):
        import_pt(tmp_path / "c.pt", tmp_path / "m")


class Harmful:
    """Runs a command when a pickle of it is loaded."""

    def __init__(self, path, call=os.system):
        self.path, self.call = path, call

    def __reduce__(self):
        return (self.call, (f"touch {self.path}",))


@dataclass
class ModelConfig:
    """Has the name of a config, and a way to run code when it is loaded with its real class."""

    n_layer: int = 2

    def __setstate__(self, state):
        raise AssertionError("code of a class was run")


@pytest.mark.parametrize("call", [os.system, eval, exec, getattr, __import__])
@pytest.mark.parametrize("place", ["model_config", "model", "beside", "alone"])
def test_files_that_would_run_code(nano, call, place, tmp_path):
    proof = tmp_path / "proof"
    tree = checkpoint(nano)
    harmful = Harmful(proof, call)
    if place == "beside":
        tree["step_count"] = [{"deep": (harmful,)}]
    elif place == "alone":
        tree = harmful
    elif place == "model":
        tree["model"]["norm.weight"] = harmful
    else:
        tree[place] = harmful
    for protocol, says in ((2, rf"asks for \S*{call.__name__}"), (4, "no readable checkpoint")):
        torch.save(tree, tmp_path / "c.pt", pickle_protocol=protocol)  # PyTorch itself always uses 2
        with pytest.raises(UserError, match=says):
            import_pt(tmp_path / "c.pt", tmp_path / "m")
    assert not proof.exists() and [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_config_classes_become_plain_data(tmp_path):
    torch.save({"model": {}, "model_config": ModelConfig()}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="lacks block_size"):
        import_pt(tmp_path / "c.pt", tmp_path / "m")


def test_pickles_in_other_wrappings_run_nothing(tmp_path):
    proof = tmp_path / "proof"
    path = tmp_path / "c.pt"
    path.write_bytes(pickle.dumps({"model_config": Harmful(proof)}))  # no zip: PyTorch before 1.6
    with pytest.raises(UserError, match="no readable checkpoint"):
        import_pt(path, tmp_path / "m")
    torch.save({"model_config": Harmful(proof)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="no readable checkpoint"):
        import_pt(path, tmp_path / "m")
    # A global hidden behind one that is allowed: collections.OrderedDict, then os.system from a string.
    hidden = b"\x80\x02cos\nsystem\n" + f"X{chr(len(str(proof)) + 6)}\0\0\0touch {proof}".encode() + b"\x85R."
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("c/data.pkl", hidden)
        z.writestr("c/version", "3\n")
        z.writestr("c/byteorder", "little")
    with pytest.raises(UserError, match=r"asks for \S*system|no readable checkpoint"):
        import_pt(path, tmp_path / "m")
    for rubbish in (b"", b"PK\x03\x04", b"x" * 5000):
        path.write_bytes(rubbish)
        with pytest.raises(UserError, match="no readable checkpoint"):
            import_pt(path, tmp_path / "m")
    with pytest.raises(UserError, match="no such file"):
        import_pt(tmp_path / "none.pt", tmp_path / "m")
    assert not proof.exists() and not (tmp_path / "m").exists()


def test_every_cut_is_refused(nano, tmp_path):
    buffer = io.BytesIO()
    torch.save(checkpoint(nano), buffer)
    whole = buffer.getvalue()
    for cut in [*range(0, len(whole), 9973), len(whole) - 1]:
        (tmp_path / "c.pt").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="no readable checkpoint"):
            import_pt(tmp_path / "c.pt", tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_tensors_that_claim_more_than_their_storage(nano, tmp_path):
    class Wide:
        """A tensor of 2^40 numbers over a storage of four."""

        def __reduce__(self):
            storage = torch.zeros(4).storage()
            return (torch._utils._rebuild_tensor_v2, (storage, 0, (1 << 40,), (1,), False, {}))

    tree = checkpoint(nano)
    tree["model"]["norm.weight"] = Wide()
    torch.save(tree, tmp_path / "c.pt")
    with pytest.raises(UserError):
        import_pt(tmp_path / "c.pt", tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
