import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
import torch
from bin_helpers import make_model_dir, random_tensors, small_config, vocabulary
from safetensors.numpy import load_file, save_file

from nano_ds.errors import UserError
from nano_ds.interop.vocabulary import Vocabulary
from nano_ds.model import Transformer
from nano_ds.model_dir import (
    AdapterConfig,
    AdapterDir,
    ModelDir,
    expected_shapes,
    new_meta,
    write_adapter_dir,
    write_model_dir,
)
from nano_ds.tensors import SafetensorsWriter, TensorFile

SHAPES = [
    {},
    {"bias": True, "tie_embeddings": False},
    {"qkv_bias": True},
    {"qk_norm": True, "head_dim": 8},
    {"use_rope": False, "n_hidden": None},
]


@pytest.mark.parametrize("more", SHAPES)
def test_expected_shapes_are_those_of_the_model(more):
    config = small_config(**more)
    model = Transformer(config)
    assert expected_shapes(config) == {name: tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("more", SHAPES)
def test_round_trip(more, tmp_path):
    config = small_config(**more)
    made = make_model_dir(tmp_path / "m", config)
    assert made.config == config and made.meta["step"] == 7 and made.meta["nano_ds"]
    tensors = random_tensors(config)
    assert all((made.tensors[name] == t).all() for name, t in tensors.items()) and set(made.tensors) == set(tensors)
    stored = load_file(made.path / "model.safetensors")  # the library's own reader
    assert set(stored) == set(tensors)
    model = Transformer(config)
    made.load_into(model)
    assert all((model.state_dict()[name].numpy() == t).all() for name, t in tensors.items())
    assert Vocabulary.load(made.tokenizer_path) == vocabulary()


def test_tensors_of_torch_and_other_types(tmp_path):
    shapes = {"a": (2, 3), "b": (4,), "c": (), "d": (0, 5)}
    with SafetensorsWriter(tmp_path / "x", shapes, {"b": "I64"}) as writer:
        writer.write("a", torch.nn.Parameter(torch.arange(6).reshape(2, 3).bfloat16()))
        writer.write("b", torch.arange(4))
        writer.write("c", np.float64(1.5))
        writer.write("d", np.zeros((0, 5)))
    stored = load_file(tmp_path / "x")
    assert {n: t.shape for n, t in stored.items()} == shapes
    assert stored["a"].dtype == np.float32 and stored["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert stored["b"].tolist() == [0, 1, 2, 3] and stored["c"] == 1.5


def test_writer_wants_what_was_declared(tmp_path):
    with (
        pytest.raises(ValueError, match="b was written where a was declared"),
        SafetensorsWriter(tmp_path / "x", {"a": (2,), "b": (2,)}) as writer,
    ):
        writer.write("b", np.zeros(2))
    with (
        pytest.raises(ValueError, match=r"a has shape \(3,\), declared was \(2,\)"),
        SafetensorsWriter(tmp_path / "x", {"a": (2,)}) as writer,
    ):
        writer.write("a", np.zeros(3))
    with (
        pytest.raises(ValueError, match="ended before b"),
        SafetensorsWriter(tmp_path / "x", {"a": (2,), "b": (2,)}) as writer,
    ):
        writer.write("a", np.zeros(2))
    with pytest.raises(ValueError, match="nothing more"), SafetensorsWriter(tmp_path / "x", {"a": (2,)}) as writer:
        writer.write("a", np.zeros(2))
        writer.write("a", np.zeros(2))


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    shapes = {f"t{i}": (256, 1024) for i in range(16)}  # 1 MiB each
    tracemalloc.start()
    with SafetensorsWriter(tmp_path / "x", shapes) as writer:
        for name, shape in shapes.items():
            writer.write(name, np.zeros(shape, np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_failed_write_leaves_the_old_directory(tmp_path):
    made = make_model_dir(tmp_path / "m")
    before = made.fingerprint
    with pytest.raises(RuntimeError), write_model_dir(tmp_path / "m", made.config, None, new_meta()) as writer:
        writer.write("tok_emb.weight", made.tensors["tok_emb.weight"])
        raise RuntimeError("stopped")
    assert [p.name for p in tmp_path.iterdir()] == ["m"] and ModelDir(tmp_path / "m").fingerprint == before
    assert make_model_dir(tmp_path / "m", seed=1).fingerprint != before


def test_nothing_else_is_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="choose another"):
            make_model_dir(path)
    made = make_model_dir(tmp_path / "m")
    (made.path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        make_model_dir(tmp_path / "m")


def test_every_wrong_tensor_is_listed(tmp_path):
    made = make_model_dir(tmp_path / "m")
    tensors = {name: made.tensors[name] for name in made.tensors}
    tensors["blocks.0.attn.wq.weight"] = np.zeros((3, 64), np.float32)
    tensors["blocks.1.ffn.w1.weight"] = tensors["blocks.1.ffn.w1.weight"].astype(np.float16)
    tensors["extra"] = tensors.pop("final_norm.weight")
    save_file(tensors, made.path / "model.safetensors")
    with pytest.raises(UserError) as e:
        ModelDir(made.path)
    for line in (
        "final_norm.weight: missing",
        "extra: unexpected",
        "shape [3, 64], expected [64, 64]",
        "F16, expected F32",
    ):
        assert line in str(e.value)


def test_damaged_directories_say_what_is_wrong(tmp_path):
    made = make_model_dir(tmp_path / "m")
    config = json.loads((made.path / "config.json").read_text())
    weights = (made.path / "model.safetensors").read_bytes()

    def with_config(**more):
        (made.path / "config.json").write_text(json.dumps({**config, **more}))

    for more, says in (
        ({"version": 2}, "version 2; this program reads 1"),
        ({"format": "x"}, "expected the config of a model directory"),
        ({"n_laye": 1}, "did you mean n_layer"),
        ({"n_layer": 0}, "n_layer: 0 is out of range"),
        ({"n_layer": 3}, "blocks.2.attn_norm.weight: missing"),
    ):
        with_config(**more)
        with pytest.raises(UserError) as e:
            ModelDir(made.path)
        assert says in str(e.value)
    with_config()
    for cut in (0, 7, 100, len(weights) - 1):
        (made.path / "model.safetensors").write_bytes(weights[:cut])
        with pytest.raises(UserError, match=r"model\.safetensors"):
            ModelDir(made.path)
    (made.path / "model.safetensors").unlink()
    for path, says in (
        (made.path, "lacks model.safetensors"),
        (tmp_path / "none", "no such folder"),
        (made.path / "config.json", "is a file"),
    ):
        with pytest.raises(UserError, match=says):
            ModelDir(path)


def adapter_files(path, rank=2, linear="blocks.0.attn.wq", shape=(64, 64), **more):
    shapes = {f"{linear}.lora_a": (rank, shape[1]), f"{linear}.lora_b": (shape[0], rank)}
    config = AdapterConfig(**{"rank": rank, "alpha": 4.0, "targets": ("wq",), **more})
    with write_adapter_dir(path, config, shapes) as writer:
        for name in writer.names:
            writer.write(name, np.ones(shapes[name]))
    return AdapterDir(path)


def test_adapter_directories(tmp_path):
    base = make_model_dir(tmp_path / "m")
    adapter = adapter_files(tmp_path / "a", base_fingerprint=base.fingerprint)
    adapter.check_base(base)
    assert adapter.config.alpha == 4.0 and adapter.linears == ["blocks.0.attn.wq"]
    with pytest.raises(UserError, match="another base model"):
        adapter.check_base(make_model_dir(tmp_path / "other", seed=1))
    for more, says in (
        ({"linear": "blocks.9.attn.wq"}, r"blocks\.9\.attn\.wq, which .* does not have"),
        ({"shape": (32, 64)}, r"shape \[32, 2\], expected \[64, 2\]"),
    ):
        with pytest.raises(UserError, match=says):
            adapter_files(tmp_path / "b", **more).check_base(base)
    with pytest.raises(UserError, match="none of the targets"):
        adapter_files(tmp_path / "b", targets=("wk",))
    with pytest.raises(UserError, match=r"shape \[2, 64\], expected \[3, 64\]"):
        config = dataclasses.replace(adapter.config, rank=3)
        with write_adapter_dir(tmp_path / "b", config, dict(adapter.tensors.shapes)) as writer:
            for name in writer.names:
                writer.write(name, adapter.tensors[name])
        AdapterDir(tmp_path / "b")
    with pytest.raises(UserError, match="is an adapter"):
        ModelDir(tmp_path / "a")
    with pytest.raises(UserError, match="no adapter directory"):
        AdapterDir(tmp_path / "m")


def test_tensor_file_that_is_none(tmp_path):
    (tmp_path / "x").write_bytes(b"no safetensors file at all")
    for name in ("x", "missing", "."):
        with pytest.raises(UserError):
            TensorFile(tmp_path / name)
