import pytest
import torch
from bin_helpers import golden, import_golden, make_model_dir, small_config
from torch import nn

from nano_ds import lora
from nano_ds.errors import UserError
from nano_ds.interop.nano_bin_writer import write_adapter
from nano_ds.model import Transformer
from nano_ds.model_dir import AdapterDir


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.wq, self.wk = nn.Linear(6, 6), nn.Linear(6, 4, bias=False)
        self.wv, self.wo = nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False)

    def forward(self, x):
        return self.wo(torch.tanh(self.wv(x)) + torch.tanh(self.wk(x))) + self.wq(x)


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Attention()}) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block["attn"](x)
        return self.head(x)


def toy(seed=0):
    torch.manual_seed(seed)
    return Toy().eval()


def randomise(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, m in lora.adapted(model):
            m.lora_a.normal_(generator=generator)
            m.lora_b.normal_(generator=generator)


def test_the_formula():
    layer = nn.Linear(3, 2)
    with_adapter = lora.LoRALinear(layer, rank=2, alpha=6)
    nn.init.normal_(with_adapter.lora_b)
    x = torch.randn(5, 3)
    expected = layer(x) + 3 * (x @ with_adapter.lora_a.T @ with_adapter.lora_b.T)
    torch.testing.assert_close(with_adapter(x), expected)
    assert with_adapter.weight is layer.weight


def test_inject_changes_nothing_at_first_and_merge_keeps_the_answers():
    model, x = toy(), torch.randn(4, 6)
    before, names = model(x), set(model.state_dict())
    injected = lora.inject(model, rank=2, alpha=4, targets=("wq", "wo"))
    assert injected == [f"blocks.{i}.attn.{t}" for i in range(2) for t in ("wq", "wo")]
    assert (model(x) == before).all()
    assert names < set(model.state_dict())  # base weights keep their names
    randomise(model)
    adapted = model(x)
    assert not torch.allclose(adapted, before)
    lora.merge(model)
    assert set(model.state_dict()) == names and not list(lora.adapted(model))
    torch.testing.assert_close(model(x), adapted, rtol=1e-4, atol=1e-5)


def test_remove_gives_the_base_back():
    model, x = toy(), torch.randn(4, 6)
    before = model(x)
    lora.inject(model, rank=2, alpha=4)
    randomise(model)
    lora.remove(model)
    assert (model(x) == before).all()


def test_only_adapters_train():
    model = toy()
    lora.inject(model, rank=2, alpha=4)
    randomise(model)
    lora.only_adapters_train(model)
    model(torch.randn(4, 6)).sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == name.endswith(("lora_a", "lora_b")), name


def test_save_and_load(tmp_path):
    model, x = toy(), torch.randn(4, 6)
    lora.inject(model, rank=3, alpha=5, targets=("wq", "wv"))
    randomise(model)
    lora.save(model, tmp_path / "a", base_fingerprint="f")
    assert AdapterDir(tmp_path / "a").config.targets == ("wq", "wv")
    other = toy()
    assert len(lora.load(other, tmp_path / "a")) == 4
    assert (other(x) == model(x)).all()
    with pytest.raises(UserError, match="has an adapter already"):
        lora.load(other, tmp_path / "a")


def test_what_does_not_fit(tmp_path):
    with pytest.raises(UserError, match="no linear layer is called wx; there are wk, wo, wq, wv"):
        lora.inject(toy(), 2, 4, ("wq", "wx"))
    with pytest.raises(UserError, match="must be positive"):
        lora.inject(toy(), 0, 4)
    untied = Transformer(small_config(tie_embeddings=False))  # it multiplies with the output's weight, not by the layer
    with pytest.raises(UserError, match=r"the output matrix \(head\) takes no adapter; there are w1, w2, w3, wk"):
        lora.inject(untied, 2, 4, ("wq", "head"))
    assert not list(lora.adapted(untied))
    with pytest.raises(UserError, match="no adapter to save"):
        lora.save(toy(), tmp_path / "a")
    model = toy()
    lora.inject(model, 2, 4)
    lora.save(model, tmp_path / "a")
    smaller = Transformer(small_config())
    names = set(smaller.state_dict())
    with pytest.raises(UserError, match=r"lora_a has shape \[2, 6\], this model needs \[2, 64\]"):
        lora.load(smaller, tmp_path / "a")
    assert set(smaller.state_dict()) == names
    with pytest.raises(UserError, match="no such file"):
        lora.load(smaller, tmp_path / "none")


def test_bin_and_directory_are_the_same_adapter(tmp_path):
    base = make_model_dir(tmp_path / "m")
    model = Transformer(base.config).eval()
    base.load_into(model)
    lora.inject(model, 2, 4, ("wq", "wo"))
    randomise(model)
    lora.save(model, tmp_path / "a", base.fingerprint)
    write_adapter(tmp_path / "a.bin", AdapterDir(tmp_path / "a"), base)
    ids = torch.arange(8)[None]
    for path in (tmp_path / "a", tmp_path / "a.bin"):
        other = Transformer(base.config).eval()
        base.load_into(other)
        lora.load(other, path, base)
        torch.testing.assert_close(other(ids), model(ids))


def test_golden_adapter_fits_its_base(tmp_path):
    base = import_golden("v2026_1/base_f32.bin", tmp_path / "m")
    model = Transformer(base.config)
    base.load_into(model)
    assert len(lora.load(model, golden("v2026_1/lora.bin"), base)) == 32
    with pytest.raises(UserError, match="does not fit"):
        lora.load(Transformer(small_config()), golden("v2026_1/lora.bin"), make_model_dir(tmp_path / "small"))
    with pytest.raises(UserError, match="is a model"):
        lora.load(Transformer(base.config), golden("v2026_1/base_f32.bin"))
