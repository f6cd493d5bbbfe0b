"""A base in 4 bits for QLoRA, through transformers and bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from ..core.errors import ModelError

__all__ = ["in_four_bits"]


def in_four_bits(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return how transformers is asked for NF4 weights with doubly quantised scales, as in QLoRA; raises `ModelError`."""
    if importlib.util.find_spec("bitsandbytes") is None or device.type != "cuda":
        lacking = "the package bitsandbytes" if device.type == "cuda" else "a CUDA device (and the package bitsandbytes)"
        raise ModelError(f"4-bit weights (adapter=qlora) need {lacking}, which is not here; use adapter=lora instead")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": device}}
