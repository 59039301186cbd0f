"""Median times of calls, and the FLOP/s of the device's own matrix products."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import cv2
import torch


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of one call, after one to warm up; short calls are timed several at once."""
    timed(function)
    first = timed(function)
    calls = calls_worth_timing(first)
    samples = [first] if calls == 1 else []
    while len(samples) < repeats:
        samples.append(timed(function, calls))
    return statistics.median(samples)


def compare(base: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median time of `other`, and median of how many times as fast as `base` it is. They take turns, so that
    whatever else the machine does meets them alike."""
    timed(other)
    timed(base)
    calls = calls_worth_timing(timed(base))
    pairs = [(timed(base, calls), timed(other, calls)) for _ in range(repeats)]
    return statistics.median(b for _, b in pairs), statistics.median(a / b for a, b in pairs)


def calls_worth_timing(seconds: float) -> int:
    return max(1, min(50, round(0.5 / seconds)))


def timed(function: Callable[[], object], calls: int = 1) -> float:
    """Seconds per call, until the device has finished."""
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize()
    return (time.perf_counter() - start) / calls


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """As in a loader process."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_peak(dtype: torch.dtype, device: torch.device, repeats: int) -> float:
    """FLOP/s of the fastest square matrix product: sizes are doubled from 512 while one takes below 0.1 s."""
    rates, size, seconds = [], 256, 0.0
    while seconds < 0.1 and size < 16384:
        size *= 2
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        seconds = median_seconds(partial(torch.mm, a, b), repeats)
        rates.append(2 * size**3 / seconds)
    return max(rates)
