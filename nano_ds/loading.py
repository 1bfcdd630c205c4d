"""A model ready for inference from what a user may name: a model directory, a run, or one checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from nano_ds import checkpoint, lora
from nano_ds.errors import UserError
from nano_ds.model import Transformer
from nano_ds.model_dir import ModelDir
from nano_ds.tokenizer import Tokenizer, load_tokenizer


def load_model(where: str | Path, device: torch.device, dtype: torch.dtype) -> tuple[Transformer, Tokenizer | None]:
    """The Transformer in evaluation mode and its tokenizer (None where the model has none).

    Raises:
        UserError: ``where`` is none of the three, with what to do.
    """
    where = Path(where)
    if (where / "checkpoints").is_dir() or where.name.startswith("step-"):
        from nano_ds.consolidate import adapter_of, open_shards

        found = checkpoint.find(where)
        config, shards = open_shards(found)
        model = Transformer(config)
        adapter = adapter_of(found)
        if adapter is not None:
            base = ModelDir(found.state["config"]["train"]["init_from"])
            if base.fingerprint != adapter.base_fingerprint:
                raise UserError(
                    f"{base.path}: changed since {where} was trained on it; its adapter does not fit any more"
                )
            base.load_into(model)
            lora.inject(model, adapter.rank, adapter.alpha, adapter.targets)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in shards.shapes:
                    parameter.copy_(shards[name])
        tokenizer_path = found.path / "tokenizer.json"
    else:
        folder = ModelDir(where)
        model = Transformer(folder.config)
        folder.load_into(model)
        tokenizer_path = folder.tokenizer_path
    tokenizer = load_tokenizer(tokenizer_path) if tokenizer_path.exists() else None
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{tokenizer_path}: has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}; "
            "they do not belong together"
        )
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def put_on(model: Transformer, where: str | Path, adapter: str | Path) -> None:
    """Puts an adapter on the model that ``load_model`` made of ``where``; raises UserError if it is for another."""
    is_model_dir = (Path(where) / "model.safetensors").is_file()
    lora.load(model, adapter, base=ModelDir(where) if is_model_dir else None)
