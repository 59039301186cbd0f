"""Where the time of one step goes, by the names of its kernels (on a CPU: of PyTorch's operations)."""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from hap.benchmarks.timing import synchronize

# The first that a name matches counts: an attention kernel may have a matrix product in its name, too.
KINDS = {
    "attention": "attention|flash|fmha|sdpa",
    "optimizer": "adam|multi_tensor|_foreach",
    "matrix products": "gemm|matmul|::mm|::bmm|addmm|nvjet|cutlass|convolution|conv2d",
    "norms": "layer_?norm|batch_?norm|var_mean",
    "copies": "copy|memcpy|memset|::cat|catarray|fill",
}


def kind_of(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if re.search(words, name, re.I)), "other")


def profile(step: Callable[[], None]) -> list[dict[str, Any]]:
    """Milliseconds and share of each kind of work in one call, after one to warm up; the largest first."""
    step()
    synchronize()
    on_gpu = torch.cuda.is_available()
    with torch.profiler.profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    ) as run:
        step()
        synchronize()
    times: dict[str, float] = defaultdict(float)
    for event in run.key_averages():
        if on_gpu and event.device_type == DeviceType.CUDA:
            times[kind_of(event.key)] += event.self_device_time_total / 1000
        elif not on_gpu:
            times[kind_of(event.key)] += event.self_cpu_time_total / 1000
    total = sum(times.values())
    rows = sorted(times.items(), key=lambda item: -item[1])
    return [{"kind": kind, "ms": ms, "share": ms / total} for kind, ms in rows]
