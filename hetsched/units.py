"""The only conversion factors: files and screens speak gbps, ms and GiB, all inside is bytes, seconds, FLOP/s."""

BYTES_PER_S_PER_GBPS = 1e9 / 8  # gbps is 1e9 bit/s
BYTES_PER_S_PER_GBYTES = 1e9  # GB is 1e9 bytes
BYTES_PER_GB = 1e9
BYTES_PER_GIB = 2**30
SECONDS_PER_MS = 1e-3
FLOPS_PER_TFLOPS = 1e12
TOKENS_PER_MILLION = 1e6
SECONDS_PER_HOUR = 3600.0

DTYPE_BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}


def duration(seconds: float) -> str:
    """As people read it: `49.20 s`, `812 ms`, `3.1 ms`; hours from 10,000 s."""
    hours = seconds / SECONDS_PER_HOUR
    if seconds >= 10_000:
        return f"{hours:.1f} h" if hours < 1e6 else f"{hours:.3g} h"
    if seconds >= 1:
        return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.2g} ms"


def counted(number: int, noun: str) -> str:
    """`1 stage`, `2 stages`."""
    return f"{number} {noun}{'s' * (number != 1)}"
