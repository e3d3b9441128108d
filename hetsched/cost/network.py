"""How long messages take: latency and bytes over bandwidth (the α-β model, Hockney 1994)."""

import numpy as np

from hetsched.cluster import Floats


def ring_all_reduce_s(size_bytes: float, latency_s: Floats, bandwidth_bytes_per_s: Floats) -> float:
    """All-reduce over a ring in the order given: 2 (n - 1) steps of 1/n of the bytes, each as slow as the worst link.

    latency_s, bandwidth_bytes_per_s: (n, n), from row to column. Patarasuk and Yuan 2009,
    doi:10.1016/j.jpdc.2008.09.002.
    """
    n = len(latency_s)
    if n < 2:
        return 0.0
    here, there = np.arange(n), (np.arange(n) + 1) % n
    step = latency_s[here, there] + size_bytes / n / bandwidth_bytes_per_s[here, there]
    return float(2 * (n - 1) * step.max())
