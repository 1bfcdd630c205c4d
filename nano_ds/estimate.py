"""Memory of a training step by the formulas of ZeRO (Rajbhandari et al. 2020, section 5)."""

from __future__ import annotations


def zero_bytes(parameters: int, stage: int, devices: int, bf16: bool) -> float:
    """Bytes per device of weights, gradients and AdamW states.

    fp32: 4 + 4 + 8 per parameter, and 4 more from stage 1 on, where DeepSpeed keeps a flat copy of its partition.
    bf16: 2 for weights, 4 for gradients accumulated in fp32, 12 for master weights and moments.
    Stage 1 divides optimiser states, 2 also gradients, 3 also weights.
    """
    weights = 2 if bf16 else 4
    gradients = 4
    states = 12 if bf16 or stage else 8
    return parameters * (
        weights / (devices if stage == 3 else 1)
        + gradients / (devices if stage >= 2 else 1)
        + states / (devices if stage >= 1 else 1)
    )
