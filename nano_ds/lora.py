"""Low-rank adapters on named linear layers (Hu et al. 2021, LoRA): y = W x + alpha / rank * B (A x).

``inject`` turns layers into ``LoRALinear`` in place; names of the base weights stay what they were, so checkpoints and
``ModelDir.load_into`` go on working. The adapter is what ends in ``.lora_a`` and ``.lora_b``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano_ds.errors import UserError
from nano_ds.interop.adapters import Adapter
from nano_ds.interop.nano_bin_layout import LORA_TARGETS
from nano_ds.model_dir import AdapterConfig, ModelDir, write_adapter_dir

OUTPUT = "head"  # the model multiplies with its weight alone, past the layer: an adapter there would do nothing


class LoRALinear(nn.Linear):
    """A linear layer with an adapter; shares weight and bias with the layer it replaces."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0):
        nn.Module.__init__(self)  # not Linear's: it would make a second weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        w = base.weight  # the adapter goes where it is, in its type
        self.lora_a = nn.Parameter(w.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(w.new_zeros(self.out_features, rank))  # so that it starts as no change
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        into = F.dropout(x, self.dropout, self.training)
        return super().forward(x) + self.scale * F.linear(F.linear(into, self.lora_a), self.lora_b)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}"


def inject(
    model: nn.Module, rank: int, alpha: float, targets: Sequence[str] = LORA_TARGETS, dropout: float = 0.0
) -> list[str]:
    """Puts an adapter on every linear layer whose name ends in one of ``targets``; returns their names.

    ``dropout`` is that of the adapters' inputs while training.

    Raises:
        UserError: a target that no linear layer has (naming those there are), or the output matrix; a layer that has an
            adapter already.
    """
    if rank < 1 or not alpha > 0:
        raise UserError(f"lora: rank {rank} and alpha {alpha:g} must be positive")
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    chosen = {name: m for name, m in linears.items() if name.rpartition(".")[2] in targets}
    there = {name.rpartition(".")[2] for name in linears} - {OUTPUT}
    if OUTPUT in chosen:
        raise UserError(f"lora: the output matrix ({OUTPUT}) takes no adapter; there are {', '.join(sorted(there))}")
    if absent := [t for t in targets if t not in there]:
        raise UserError(f"lora: no linear layer is called {', '.join(absent)}; there are {', '.join(sorted(there))}")
    _inject(model, chosen, rank, alpha, dropout)
    return list(chosen)


def _inject(model: nn.Module, chosen: dict[str, nn.Linear], rank: int, alpha: float, dropout: float = 0.0) -> None:
    if twice := [name for name, m in chosen.items() if isinstance(m, LoRALinear)]:
        raise UserError(f"lora: {twice[0]} has an adapter already; merge or remove it first")
    for name, linear in chosen.items():
        _replace(model, name, LoRALinear(linear, rank, alpha, dropout))


def adapted(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The layers with an adapter, in the order of the model."""
    for name, m in model.named_modules():
        if isinstance(m, LoRALinear):
            yield name, m


def only_adapters_train(model: nn.Module) -> None:
    """Freezes everything but the adapters."""
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith((".lora_a", ".lora_b")))


@dataclass(frozen=True)
class Merged:
    """What ``unmerge`` needs: the adapters that were merged, and the weights as they were before."""

    layers: dict[str, LoRALinear]
    weights: dict[str, Tensor]


@torch.no_grad()
def merge(model: nn.Module, keep: bool = False) -> Merged | None:
    """Adds every adapter to its weight and takes it off: the same answers at the base model's speed.

    ``keep``: remember the weights, for ``unmerge``. Subtracting the adapter again would not give the same bits.
    """
    layers = dict(adapted(model))
    kept = Merged(layers, {name: m.weight.detach().clone() for name, m in layers.items()}) if keep else None
    for name, m in layers.items():
        m.weight += m.scale * (m.lora_b @ m.lora_a)
        _replace(model, name, _plain(m))
    return kept


@torch.no_grad()
def unmerge(model: nn.Module, kept: Merged) -> None:
    """Undoes ``merge``: weights and adapters are as they were, bit for bit."""
    for name, m in kept.layers.items():
        m.weight.copy_(kept.weights[name])
        _replace(model, name, m.train(model.training))


def remove(model: nn.Module) -> None:
    """Takes every adapter off: the base model again."""
    for name, m in list(adapted(model)):
        _replace(model, name, _plain(m))


def save(model: nn.Module, path: str | Path, base_fingerprint: str = "") -> None:
    """Writes the adapters of ``model`` as an adapter directory."""
    layers = dict(adapted(model))
    if not layers:
        raise UserError(f"{path}: the model has no adapter to save")
    first = next(iter(layers.values()))
    targets = tuple(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    config = AdapterConfig(rank=first.rank, alpha=first.alpha, targets=targets, base_fingerprint=base_fingerprint)
    tensors = {f"{name}.{part}": getattr(m, part) for name, m in layers.items() for part in ("lora_a", "lora_b")}
    with write_adapter_dir(path, config, {name: tuple(t.shape) for name, t in tensors.items()}) as writer:
        for name, t in tensors.items():
            writer.write(name, t)


def load(model: nn.Module, path: str | Path, base: ModelDir | None = None) -> list[str]:
    """Injects the adapter of a directory, of a LoRA `.bin` or `.gguf` and returns the names of the layers.

    With ``base`` the adapter must be one of that very model; without, only the shapes must fit.

    Raises:
        UserError: the file is damaged, or does not fit; the model is then unchanged.
    """
    adapter = Adapter(path, base, getattr(model, "config", None))
    known = dict(model.named_modules())
    chosen: dict[str, nn.Linear] = {}
    weights: dict[str, Tensor] = {}
    for name in adapter.linears:
        layer = known.get(name)
        if name == OUTPUT:
            raise UserError(f"{path}: adapts the output matrix ({OUTPUT}), which takes no adapter here")
        if not isinstance(layer, nn.Linear):
            raise UserError(f"{path}: adapts {name}, which this model does not have")
        for part, shape in (
            ("lora_a", (adapter.rank, layer.in_features)),
            ("lora_b", (layer.out_features, adapter.rank)),
        ):
            weights[f"{name}.{part}"] = t = torch.from_numpy(adapter.matrix(name, part).copy())
            if t.shape != shape:
                raise UserError(f"{path}: {name}.{part} has shape {list(t.shape)}, this model needs {list(shape)}")
        chosen[name] = layer
    _inject(model, chosen, adapter.rank, adapter.alpha)
    with torch.no_grad():
        for name, m in adapted(model):
            if name in chosen:
                m.lora_a.copy_(weights[f"{name}.lora_a"])
                m.lora_b.copy_(weights[f"{name}.lora_b"])
    return adapter.linears


def _plain(m: LoRALinear) -> nn.Linear:
    plain = nn.Linear(m.in_features, m.out_features, bias=m.bias is not None, device="meta")
    plain.weight, plain.bias = m.weight, m.bias
    return plain.train(m.training)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
