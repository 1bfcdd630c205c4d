"""Memory of a training step per rank: the formulas of ZeRO, what DeepSpeed keeps besides, and activations.

Weights, gradients and optimiser states are those of Rajbhandari et al. 2020 (ZeRO, section 3 and 5). DeepSpeed 0.19
keeps more, and each such term below says why. Activations follow the counting of Korthikanti et al. 2022 (Reducing
Activation Recomputation, section 4), for what this model keeps.

Letters: P parameters, N ranks, a bytes of a weight in the forward pass (fp32 4, bf16 2), b elements of the bucket in
which gradients are reduced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nano_ds.config import ModelConfig
from nano_ds.ds_config import zero_stage
from nano_ds.model import MAX_LOGITS, parameter_count

BUCKET = 500_000_000  # DeepSpeed's default reduce_bucket_size, and its fixed bucket at stage 0
PREFETCH = 50_000_000  # its default stage3_prefetch_bucket_size
LIVE = 1_000_000_000  # DeepSpeed's default stage3_max_live_parameters


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank."""

    weights: float
    gradients: float  # kept from step to step
    states: float  # of the optimiser, with the fp32 master weights
    buckets: float  # kept from step to step
    activations: float  # at the end of a forward pass, with the loss
    backward: float  # at the end of a backward pass: gradients, and buckets that they pass through
    start: float  # while DeepSpeed takes the model over
    host: float  # main memory of what is offloaded; on a CPU it comes out of the same memory

    @property
    def kept(self) -> float:
        """What is there from the first step to the last."""
        return self.weights + self.gradients + self.states + self.buckets

    @property
    def device(self) -> float:
        """The largest sum at any moment: activations are gone when the last gradients are reduced."""
        return max(self.start, self.kept + max(self.activations, self.backward))


def predict(model: ModelConfig, tree: dict[str, Any], ranks: int, bf16: bool, micro_batch: int, gpu: bool) -> Memory:
    """Memory of training ``model`` with the DeepSpeed JSON ``tree`` on ``ranks`` devices.

    On a GPU a bucket is allocated whole; on a CPU only the pages that are written to count.
    """
    p: float = parameter_count(model)["total"]
    n, a, stage = ranks, 2 if bf16 else 4, zero_stage(tree)
    zero = tree.get("zero_optimization", {})
    size = int(zero.get("reduce_bucket_size", BUCKET)) if stage else BUCKET
    used = min(p, size)  # elements that pass through the bucket at once
    b = size if gpu and stage else used
    buffers = 2 if zero.get("overlap_comm") and stage in (1, 2) else 1
    forward = activation_bytes(model, micro_batch, a) + loss_bytes(model, micro_batch, a)
    if stage == 0:
        # Gradients are flattened into a bucket, reduced and copied back, with one rank too.
        return Memory(
            weights=4 * p,
            gradients=0,
            states=8 * p,
            buckets=0,
            activations=forward,
            backward=4 * p + 4 * used,
            start=4 * p,
            host=0,
        )
    states = 12 * p / n  # fp32 too: the flat partition is a copy of the weights
    host = device_states = 0.0
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        # Beside the states: fp32 gradients of the partition and, below stage 3, its updated weights on their way back.
        host = states + 4 * p / n + (a * p / n if stage < 3 else 0)
    else:
        device_states = states
    if stage < 3:
        weights, gradients = a * p, 0.0
        if stage == 1 and bf16:
            # Gradients are added up in fp32 (grad_accum_dtype) and stay; two more copies of them pass through the
            # backward pass. Measured the same with small buckets: only a bucket larger than the model adds to it.
            gradients, buckets = 4 * p, 0.0
            backward = 8 * p + 4 * (b * buffers - used)
        else:
            # Reduction flattens the bucket once more. Stage 1 keeps all gradients besides, stage 2 the partition of
            # those reduced so far, which in bf16 is an fp32 buffer made at once.
            buckets = 0.0
            if stage == 1:
                besides = a * (p - used)
            else:
                besides = 4 * p / n if bf16 else 4 * (p - used) / n
            backward = a * b * buffers + a * used + besides
            # At the step: the gradients (stage 1 all, 2 the partition), and flat for the optimiser.
            backward = max(backward, (a if stage == 1 else 4 / n) * p + 4 * p / n)
        if host:
            backward = a * b * buffers + a * used
        start = 8 * p  # the fp32 model, and its flat copy
    else:
        weights = a * p / n
        gradients = 4 * p / n  # one flat buffer in grad_accum_dtype
        buckets = float(a * b)
        gathered = a * min(p, int(zero.get("stage3_max_live_parameters", LIVE))) if n > 1 else 0
        # Reduce-scatter takes a copy of the bucket, beside the weights gathered or the flat gradients for the step.
        backward = a * used + max(gathered, 4 * p / n)
        # Each prefetch gathers weights into a flat buffer and copies them out, before the backward pass too.
        fetched = int(zero.get("stage3_prefetch_bucket_size", PREFETCH))
        forward += gathered + min(gathered, a * fetched)
        start = 4 * p + (a + 4) * p / n
        if host:
            gradients = 0.0
            host += 4 * p / n  # the flat buffer moves too
        if zero.get("offload_param", {}).get("device", "none") != "none":
            host += weights
            weights = 0.0
    return Memory(
        weights=weights,
        gradients=gradients,
        states=device_states,
        buckets=buckets,
        activations=forward,
        backward=backward,
        start=start,
        host=host,
    )


def activation_bytes(model: ModelConfig, micro_batch: int, a: int) -> float:
    """What the blocks keep for the backward pass with a fused attention kernel, in bytes.

    Per token and layer: of each norm the input, the scaled input and the output (6 C); queries, repeated keys and
    values, the attention's output, and that output laid out for wo (5 H D); w1's and w3's outputs, the gate and the
    product (4 F); a sum per head and per norm in fp32.
    A dropout above 0 keeps a mask byte for each of its two places in a block.
    """
    c, h, f = model.n_embd, model.n_head, model.hidden
    per_token = a * (6 * c + 5 * h * model.head_width + 4 * f) + 4 * (h + 2) + (2 * c if model.dropout else 0)
    if model.qk_norm:
        per_token += a * (h + model.n_kv_head) * model.head_width
    tokens = micro_batch * model.block_size
    return tokens * (model.n_layer * per_token + 3 * a * c)


def loss_bytes(model: ModelConfig, micro_batch: int, a: int) -> float:
    """The chunked cross-entropy: two chunks of fp32 logits; the output matrix's fp32 gradient, kept and scaled.

    The chunks are gone when the gradient is scaled, so the larger counts.
    """
    v, c = model.vocab_size, model.n_embd
    rows = max(1, min(micro_batch * model.block_size, MAX_LOGITS // v))
    chunk = rows * v * (8 + (a if a == 2 else 0))
    return 4 * v * c + max(chunk + (a * v * c if a == 2 else 0), (4 + (a if a == 2 else 0)) * v * c)
