"""The schema: everything that is wrong, at once, with the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest

from nano_ds.config import ConfigError, describe_fields, load_config, to_yaml
from nano_ds.ds_config import read_ds_config
from nano_ds.errors import UserError


def test_overrides_reach_every_kind_of_value(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("data:\n  sets: [{dir: a}, {dir: b, text: [x, y]}]\noptim: {lr: 6e-4}\n")
    config = load_config(
        path, ["data.sets.1.weight=3", "model.bias=true", "train.micro_batch_size=4", "run.dir=runs/7"]
    )
    assert config.optim.lr == 6e-4 and config.data.sets[1].weight == 3.0 and config.data.sets[1].text == ("x", "y")
    assert config.model.bias is True and config.train.micro_batch_size == 4 and config.run.dir == "runs/7"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


def test_all_problems_are_named_at_once() -> None:
    wrong = [
        "train.max_step=5",
        "optim.lr=fast",
        "n_layer=3",
        "train.n_layer=3",
        "model.n_kv_head=3",
        "optim.schedule=x",
    ]
    with pytest.raises(ConfigError) as e:
        load_config(None, [*wrong, "model.dropout=1.5", "nonsense"])
    text = str(e.value)
    for words in (
        "train.max_step: unknown key; did you mean train.max_steps?",
        "optim.lr: expected a number, not 'fast'",
        "n_layer: unknown key; it belongs to another section: model.n_layer",
        "train.n_layer: unknown key; it belongs to another section: model.n_layer",
        "optim.schedule: 'x' is none of cosine, wsd, constant",
        "model.dropout: 1.5 is out of range, it must be from 0 to 0.95",
        "'nonsense': write it as section.key=value",
    ):
        assert words in text, text


def test_problems_between_keys() -> None:
    for overrides, words in (
        (["model.n_kv_head=3"], "n_kv_head: 3 does not divide n_head 4"),
        (["model.n_embd=30"], "n_head: 4 does not divide n_embd 30"),
        (["model.n_embd=20"], "even head width, not 5"),
        (["train.micro_batch_size=5"], "micro_batch_size: 5 does not divide train.batch_size 32"),
        (["optim.min_lr=1"], "optim.min_lr: 1.0 is above optim.lr"),
        (["run.dir=a/b", "run.mirror=a"], "lie in one another"),
        (["run.dir=a", "run.mirror=./a"], "lie in one another"),
        (["data.sets=[{dir: a, weight: 0}]"], "weights add up to nothing"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(None, overrides)


@pytest.mark.parametrize("content", [b"[1, 2]", b"a: [", b"\xff\xfe", b"run: 5"])
def test_files_that_are_no_recipe(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"r\.yaml"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"checkpoint": {"load_universal": true}}', "converts them"),
        ('{"checkpoint": {"writer": {"type": "FAST"}}}', "writes checkpoints itself"),
        ('{"zero_optimization": {"stage": 1}, "optimizer": {"type": "Muon", "params": {"lr": 0.01}}}', "Muon is not"),
        ('{"optimizer": {"type": "muon"}}', "Muon is not"),
    ],
)
def test_deepspeed_features_that_ours_replaces_or_lacks_are_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_ds_config(str(path))
    path.write_text('{"optimizer": {"type": "AdamW", "params": {"torch_adam": true}}}')
    assert read_ds_config(str(path))


def test_every_field_is_described() -> None:
    text = describe_fields()
    assert "train.micro_batch_size" in text and "lower this first when out of memory" in text
    assert "data.sets.N.weight" in text
