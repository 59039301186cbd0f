"""Arithmetic of a task per image, counted by torch's own counter on tensors without storage."""

import copy
import re

import torch
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

# Dense 16-bit tensor-core peak from the makers' data sheets, in TFLOP/s, by words of the device's name.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "V100": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


def device_peak() -> float | None:
    """Data-sheet peak of this process's GPU in TFLOP/s; None where it is not known."""
    if not torch.cuda.is_available():
        return None
    return peak_of(torch.cuda.get_device_name())


def peak_of(name: str) -> float | None:
    return next((peak for words, peak in PEAK_TFLOPS.items() if re.search(rf"\b{words}\b", name)), None)


def training_flops(task: torch.nn.Module, sample: dict) -> float:
    """FLOPs (a multiply-add is two) of forward and backward for one sample: three times the forward pass."""
    batch = {name: value.to("meta") for name, value in default_collate([sample] * 2).items()}  # a batch norm
    twin = copy.deepcopy(task).to("meta").train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(batch)
    return 3.0 * counter.get_total_flops() / 2
