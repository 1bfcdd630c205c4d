"""nano_ds: train a small language model with DeepSpeed, run the same file in C."""

__version__ = "0.1.0"
