"""Everything shipped that a user may name loads, and the documents name nothing that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nano_ds.config import Config, DataSet, ModelConfig, from_tree, load_config, to_tree
from nano_ds.ds_config import join, read_ds_config
from nano_ds.nodes.hostfile import read_hostfile

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "README.zh.md", "docs/from_nano.md")
# Of Nano's document: the options of its training configuration.
NANO_OPTIONS = [
    "from_checkpoint",
    "save_checkpoint_to",
    "dataset_path",
    "tokenizer_path",
    "random_seed",
    "batch_size",
    "gradient_accumulation_steps",
    "grad_clip",
    "dropout",
    "learning_rate",
    "weight_decay",
    "beta1",
    "beta2",
    "decay_lr",
    "warmup_iters",
    "lr_decay_iters",
    "min_lr",
    "eval_interval",
    "log_interval",
    "eval_iters",
    "backend",
    "device",
    "sdp_kernel",
    "dtype",
    "use_amp",
]
FILE = re.compile(r"\.(py|json|jsonl|bin|yaml|c|log|gguf|txt|md|safetensors)$")
KEY = re.compile(r"(?:run|model|data|optim|train)(?:\.\w+)+")


def files(folder: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).iterdir() if p.is_file() and not p.name.startswith("."))


def name(path: Path) -> str:
    return path.name


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def schema_keys() -> set[str]:
    keys = {f"{section}.{key}" for section, fields in to_tree(Config()).items() for key in fields}
    return keys | {f"data.sets.N.{key}" for key in to_tree(from_tree(DataSet, {}, "test"))}


def keys_in(document: str) -> set[str]:
    """Every ``section.key`` in the document's code, its value and the number of a list item left out."""
    code = re.findall(r"```.*?```|`[^`\n]+`", text(document), re.DOTALL)
    words = (word.strip("'\"").partition("=")[0] for piece in code for word in piece.strip("`").split())
    found = {word for word in words if KEY.fullmatch(word) and not FILE.search(word)}
    return {re.sub(r"\.\d+\.", ".N.", key) for key in found}


@pytest.mark.parametrize("recipe", files("recipes"), ids=name)
def test_recipe_loads(recipe: Path) -> None:
    config = load_config(recipe)
    assert (config.data.tokenizer or config.train.init_from) and config.data.sets
    assert (ROOT / config.run.deepspeed_config).is_file()
    assert recipe.stem in config.run.dir


@pytest.mark.parametrize(
    ("recipe", "parameters"), [("nano_56m.yaml", 55_591_424), ("nano_168m.yaml", 168_334_080), ("demo.yaml", 4_000_000)]
)
def test_parameter_count_is_the_one_promised(recipe: str, parameters: int) -> None:
    from dataclasses import replace

    from nano_ds.model import parameter_count

    config = load_config(ROOT / "recipes" / recipe)
    model = replace(config.model, vocab_size=config.data.tokenizer_vocab_size)
    assert parameter_count(model)["total"] == parameters
    if recipe != "demo.yaml":
        assert f"{parameters:,}" in text(f"recipes/{recipe}")


@pytest.mark.parametrize("ds_config", files("ds_configs"), ids=name)
def test_ds_config_is_read(ds_config: Path) -> None:
    tree = read_ds_config(str(ds_config))
    assert join(tree, Config(), world=2, bf16=False)["train_batch_size"] == Config().train.batch_size


@pytest.mark.parametrize("hostfile", files("hostfiles"), ids=name)
def test_hostfile_is_accepted(hostfile: Path) -> None:
    read_hostfile(str(hostfile))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_keys_exist(document: str) -> None:
    found = keys_in(document)
    assert found
    assert not found - schema_keys()


def test_every_field_and_option_of_nano_has_a_row() -> None:
    rows = [line for line in text("docs/from_nano.md").splitlines() if line.startswith("| ")]
    first = " ".join(row.split(" | ")[0] for row in rows)
    assert not [option for option in NANO_OPTIONS if f"`{option}`" not in first]
    fields = {f"model.{key}" for key in to_tree(from_tree(ModelConfig, {}, "test"))}
    assert not fields - keys_in("docs/from_nano.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(document))
    relative = [link for link in links if "://" not in link]
    assert relative
    assert not [link for link in relative if not ((ROOT / document).parent / link).exists()]


def test_readmes_give_the_same_commands() -> None:
    fences = [re.findall(r"```(?:bash|text)\n(.*?)```", text(readme), re.DOTALL) for readme in DOCUMENTS[:2]]
    assert fences[0] == fences[1]
