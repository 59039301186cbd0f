"""Time and memory of the re-identification evaluation, next to the plain NumPy way, at the size of MSMT17."""

import multiprocessing
import re
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hap.metrics.ranking import evaluate_ranking

Samples = list[Tensor]  # features (N, D), identities, and a number of each
Make = Callable[[], tuple[Samples, Samples]]  # queries, gallery
Way = Callable[[Samples, Samples, int], np.ndarray]  # of these and a block size, AP of each query


class Sizes(NamedTuple):
    num_query: int
    num_gallery: int
    dim: int
    num_ids: int


def run(
    num_query: int = 11659,
    num_gallery: int = 82161,
    dim: int = 768,
    num_ids: int = 3060,
    numpy_queries: int | None = 1024,
    block_size: int = 512,
    device: str = "cpu",
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Rank random features (an identity's centre plus noise, 15 cameras), each way in a process of its own.

    Args:
        num_query, num_gallery, dim, num_ids: sizes; the defaults are MSMT17 and ViT-B.
        numpy_queries: queries the NumPy way is timed on; its time is scaled up by their share. None: all.
        block_size: queries at a time, in both ways.
        device: where `evaluate_ranking` runs; NumPy stays on the CPU.
        seed: of the features.

    Yields:
        once: sizes, seconds, peak memory beyond the features in GB, ratio of the times, and both mAP on the queries
        that NumPy saw. The table printed shows the same.
    """
    sizes = Sizes(num_query, num_gallery, dim, num_ids)
    timed = num_query if numpy_queries is None else min(numpy_queries, num_query)
    made = partial(_people, sizes, seed)
    result = {**sizes._asdict(), "device": name_of(device), "threads": torch.get_num_threads()}
    result |= both_ways(made, _blocks, _plain_numpy, num_query, timed, block_size, device)
    seconds, memory = result["seconds"], result["memory_gb"]
    numpy_seconds, numpy_memory = result["numpy_seconds"], result["numpy_memory_gb"]
    scaled = "" if timed == num_query else f", scaled from {timed} queries"
    print(f"{num_query} queries, {num_gallery} gallery entries, {dim} dimensions, on {result['device']}")
    print(f"{'':14}{'seconds':>10}{'GB beyond features':>20}{'mAP':>12}")
    print(f"{'evaluation':14}{seconds:10.1f}{memory:20.2f}{result['mAP']:12.8f}")
    print(f"{'plain NumPy':14}{numpy_seconds:10.1f}{numpy_memory:20.2f}{result['numpy_mAP']:12.8f}{scaled}")
    print(f"{'ratio':14}{result['ratio']:10.2f}")
    yield result


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"


def both_ways(
    make: Make, ours: Way, plain: Way, num_query: int, timed: int, block_size: int, device: str
) -> dict[str, Any]:
    """Each way in a process of its own; the plain one on the CPU, its time scaled up from the first `timed` queries."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        seconds, memory, peak, ap = pool.apply(_measure, (make, ours, num_query, block_size, device))
        sample, numpy_memory, _, numpy_ap = pool.apply(_measure, (make, plain, timed, block_size, "cpu"))
    return {
        "seconds": seconds,
        "memory_gb": memory,
        "peak_gb": peak,
        "numpy_seconds": sample * num_query / timed,
        "numpy_measured_queries": timed,
        "numpy_memory_gb": numpy_memory,
        "ratio": sample * num_query / timed / seconds,
        "mAP": float(np.nanmean(ap[:timed])),
        "numpy_mAP": float(np.nanmean(numpy_ap)),
    }


def _measure(
    make: Make, way: Way, num_query: int, block_size: int, device: str
) -> tuple[float, float, float, np.ndarray]:
    """Seconds, peak GB beyond what the features needed, peak GB of the whole process (of what is on the GPU), and AP of
    the first `num_query` queries."""
    query, gallery = make()
    query, gallery = [values[:num_query].to(device) for values in query], [v.to(device) for v in gallery]
    on_gpu = device.startswith("cuda")
    before = torch.cuda.memory_allocated() if on_gpu else _peak_memory()
    start = time.perf_counter()
    ap = way(query, gallery, block_size)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if on_gpu else _peak_memory()
    return seconds, (peak - before) / 1e9, peak / 1e9, ap


def _people(sizes: Sizes, seed: int) -> tuple[Samples, Samples]:
    """Queries and gallery, identities and cameras at random."""
    torch.manual_seed(seed)
    centres = torch.randn(sizes.num_ids, sizes.dim)
    query, gallery = (
        [*features_of(centres, torch.randint(sizes.num_ids, (number,))), torch.randint(15, (number,))]
        for number in sizes[:2]
    )
    return query, gallery


def features_of(centres: Tensor, ids: Tensor) -> Samples:
    """Normalised features (N, D), each an identity's centre plus noise; and these identities."""
    features = torch.randn(len(ids), centres.shape[1]).mul_(2.5)
    for rows in torch.arange(len(ids)).split(
        4096
    ):  # in parts, so that no copy raises the memory to compare with
        part = features[rows[0] : rows[-1] + 1].add_(centres[ids[rows]])
        part.div_(part.norm(dim=1, keepdim=True))
    return [features, ids]


def _peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says begins with that of the process that started this one
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _blocks(query: Samples, gallery: Samples, block_size: int) -> np.ndarray:
    labels = (query[1], gallery[1], query[2], gallery[2])
    return evaluate_ranking(query[0], gallery[0], *labels, block_size=block_size).ap.numpy()


def _plain_numpy(query: Samples, gallery: Samples, block_size: int) -> np.ndarray:
    """The usual evaluation: product, argsort and comparison of whole rows, then a loop over the queries. In
    blocks too, as the whole matrices of MSMT17 take 20 GB."""
    features, ids, cams = (values.numpy() for values in query)
    gallery_features, gallery_ids, gallery_cams = (values.numpy() for values in gallery)
    ap = np.full(len(ids), np.nan)
    for start in range(0, len(ids), block_size):
        rows = slice(start, start + block_size)
        order = np.argsort(1 - features[rows] @ gallery_features.T, axis=1)  # (B, G)
        matches = gallery_ids[order] == ids[rows, None]
        for i, (ranked, match) in enumerate(zip(order, matches, strict=True), start):
            hits = match[~(match & (gallery_cams[ranked] == cams[i]))]
            if hits.any():
                ap[i] = (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()
    return ap
