"""What the benchmarks share: timing with spread, and a description of the machine.

Every record carries the rate of a matrix product on the same machine in the same run, so that
numbers from different or busy machines can be compared.
"""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """CPU model, GPU if any, number of threads, and versions."""
    return {
        "cpu": _cpu_model(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def measure(fn: Callable[[], Any], warmup: int = 2, repeats: int = 10) -> dict[str, float]:
    """Seconds of one call: median and quartiles of the wall clock, and the median of CPU time.

    CPU time adds up all threads. On a busy machine it is the steadier number for one thread.
    """
    for _ in range(warmup):
        fn()
    wall, cpu = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        fn()
        _wait_for_gpu()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    q25, median, q75 = statistics.quantiles(wall, n=4, method="inclusive")
    return {"median": median, "q25": q25, "q75": q75, "cpu_median": statistics.median(cpu)}


def gemm_gflops(threads: int, size: int = 1024) -> float:
    """Rate of a float32 matrix product on the CPU in 10^9 operations a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(2, size, size)
        seconds = measure(lambda: a @ b, warmup=2, repeats=7)["median"]
    finally:
        torch.set_num_threads(before)
    return 2 * size**3 / seconds / 1e9


def measure_beside_gemm(
    fn: Callable[[], Any], repeats: int = 7, size: int = 1024, products: int = 5
) -> dict[str, float]:
    """Seconds of one call and the CPU's GEMM rate, measured in turns so that both see the same day.

    Returns:
        ``min`` and ``median`` seconds of a call, ``gemm_max`` and ``gemm_median`` in 10^9
        operations a second, and ``first``, the seconds of a call before any other.
    """
    a, b = torch.randn(2, size, size)
    start = time.perf_counter()
    fn()
    first = time.perf_counter() - start
    wall, rates = [], []
    for _ in range(repeats):
        for _ in range(products):
            start = time.perf_counter()
            a @ b
            rates.append(2 * size**3 / (time.perf_counter() - start) / 1e9)
        start = time.perf_counter()
        fn()
        wall.append(time.perf_counter() - start)
    return {
        "min": min(wall),
        "median": statistics.median(wall),
        "gemm_max": max(rates),
        "gemm_median": statistics.median(rates),
        "first": first,
    }


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", maxsplit=1)[1].strip()
    return platform.processor() or platform.machine()
