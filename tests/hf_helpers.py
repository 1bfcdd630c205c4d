"""Small models with numbers that make logits worth comparing, and the same ones in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from bin_helpers import small_config, vocabulary

from nano_ds.config import ModelConfig
from nano_ds.model import Transformer
from nano_ds.model_dir import ModelDir, expected_shapes, new_meta, write_model_dir


def lively_model(path: Path, seed: int = 0, **more: object) -> ModelDir:
    """A model directory whose norms and biases differ from 1 and 0, and whose logits are of the size of real ones."""
    config: ModelConfig = small_config(**more)
    rng = np.random.default_rng(seed)
    with write_model_dir(path, config, vocabulary(), new_meta(step=7)) as writer:
        for name, shape in expected_shapes(config).items():
            mean = 1.0 if "norm" in name else 0.0
            writer.write(name, rng.normal(mean, 0.3, shape).astype(np.float32))
    return ModelDir(path)


def our_logits(model: ModelDir, ids: torch.Tensor, adapter: Path | None = None) -> torch.Tensor:
    made = Transformer(model.config).eval()
    model.load_into(made)
    if adapter is not None:
        from nano_ds import lora

        lora.load(made, adapter, model)
    with torch.no_grad():
        return made(ids)


def token_ids(config: ModelConfig, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (3, config.block_size), generator=generator)


def load_peer(path: Path) -> Any:
    """The class that transformers itself picks for a directory, in the type that the directory asks for."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()


def peer_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits.float()
    return logits


def agree(a: torch.Tensor, b: torch.Tensor) -> None:
    """To 1e-4 of the largest logit, everywhere."""
    assert a.shape == b.shape and float(a.abs().max()) > 1
    assert float((a - b).abs().max()) <= 1e-4 * float(a.abs().max()), float((a - b).abs().max() / a.abs().max())


def same_tensors(a: ModelDir, b: ModelDir) -> None:
    """Bit for bit."""
    assert set(a.tensors) == set(b.tensors)
    for name in a.tensors:
        assert a.tensors[name].tobytes() == b.tensors[name].tobytes(), name
