"""A run that starts from a model directory: shape and vocabulary come from there."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from nano_ds.config import Config, ConfigError, ModelConfig
from nano_ds.errors import UserError
from nano_ds.model_dir import CONFIG, TOKENIZER, check_is_model_dir, read_config
from nano_ds.tokenizer import Tokenizer, load_tokenizer

OWN = ("dropout",)  # what the recipe says, whatever the directory was trained with


def resolved(config: Config) -> Config:
    """The recipe with the shape, and where it names none the tokenizer, of ``train.init_from``.

    Raises:
        ConfigError: the recipe asks for another shape than the directory has.
        UserError: there is no such model directory.
    """
    where = config.train.init_from
    if not where:
        return config
    folder = Path(where)
    try:
        check_is_model_dir(folder)
    except UserError as e:
        raise UserError(f"train.init_from: {e}") from None
    shape, asked, problems = read_config(folder / CONFIG), config.model, []
    keep: dict[str, Any] = {}
    for f in fields(ModelConfig):
        mine, theirs = getattr(asked, f.name), getattr(shape, f.name)
        if f.name in OWN:
            keep[f.name] = mine
        elif mine not in (f.default, theirs) and f.name != "vocab_size":
            if f.name in ("n_hidden", "head_dim") and (asked.hidden, asked.head_width) == (
                shape.hidden,
                shape.head_width,
            ):
                continue  # the same, said in another way
            length = "; data.block_size sets the length of a training sequence" if f.name == "block_size" else ""
            problems.append(f"model.{f.name}: {mine}, but train.init_from {where} has {theirs}; leave it out{length}")
    data = config.data
    if (data.block_size or 0) > shape.block_size:
        problems.append(f"data.block_size: {data.block_size} is more than the context {shape.block_size} of {where}")
    if problems:
        raise ConfigError("recipe", problems)
    if not data.tokenizer and (folder / TOKENIZER).is_file():
        data = replace(data, tokenizer=str(folder / TOKENIZER))
    return replace(config, model=replace(shape, **keep), data=data)


def resolved_if_here(config: Config) -> Config:
    """``resolved`` where the model directory is there already; else the recipe as it is, for estimates."""
    return resolved(config) if Path(config.train.init_from or "/nowhere").is_dir() else config


def tokenizer_of(config: Config) -> str:
    """The path of the run's tokenizer, whether it is there or not; empty when the recipe names none."""
    where = config.train.init_from
    return config.data.tokenizer or (str(Path(where) / TOKENIZER) if where else "")


def with_vocabulary(config: Config, tokenizer: Tokenizer) -> Config:
    """The resolved recipe with the size of the vocabulary that is trained.

    Raises:
        UserError: the model of ``train.init_from`` was made for another vocabulary.
    """
    where = config.train.init_from
    if not where:
        return replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))
    own = Path(where) / TOKENIZER
    if own.is_file() and load_tokenizer(own).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{config.data.tokenizer}: not the vocabulary of {where}, so every token would mean something else; leave "
            f"data.tokenizer out, and prepare the data with {own}"
        )
    if tokenizer.vocab_size > config.model.vocab_size:  # a model may have rows to spare
        has = f"the model in {where} has {config.model.vocab_size}"
        raise UserError(f"{config.data.tokenizer}: {tokenizer.vocab_size} tokens, {has}")
    return config
