"""Fine-tuning on questions and answers: the loss is the sum over answer tokens divided by their number, however it is
run; adapters train alone; both go on after an interruption bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from bin_helpers import small_config
from conftest import ROOT
from forked_ranks import ForkedRanks
from safetensors.torch import load_file
from sft_helpers import items_of, write_items

from nano_ds import lora
from nano_ds.cli import main
from nano_ds.config import Config, load_config
from nano_ds.consolidate import consolidate
from nano_ds.data import BlockStream
from nano_ds.engine import parameter_groups
from nano_ds.loading import load_model
from nano_ds.model import Transformer
from nano_ds.model_dir import AdapterDir, ModelDir, new_meta, write_model_dir
from nano_ds.prepare.sft import prepare_sft
from nano_ds.schedule import learning_rate
from nano_ds.shards import TokenSet
from nano_ds.tokenizer.trie import TrieTokenizer

STEPS, BLOCK, BATCH = 6, 80, 4
FULL = pytest.mark.full


@pytest.fixture(scope="module")
def forked() -> Iterator[ForkedRanks]:
    with ForkedRanks() as ranks:
        yield ranks


@pytest.fixture(scope="module")
def data(tokenizer: TrieTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    write_items(folder / "items.jsonl", 150)
    prepare_sft([str(folder / "items.jsonl")], tokenizer, folder / "set", block_size=BLOCK, val_fraction=0.1)
    return folder / "set"


@pytest.fixture(scope="module")
def base(tokenizer: TrieTokenizer, tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    """A model whose weights are of the size of trained ones, and whose context is longer than the rows."""
    return make_base(tmp_path_factory.mktemp("base") / "m", tokenizer)


def make_base(path: Path, tokenizer: TrieTokenizer, **more: Any) -> ModelDir:
    config = replace(small_config(), block_size=96, vocab_size=tokenizer.vocab_size, **more)
    torch.manual_seed(4)
    model = Transformer(config)
    with write_model_dir(path, config, tokenizer, new_meta()) as writer:
        for name in writer.names:
            tensor = model.state_dict()[name]
            writer.write(name, tensor * 3 if tensor.dim() > 1 else tensor)
    return ModelDir(path)


def recipe(folder: Path, shards: Path, base: ModelDir, **sections: Any) -> Path:
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "data": {"sets": [{"dir": str(shards), "kind": "sft"}]},
        "optim": {"lr": 5e-3, "min_lr": 5e-4, "warmup_steps": 0},
        "train": {
            "init_from": str(base.path),
            "batch_size": BATCH,
            "micro_batch_size": 1,
            "max_steps": STEPS,
            "log_every": 1,
            "eval_every": 0,
            "checkpoint_every": 3,
        },
    }
    for section, keys in sections.items():
        tree[section] = {**tree.get(section, {}), **keys}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def options(path: Path, stage: int, *more: str) -> list[str]:
    return ["-c", str(path), "--deepspeed_config", f"ds_configs/zero{stage}.json", *more]


def rows(run: Path, key: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {r["step"]: r[key] for r in lines if key in r}


def by_hand(config: Config, data: Path, base: ModelDir) -> list[float]:
    """Item after item by itself: the sum of -log p over the answer tokens of a step, divided by their number."""
    shards = TokenSet.open(data, "train").shards
    stream = BlockStream([TokenSet.open(data, "train")], BLOCK, seed=config.train.seed)
    model = Transformer(base.config).train()
    base.load_into(model)
    if config.lora.rank:
        torch.manual_seed(config.train.seed)
        Transformer(base.config)  # draws what the run draws before its adapters
        lora.inject(model, config.lora.rank, config.lora.alpha, config.lora.targets)
        lora.only_adapters_train(model)
    o = config.optim
    optimizer = torch.optim.AdamW(parameter_groups(model, o), betas=(o.beta1, o.beta2), eps=o.eps)
    losses = []
    for step in range(STEPS):
        _, _, blocks = stream.locate(np.arange(step * BATCH, (step + 1) * BATCH))
        total, count = torch.zeros((), dtype=torch.float64), 0
        for ids, marks in items_of(shards[0], set(blocks.tolist())):
            logits = model(torch.tensor([ids[:-1]]))[0]
            chosen = torch.from_numpy(marks[1:])
            losses_of_item = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")[chosen]
            total, count = total + losses_of_item.double().sum(), count + int(chosen.sum())
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(o, step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    return losses


@pytest.mark.parametrize(
    ("stage", "world", "micro"),
    [(0, 1, 4), (1, 2, 1), (2, 1, 2), (3, 2, 2), *(pytest.param(s, 2, 1, marks=FULL) for s in (0, 2))],
)
def test_the_loss_is_the_mean_over_all_answer_tokens_of_a_step(
    stage: int, world: int, micro: int, data: Path, base: ModelDir, forked: ForkedRanks, tmp_path: Path
) -> None:
    """Packed, accumulated, on several ranks, whose rows hold unequally many answer tokens."""
    path = recipe(tmp_path, data, base)
    code, text = forked.train(options(path, stage, f"train.micro_batch_size={micro}"), world)
    assert code == 0, text
    assert "questions and answers packed with" in text
    losses = rows(tmp_path / "run", "loss")
    assert np.abs(np.array(list(losses.values())) - by_hand(load_config(path), data, base)).max() <= 1e-6


def test_dropout_is_applied_in_training_and_not_in_evaluation(
    data: Path, base: ModelDir, forked: ForkedRanks, tmp_path: Path
) -> None:
    path = recipe(tmp_path, data, base, model={"dropout": 0.3}, optim={"lr": 0.0, "min_lr": 0.0})
    code, text = forked.train(options(path, 1, "train.eval_every=1", "train.checkpoint_every=0"), 1)
    assert code == 0, text
    run = tmp_path / "run"
    plain, _ = load_model(base.path, torch.device("cpu"), torch.float32)
    assert plain.config.dropout == 0.0
    seen = rows(run, "loss")
    # The weights never move: evaluation says the same each time, training what dropout makes of it.
    assert len(set(rows(run, "val_loss").values())) == 1
    wanted = by_hand_without_steps(data, base)
    assert all(abs(seen[step] - wanted[step - 1]) > 1e-3 for step in seen)


def by_hand_without_steps(data: Path, base: ModelDir) -> list[float]:
    stream = BlockStream([TokenSet.open(data, "train")], BLOCK, seed=Config().train.seed)
    model = Transformer(base.config).eval()
    base.load_into(model)
    shard = TokenSet.open(data, "train").shards[0]
    losses = []
    for step in range(STEPS):
        _, _, blocks = stream.locate(np.arange(step * BATCH, (step + 1) * BATCH))
        total, count = 0.0, 0
        for ids, marks in items_of(shard, set(blocks.tolist())):
            with torch.no_grad():
                logits = model(torch.tensor([ids[:-1]]))[0]
            chosen = torch.from_numpy(marks[1:])
            total += F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")[chosen].sum().item()
            count += int(chosen.sum())
        losses.append(total / count)
    return losses


LORA = {"rank": 4, "alpha": 8, "targets": ["wq", "wv", "w2"]}


@pytest.mark.parametrize(
    ("stage", "world"),
    [(0, 1), (1, 2), (2, 1), (3, 2), *(pytest.param(s, w, marks=FULL) for s, w in ((0, 2), (1, 1), (2, 2), (3, 1)))],
)
def test_adapters_train_alone_at_every_stage(
    stage: int, world: int, data: Path, base: ModelDir, forked: ForkedRanks, tmp_path: Path
) -> None:
    path = recipe(tmp_path, data, base, lora=LORA)
    before = {p.name: p.read_bytes() for p in base.path.iterdir()}
    code, text = forked.train(options(path, stage), world)
    assert code == 0, text
    run = tmp_path / "run"
    losses = rows(run, "loss")
    config = load_config(path)
    assert np.abs(np.array(list(losses.values())) - by_hand(config, data, base)).max() <= 1e-6

    # Only the adapters are in the checkpoint, and what becomes of it is small and fits its base alone.
    count = 2 * 4 * ((64 + 64) + (64 + base.config.n_kv_head * base.config.head_width) + (64 + base.config.hidden))
    assert f"{count:,} parameters: rank 4 on wq, wv, w2" in text
    size = sum(p.stat().st_size for p in (run / "checkpoints/step-00000006/zero").iterdir())
    assert size < 17 * count + 100_000 * world
    consolidate(run, tmp_path / "adapter")
    adapter = AdapterDir(tmp_path / "adapter")
    assert adapter.config.base_fingerprint == base.fingerprint and adapter.config.targets == ("wq", "wv", "w2")
    assert len(adapter.linears) == 6 and {p.name: p.read_bytes() for p in base.path.iterdir()} == before

    # A run is a model too, and says what the base with the adapter says.
    ids = torch.arange(40)[None]
    live, _ = load_model(run, torch.device("cpu"), torch.float32)
    model, _ = load_model(base.path, torch.device("cpu"), torch.float32)
    plain = model(ids)
    lora.load(model, tmp_path / "adapter", base)
    assert torch.equal(live(ids), model(ids)) and not torch.allclose(model(ids), plain, atol=1e-2)

    # Stopped at step 3 and gone on: the same digits, and the same adapter.
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    code, text = forked.train(options(path, stage), world)
    assert code == 0 and "goes on from step 3" in text, text
    assert rows(run, "loss") == losses
    consolidate(run, tmp_path / "again")
    one, two = (load_file(tmp_path / n / "adapter.safetensors") for n in ("adapter", "again"))
    assert all(torch.equal(one[n], two[n]) for n in one) and one.keys() == two.keys()


def test_adapters_go_on_at_another_stage_with_dropout(
    data: Path, base: ModelDir, forked: ForkedRanks, tmp_path: Path
) -> None:
    path = recipe(tmp_path, data, base, lora={**LORA, "dropout": 0.2})
    code, text = forked.train(options(path, 1), 2)
    assert code == 0, text
    losses = rows(tmp_path / "run", "loss")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    code, text = forked.train(options(path, 1), 2)
    assert code == 0 and rows(tmp_path / "run", "loss") == losses, text
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    code, text = forked.train(options(path, 3), 1)
    assert code == 0 and "converts from ZeRO 1 x 2 processes to ZeRO 3 x 1 process" in text
    assert "dropout draws other numbers" in text
    plain = by_hand(load_config(recipe(tmp_path / "plain", data, base, lora=LORA)), data, base)
    assert abs(losses[1] - plain[0]) < 1e-6 < abs(losses[2] - plain[1])  # B is zero at first: dropout does nothing yet
    for change, says in (
        ("lora.rank=8", "lora.rank was 4, is 8"),
        ("lora.alpha=16", "lora.alpha was 8.0, is 16.0"),
        ("lora.rank=0", "lora.rank was 4, is 0"),
    ):
        code, text = forked.train(options(path, 3, change), 1)
        assert code == 2 and says in text and "Traceback" not in text


@pytest.mark.parametrize(("stage", "world"), [(3, 2), pytest.param(1, 2, marks=FULL), pytest.param(2, 1, marks=FULL)])
def test_adapters_of_a_bf16_model_go_on(
    stage: int, world: int, data: Path, base: ModelDir, forked: ForkedRanks, tmp_path: Path
) -> None:
    path = recipe(tmp_path, data, base, lora=LORA)
    code, text = forked.train(options(path, stage, "train.dtype=bf16"), world)
    assert code == 0, text
    losses = rows(tmp_path / "run", "loss")
    assert np.abs(np.array(list(losses.values())) - by_hand(load_config(path), data, base)).max() <= 5e-2
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    code, text = forked.train(options(path, stage, "train.dtype=bf16"), world)
    assert code == 0 and rows(tmp_path / "run", "loss") == losses, text


def test_another_base_is_noticed(data: Path, tokenizer: TrieTokenizer, forked: ForkedRanks, tmp_path: Path) -> None:
    base = make_base(tmp_path / "m", tokenizer)
    path = recipe(tmp_path, data, base, lora=LORA)
    assert forked.train(options(path, 1), 1)[0] == 0
    weights = bytearray((base.path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base.path / "model.safetensors").write_bytes(weights)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    code, text = forked.train(options(path, 1), 1)
    assert code == 2 and "the base model in train.init_from changed" in text


def test_merge_and_unmerge_give_the_same_bits(base: ModelDir) -> None:
    model = Transformer(base.config).eval()
    base.load_into(model)
    lora.inject(model, 4, 8, ("wq", "w2"))
    for _, m in lora.adapted(model):
        torch.nn.init.normal_(m.lora_b)
    ids = torch.arange(30)[None]
    before, state = model(ids), {n: t.clone() for n, t in model.state_dict().items()}
    kept = lora.merge(model, keep=True)
    assert kept is not None and not list(lora.adapted(model))
    torch.testing.assert_close(model(ids), before, rtol=1e-4, atol=1e-4)
    lora.unmerge(model, kept)
    assert torch.equal(model(ids), before)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_the_shape_comes_from_the_model(
    data: Path, base: ModelDir, small_set: Path, forked: ForkedRanks, tmp_path: Path
) -> None:
    for keys, says in (
        (["model.n_layer=3"], "model.n_layer: 3, but train.init_from"),
        (["model.block_size=80"], "data.block_size sets the length"),
        (["data.block_size=97"], "data.block_size: 97 is more than the context 96"),
        (["data.block_size=64"], "packed into blocks of 80 tokens, not 64; set data.block_size=80"),
        (["train.init_from=", "model.block_size=48"], "more than the model's context of 48"),
        (["train.init_from=", "lora.rank=2"], "an adapter needs the model that it adapts"),
        (["train.init_from=nowhere"], "train.init_from: nowhere: no such folder"),
        (["lora.targets=[wx]"], "lora.targets: wx is none of wq, wk"),
        (["data.sets.0.kind=text"], "data.sets.0.kind: is text, but"),
    ):
        path = recipe(tmp_path / "bad", data, base, data={"tokenizer": str(data / "tokenizer.json")})
        code, text = forked.train(options(path, 1, *keys), 1)
        assert code == 2 and says in text and "Traceback" not in text, text
    # Text and questions in one stream, at the rows' length.
    sets = [{"dir": str(data), "kind": "sft"}, {"dir": str(small_set), "weight": 1}]
    for mask in ("true", "false"):
        path = recipe(tmp_path / mask, data, base, data={"sets": sets})
        code, text = forked.train(options(path, 1, f"data.document_mask={mask}", "train.eval_every=3"), 1)
        assert code == 0 and "samples of 80 tokens" in text, text
    both = [list(rows(tmp_path / m / "run", "loss").values()) for m in ("true", "false")]
    assert both[0] != both[1]


def test_the_answer_loss_of_a_model(data: Path, base: ModelDir, capsys: pytest.CaptureFixture[str]) -> None:
    total, count, size = 0.0, 0, 0
    model, _ = load_model(base.path, torch.device("cpu"), torch.float32)
    for shard in TokenSet.open(data, "val").shards:
        size += shard.text_bytes
        for ids, marks in items_of(shard):
            with torch.no_grad():
                logits = model(torch.tensor([ids[:-1]]))[0]
            chosen = torch.from_numpy(marks[1:])
            total += F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")[chosen].sum().item()
            count += int(chosen.sum())
    common = ["--loss", str(data), "--batches", "0"]
    assert main(["eval", str(base.path), *common, "--batch-size", "2"]) == 0
    said = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["tokens"].strip() == f"{count:,}"
    assert said["loss"].split()[0] == f"{total / count:.4f}"
    assert said["bits per byte"].strip() == f"{total / np.log(2) / size:.4f}"


def test_from_a_lora_run_to_the_c_program(
    data: Path,
    base: ModelDir,
    nano_infer_binary: Path,
    forked: ForkedRanks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A trained adapter answers the same in PyTorch and in C, plugged in or merged."""
    path = recipe(tmp_path, data, base, lora={"rank": 4, "alpha": 8}, optim={"lr": 2e-2})
    assert forked.train(options(path, 1, "train.max_steps=60", "train.checkpoint_every=0"), 1)[0] == 0
    adapter, model = str(tmp_path / "adapter"), str(tmp_path / "model.bin")
    assert main(["consolidate", str(tmp_path / "run"), "-o", adapter]) == 0
    assert f"inference/chat.py -m {base.path} -l {adapter}" in capsys.readouterr().out
    assert main(["export", str(base.path), "-o", model]) == 0
    assert main(["export", str(base.path), "-o", str(tmp_path / "model.gguf")]) == 0
    common = ["--loss", str(data), "--batches", "0"]
    losses = []
    for name in ("adapter.bin", "adapter.gguf"):
        assert main(["export", str(base.path), "--lora", adapter, "-o", str(tmp_path / name)]) == 0
    assert main(["export", str(base.path), "--merge", adapter, "-o", str(tmp_path / "merged.bin")]) == 0
    for args in (
        [str(base.path), "-l", adapter],
        [model, "-l", str(tmp_path / "adapter.bin")],
        [str(tmp_path / "model.gguf"), "-l", str(tmp_path / "adapter.gguf")],
        [str(tmp_path / "merged.bin")],
        [str(base.path)],
    ):
        capsys.readouterr()
        assert main(["eval", *args, *common]) == 0
        losses.append(float(capsys.readouterr().out.split("loss")[1].split()[0]))
    assert max(losses[:4]) - min(losses[:4]) <= 1e-4 and losses[4] > losses[0] + 1e-2

    script = [sys.executable, str(ROOT / "inference" / "chat.py"), "-t", "0", "-n", "12"]
    said = []
    for command in (
        [*script, "-m", str(base.path), "-l", adapter],
        [*script, "-m", model, "-l", str(tmp_path / "adapter.bin")],
        [str(nano_infer_binary), "chat", model, "-l", str(tmp_path / "adapter.bin"), "-t", "0", "-n", "12"],
    ):
        done = subprocess.run(command, input="the cat\n", capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip().removeprefix("> "))
    assert said[0] and said[0] == said[1] == said[2]


@pytest.mark.parametrize("name", ["sft", "lora"])
def test_the_recipe_runs(
    name: str, base: ModelDir, forked: ForkedRanks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"train.init_from={base.path}", f"data.sets.0.dir={tmp_path / 'data'}", "data.block_size=96"]
    recipe = ["-c", str(ROOT / "recipes" / f"{name}.yaml")]
    assert main(["prepare", *recipe, *keys]) == 0
    assert f"nano-ds train -c {recipe[1]}" in capsys.readouterr().out
    code, text = forked.train([*recipe, *keys, f"run.dir={tmp_path / 'run'}", "train.max_steps=2"], 1)
    assert code == 0 and ("rank 16 on wq" in text) == (name == "lora"), text
    assert len(rows(tmp_path / "run", "val_bpb")) == 1
