"""The Transformer: one definition for training, inference and every exporter.

Pre-RMSNorm blocks of grouped-query attention and SwiGLU (Touvron et al. 2023, Llama 2; Shazeer 2020, GLU variants).

Shapes in comments: B batch, T time (tokens), C width (n_embd), H query heads, K key/value heads, D head width,
F feed-forward width, V vocabulary, N tokens of all sequences (B * T).
"""

from __future__ import annotations

import math
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano_ds.by_document import Documents, attend
from nano_ds.config import ModelConfig

IGNORE = -100  # a target that carries no loss
MAX_LOGITS = 1 << 22  # logits of the loss that exist at once


def rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, each float32 [block_size, D/2] (Su et al. 2021, RoFormer)."""
    width = config.head_width
    inverse = 1.0 / (config.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    angle = torch.outer(torch.arange(config.block_size, dtype=torch.float32), inverse)
    return torch.cos(angle), torch.sin(angle)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turns pairs of x [B, heads, T, D] by the angles of its positions, cos and sin [T, D/2]; same dtype out.

    Any shape that broadcasts does, such as x [B, T, heads, D] with [B, T, 1, D/2].
    """
    if interleaved:
        a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).type_as(x)
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).type_as(x)


class KVCache:
    """Keys and values of the positions seen so far, allocated once for ``capacity`` tokens."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = (config.n_layer, batch, config.n_kv_head, capacity, config.head_width)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v [B, K, T, D] behind the ``length`` tokens held; returns all of that layer's keys and values."""
        end = self.length + k.size(2)
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.width = config.n_head, config.n_kv_head, config.head_width
        self.causal, self.interleaved, self.dropout = config.is_causal, config.rope_interleaved, config.dropout
        qkv_bias = config.bias or config.qkv_bias
        self.wq = nn.Linear(config.n_embd, self.heads * self.width, bias=qkv_bias)
        self.wk = nn.Linear(config.n_embd, self.kv_heads * self.width, bias=qkv_bias)
        self.wv = nn.Linear(config.n_embd, self.kv_heads * self.width, bias=qkv_bias)
        self.wo = nn.Linear(self.heads * self.width, config.n_embd, bias=config.bias)
        self.q_norm = nn.RMSNorm(self.width, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.width, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x_BTC: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        cache: KVCache | None,
        documents: Documents | None = None,
    ) -> Tensor:
        if documents is not None:
            return self.wo(self._by_document(x_BTC, rope, documents).flatten(-2))
        q = self.q_norm(self.wq(x_BTC).unflatten(-1, (self.heads, self.width))).transpose(1, 2)  # [B, H, T, D]
        k = self.k_norm(self.wk(x_BTC).unflatten(-1, (self.kv_heads, self.width))).transpose(1, 2)  # [B, K, T, D]
        v = self.wv(x_BTC).unflatten(-1, (self.kv_heads, self.width)).transpose(1, 2)
        if rope is not None:
            q, k = rotate(q, *rope, self.interleaved), rotate(k, *rope, self.interleaved)
        mask = None
        if cache is not None:
            past = cache.length
            k, v = cache.append(self.layer, k, v)
            if self.causal and past and q.size(2) > 1:
                mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril(past)
        if self.kv_heads != self.heads:
            # Repeating here costs less than the mathematical fallback that enable_gqa takes off CUDA.
            k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
            v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and mask is None and q.size(2) == k.size(2),
        )
        return self.wo(y.transpose(1, 2).flatten(-2))

    def _by_document(self, x_BTC: Tensor, rope: tuple[Tensor, Tensor] | None, documents: Documents) -> Tensor:
        """[B, T, H, D]; ``rope`` is that of each position, [B, T, 1, D/2]."""
        q = self.q_norm(self.wq(x_BTC).unflatten(-1, (self.heads, self.width)))  # [B, T, H, D]
        k = self.k_norm(self.wk(x_BTC).unflatten(-1, (self.kv_heads, self.width)))  # [B, T, K, D]
        v = self.wv(x_BTC).unflatten(-1, (self.kv_heads, self.width))
        if rope is not None:
            q, k = rotate(q, *rope, self.interleaved), rotate(k, *rope, self.interleaved)
        if self.kv_heads != self.heads:
            k = k.repeat_interleave(self.heads // self.kv_heads, dim=2)
            v = v.repeat_interleave(self.heads // self.kv_heads, dim=2)
        return attend(q, k, v, documents, self.causal, self.dropout if self.training else 0.0)


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = nn.Linear(config.n_embd, config.hidden, bias=config.bias)
        self.w2 = nn.Linear(config.hidden, config.n_embd, bias=config.bias)
        self.w3 = nn.Linear(config.n_embd, config.hidden, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attn_norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.attn = Attention(config, layer)
        self.ffn_norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.ffn = FeedForward(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        cache: KVCache | None,
        documents: Documents | None = None,
    ) -> Tensor:
        x = x + self.drop(self.attn(self.attn_norm(x), rope, cache, documents))
        return x + self.drop(self.ffn(self.ffn_norm(x)))


class Transformer(nn.Module):
    """The language model. ``forward(ids)`` gives logits, ``forward(ids, targets)`` the mean loss."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.n_embd)
        if not config.use_rope:
            self.pos_emb = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.final_norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        if not config.tie_embeddings:
            self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.rope = rope_tables(config) if config.use_rope else None
        self.init_weights()

    def _apply(self, fn: Any, recurse: bool = True) -> Transformer:
        """Follows moves to another device but keeps the rotary tables in float32: bf16 angles are useless."""
        super()._apply(fn, recurse)
        if self.rope is not None:
            device = self.tok_emb.weight.device
            self.rope = (self.rope[0].to(device), self.rope[1].to(device))
        return self

    @torch.no_grad()
    def init_weights(self) -> None:
        """Normal(0, 0.02); projections into the residual stream / sqrt(2 n_layer) (Radford et al. 2019, GPT-2)."""
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif "norm" in name:
                p.fill_(1.0)
            else:
                into_residual = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layer) if into_residual else 0.02)

    @property
    def output_weight(self) -> Tensor:
        """The matrix [V, C] that turns the last hidden state into logits."""
        return self.tok_emb.weight if self.config.tie_embeddings else self.head.weight

    def hidden(self, ids: Tensor, cache: KVCache | None = None, documents: Documents | None = None) -> Tensor:
        """The normalised last hidden state [B, T, C] of token ids [B, T], which follow what ``cache`` holds.

        With ``documents`` (and no cache) every document is read as if it stood alone.

        Raises:
            ValueError: the sequence is longer than block_size (or than the cache).
        """
        start = cache.length if cache is not None else 0
        end = start + ids.size(1)
        limit = self.config.block_size if cache is None else min(self.config.block_size, cache.capacity)
        if end > limit:
            raise ValueError(f"a sequence of {end} tokens does not fit the context of {limit}")
        x = self.tok_emb(ids)
        if not self.config.use_rope:
            at = torch.arange(start, end, device=ids.device) if documents is None else documents.positions
            x = x + self.pos_emb(at)
        x = self.drop(x)
        rope = None if self.rope is None else (self.rope[0][start:end], self.rope[1][start:end])
        if rope is not None and documents is not None:
            rope = (rope[0][documents.positions].unsqueeze(2), rope[1][documents.positions].unsqueeze(2))
        for block in self.blocks:
            x = block(x, rope, cache, documents)
        if cache is not None:
            cache.length = end
        return self.final_norm(x)

    @overload
    def forward(self, ids: Tensor, targets: None = None, cache: KVCache | None = None) -> Tensor: ...
    @overload
    def forward(
        self, ids: Tensor, targets: Tensor | None = None, cache: None = None, documents: Documents | None = None
    ) -> Tensor: ...
    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        cache: KVCache | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """Logits [B, T, V] in float32, or with ``targets`` [B, T] the mean cross-entropy in nats (scalar, float32).

        Targets equal to ``IGNORE`` carry no loss. ``documents`` keeps attention inside each document of a row.
        """
        x = self.hidden(ids, cache, documents)
        if targets is None:
            return F.linear(x, self.output_weight).float()
        return cross_entropy(x.flatten(0, 1), self.output_weight, targets.flatten())

    @torch.no_grad()
    def prefill(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits [B, V] of the last position only, for generation."""
        return F.linear(self.hidden(ids, cache)[:, -1], self.output_weight).float()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of x W^T, a chunk of rows at a time; gradients are made in the same pass.

    Never more than ``rows`` x V logits exist, and nothing is computed twice. Working the gradient out beside the loss
    also suits ZeRO-3, where W is only whole during the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        need_x, need_w = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x) if need_x else None
        grad_w = torch.zeros(weight.shape, device=weight.device, dtype=torch.float32) if need_w else None
        total = torch.zeros((), device=x.device, dtype=torch.float32)
        count = (targets != IGNORE).sum().clamp(min=1)
        for start in range(0, x.size(0), rows):
            x_c, t_c = x[start : start + rows], targets[start : start + rows]
            logits = F.linear(x_c, weight).float()  # [rows, V]
            log_p = F.log_softmax(logits, dim=-1)
            total += F.nll_loss(log_p, t_c, ignore_index=IGNORE, reduction="sum")
            if not (need_x or need_w):
                continue
            real = (t_c != IGNORE).unsqueeze(1)
            slope = log_p.exp_()
            slope.scatter_add_(1, t_c.clamp(min=0).unsqueeze(1), -real.float())
            slope.mul_(real / count)
            slope = slope.to(x.dtype)
            if grad_x is not None:
                torch.mm(slope, weight, out=grad_x[start : start + rows])
            if grad_w is not None:
                if weight.dtype == torch.float32:
                    grad_w.addmm_(slope.t(), x_c)
                else:
                    grad_w += torch.mm(slope.t(), x_c)
        ctx.save_for_backward(grad_x, grad_w)
        ctx.dtype = weight.dtype
        return total / count

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        grad_x, grad_w = ctx.saved_tensors
        return (
            None if grad_x is None else grad_x * grad_output.to(grad_x.dtype),
            None if grad_w is None else (grad_w * grad_output).to(ctx.dtype),
            None,
            None,
        )


def cross_entropy(x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, max_logits: int = MAX_LOGITS) -> Tensor:
    """Mean cross-entropy in nats of logits x W^T, holding at most about ``max_logits`` of them at once."""
    rows = max(1, min(x_NC.size(0), max_logits // weight_VC.size(0)))
    loss: Tensor = _ChunkedCrossEntropy.apply(x_NC, weight_VC, targets_N, rows)
    return loss


def parameter_count(config: ModelConfig) -> dict[str, int]:
    """Parameters by part: ``embedding``, ``blocks``, ``head`` (0 when tied), ``norms`` outside, and ``total``."""
    c, q, kv, f = config.n_embd, config.n_head * config.head_width, config.n_kv_head * config.head_width, config.hidden
    block = c * q + 2 * c * kv + q * c + 3 * c * f + 2 * c
    if config.bias or config.qkv_bias:
        block += q + 2 * kv
    if config.bias:
        block += c + 2 * f + c
    if config.qk_norm:
        block += 2 * config.head_width
    parts = {
        "embedding": config.vocab_size * c + (0 if config.use_rope else config.block_size * c),
        "blocks": config.n_layer * block,
        "head": 0 if config.tie_embeddings else config.vocab_size * c,
        "norms": c,
    }
    return {**parts, "total": sum(parts.values())}


def train_flops_per_token(config: ModelConfig, frozen: bool = False) -> int:
    """FLOPs of forward and backward per token: 6 per weight in a product, 12 L T (H D) for attention.

    The convention of Chowdhery et al. 2022 (PaLM, appendix B): the output matrix counts, the embedding lookup does not,
    and attention counts in full even when causal. ``frozen`` weights have no gradient of their own, so 4 each.
    """
    in_products = parameter_count(config)["blocks"] + config.vocab_size * config.n_embd
    per_weight = 4 if frozen else 6
    return per_weight * in_products + 12 * config.n_layer * config.block_size * config.n_head * config.head_width
