"""Which columns of a matrix matter: the mean square of each input, measured on text ("importance matrix").

Quantisation then keeps the error of a layer's output small instead of the error of its weights. The model runs as a
whole in memory here, in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nano_ds.errors import UserError
from nano_ds.model import Transformer
from nano_ds.model_dir import ModelDir
from nano_ds.tokenizer import load_tokenizer

TOKENS = 1 << 15  # of the text that are read: more change little, each costs two FLOPs per weight
SEQUENCE = 512
FEWEST = 32


class MeanSquares:
    """Sums the squares of what goes into every linear layer of a model, and into its output matrix."""

    def __init__(self, model: Transformer):
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0
        self._hooks = [
            m.register_forward_pre_hook(self._watch(f"{name}.weight"))
            for name, m in model.named_modules()
            if isinstance(m, nn.Linear) and name != "head"
        ]
        output = "tok_emb.weight" if model.config.tie_embeddings else "head.weight"
        self._hooks.append(model.final_norm.register_forward_hook(self._watch_output(output)))

    def _add(self, name: str, x: torch.Tensor) -> None:
        flat = x.detach().double().flatten(0, -2)
        total = flat.square().sum(0)
        self._sums[name] = self._sums[name] + total if name in self._sums else total

    def _watch(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._add(name, inputs[0])

        return hook

    def _watch_output(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self._count += output.numel() // output.size(-1)
            self._add(name, output)

        return hook

    def close(self) -> dict[str, np.ndarray]:
        """Takes the hooks off; mean squares (float32) [columns] by the name of the weight."""
        for hook in self._hooks:
            hook.remove()
        return {name: (total / self._count).float().numpy() for name, total in self._sums.items()}


@torch.no_grad()
def collect(folder: ModelDir, text: str | Path) -> dict[str, np.ndarray]:
    """Mean squares of the inputs of every matrix on the first 32,768 tokens of a text file.

    Raises:
        UserError: the text is missing or too short, or the model has no tokenizer.
    """
    from tqdm import tqdm

    if not folder.tokenizer_path.exists():
        raise UserError(f"{folder.path}: has no tokenizer, so it cannot read {text}; leave --calibrate out")
    tokenizer = load_tokenizer(folder.tokenizer_path)
    try:
        with open(text, "rb") as f:
            data = f.read(16 * TOKENS)
    except OSError as e:
        raise UserError(f"--calibrate {text}: cannot read it: {e.strerror}") from None
    ids = tokenizer.encode_array(data)[:TOKENS].astype(np.int64)
    if len(ids) < FEWEST:
        raise UserError(
            f"--calibrate {text}: {len(ids)} tokens; give at least a page of the text that the model is for"
        )
    model = Transformer(folder.config).eval()
    folder.load_into(model)
    measured = MeanSquares(model)
    length = min(SEQUENCE, folder.config.block_size, len(ids))
    starts = range(0, len(ids) - length + 1, length)
    for start in tqdm(starts, "calibrate", unit=" sequences", leave=False, disable=None):
        model.hidden(torch.from_numpy(ids[start : start + length])[None])
    return measured.close()
