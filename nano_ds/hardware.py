"""Facts of this machine: peak arithmetic of known GPUs, memory in use."""

from __future__ import annotations

import resource
import sys

import torch

# Dense bf16 tensor-core peaks in TFLOP/s, from the makers' data sheets. First match wins; unknown means no MFU.
PEAK_BF16_TFLOPS = (
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10", 125.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)


def peak_flops(device: torch.device, bf16: bool) -> float | None:
    """Peak FLOP/s of the device in the training type, or None where it is not known (then no MFU, never a guess)."""
    if device.type != "cuda" or not bf16:
        return None
    return peak_of_name(torch.cuda.get_device_name(device))


def peak_of_name(name: str) -> float | None:
    """Peak bf16 FLOP/s of a GPU by its marketing name."""
    words = name.replace("-", " ")
    return next((tflops * 1e12 for key, tflops in PEAK_BF16_TFLOPS if f" {key}" in f" {words}"), None)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def peak_memory_mb(device: torch.device) -> float:
    """Most memory used so far in MB: of the GPU where there is one, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
