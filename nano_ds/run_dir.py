"""The folder of a run: its lock, its resolved recipe, what must not change when it is resumed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nano_ds.config import Config, LoraConfig, ModelConfig, from_tree, to_tree, to_yaml
from nano_ds.errors import UserError
from nano_ds.files import atomic_write

# What decides which samples come when, and what they train.
FIXED = ("train.seed", "train.batch_size")


@contextmanager
def lock(folder: Path, option: str = "run.dir") -> Iterator[None]:
    """Holds the folder for this process; raises UserError, naming ``option``, when another process trains in it."""
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
            raise UserError(
                f"{folder}: process {owner or '?'} is training in this run; stop it or choose another {option}"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def write_config(folder: Path, config: Config) -> None:
    with atomic_write(folder / "config.yaml", "w") as f:
        f.write(to_yaml(config))


def check_same_run(
    where: Path, saved: dict[str, Any], config: Config, data: str, tokenizer: str, base: str = ""
) -> None:
    """Raises UserError naming every difference between a checkpoint's state and this run that forbids going on."""
    old = saved["config"]
    now = to_tree(config)
    problems = []
    old_model, new_model = from_tree(ModelConfig, old["model"], str(where)), config.model
    for key, value in to_tree(new_model).items():
        before = getattr(old_model, key)
        if before != value and key != "dropout":
            problems.append(f"model.{key} was {before}, is {value}")
    for key in FIXED:
        section, name = key.split(".")
        if old[section][name] != now[section][name]:
            problems.append(f"{key} was {old[section][name]}, is {now[section][name]}")
    for name, before in to_tree(from_tree(LoraConfig, old.get("lora", {}), str(where))).items():
        if before != now["lora"][name] and name != "dropout":
            problems.append(f"lora.{name} was {before}, is {now['lora'][name]}")
    if saved.get("base", "") != base and config.lora.rank:
        problems.append("the base model in train.init_from changed")
    if saved["tokenizer"] != tokenizer:
        problems.append("the tokenizer changed")
    if saved["data"] != data:
        problems.append("the prepared data or their weights changed")
    if problems:
        raise UserError(
            f"{where}: cannot go on from it: {'; '.join(problems)}. Put these back, or start a new run.dir "
            "(train.init_from=MODEL_DIR starts it from the weights)"
        )
