"""A recipe with a byte-level BPE vocabulary, from text to answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ranks import ROOT, train
from test_training import options, recipe

from nano_ds import cli
from nano_ds.consolidate import consolidate
from nano_ds.tokenizer import BPETokenizer, load_tokenizer


def test_prepare_train_generate(text_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, tmp_path / "set", max_steps=20, eval_every=10, checkpoint_every=0)
    tree = yaml.safe_load(path.read_text())
    tree["data"] |= {"tokenizer": str(tmp_path / "v" / "t.json"), "tokenizer_kind": "bpe", "tokenizer_vocab_size": 300}
    tree["data"]["sets"][0]["text"] = [str(text_dir)]
    path.write_text(yaml.safe_dump(tree))
    parts = cli.main(["prepare", "-c", str(path), "--part", "1/2"]), capsys.readouterr().err
    assert parts[0] == 2 and "nano-ds tokenizer bpe --text" in parts[1]
    assert cli.main(["prepare", "-c", str(path), "data.val_fraction=0.2"]) == 0
    assert "vocabulary   300 tokens" in capsys.readouterr().out
    tokenizer = load_tokenizer(tmp_path / "v" / "t.json")
    assert isinstance(tokenizer, BPETokenizer)
    assert cli.main(["tokenizer", "show", str(tmp_path / "v" / "t.json")]) == 0
    said = capsys.readouterr().out
    assert "merges       37, within pieces as gpt-2 cuts them" in said and "all 256" in said

    code, text = train(options(path, 1, "model.block_size=48"))
    assert code == 0, text
    model = tmp_path / "run" / "model"
    consolidate(tmp_path / "run", model)
    assert load_tokenizer(model / "tokenizer.json").fingerprint == tokenizer.fingerprint
    command = [
        sys.executable,
        str(ROOT / "inference" / "generate.py"),
        "-m",
        str(model),
        "-n",
        "8",
        "-t",
        "0",
        "--json",
    ]
    for more, ids in (
        (["the cat"], tokenizer.encode("the cat")),
        (["-i", "the <|eos|>"], [4, *tokenizer.encode("the <|eos|>"), 5]),
    ):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        assert made["prompt_ids"] == ids and made["text"] == tokenizer.decode(made["ids"])
    done = subprocess.run([*command, "--system", "x", "y"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "add -i" in done.stderr
    assert cli.main(["export", str(model), "-o", str(tmp_path / "model.bin")]) == 2
    assert "a .bin file carries trie tokenizers only" in capsys.readouterr().err
    assert not (tmp_path / "model.bin").exists()


def test_tokenizer_bpe_command(text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "t.json")
    command = ["tokenizer", "bpe", "--text", str(text_dir), "--vocab-size", "300", "--pre", "qwen2", "-o", out]
    assert cli.main(command) == 0
    made = load_tokenizer(out)
    assert isinstance(made, BPETokenizer) and made.pre == "qwen2" and made.vocab_size == 300
    assert cli.main(command) == 2  # it exists
    monkeypatch.setitem(sys.modules, "rustbpe", None)
    assert cli.main([*command, "--force"]) == 2 and load_tokenizer(out).fingerprint == made.fingerprint
