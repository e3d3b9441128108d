"""How far serving times are off on GPUs and degrees that they were not fitted to.

    python tests/benchmarks/bench_serving_fit.py

The six figures of an architecture (hetsched/catalog/gpus.yaml, `serving`) are fitted to the 49 rows of
tests/published/serving_latency.json, by least squares of the logarithms, held near what is usual where rows say little;
those of all-reduces stay as they are. Printed: each GPU fitted by itself; with each degree left out and predicted; with
each GPU left out and predicted by the figures of the two others together: once with equal overheads of a block, once
with overheads of equal clock cycles, once with products bound by power besides.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from hetsched.catalog import find_gpu
from hetsched.cluster import ServingEfficiency
from hetsched.cost.serving.stage import StageTimes, causal_pairs
from hetsched.precision import Precision
from hetsched.readers import resolve_model

ROWS = json.loads((Path(__file__).parents[1] / "published" / "serving_latency.json").read_text(encoding="utf-8"))[
    "rows"
]
KINDS = {"h100_sxm": "H100-SXM-80GB", "a100_sxm": "A100-SXM-80GB", "l40s": "L40S-48GB"}
WATTS = {"h100_sxm": 700.0, "a100_sxm": 400.0, "l40s": 350.0}  # of the data sheets
GHZ = {"h100_sxm": 1.98, "a100_sxm": 1.41, "l40s": 2.52}  # boost, the same
USUAL = np.log([0.7, 0.5, 0.78, 0.7, 3e-5, 5e-5, 0.7])  # the seventh: sustained TFLOPS a watt
SPREAD = np.array([0.3, 0.3, 0.1, 0.2, 0.7, 0.7, 0.3])  # of their logarithms
PRECISION = 0.03  # of the rows
MODELS = ("equal", "clock", "power")


def stage(row: dict[str, object], efficiency: ServingEfficiency) -> StageTimes:
    gpu, model = find_gpu(KINDS[str(row["gpu"])], "benchmark"), resolve_model(str(row["model"]), "benchmark")
    gpu = replace(gpu, serving=efficiency)
    return StageTimes(gpu, int(str(row["tp"])), gpu.link, model, Precision(), model.num_layers, True, True)


def errors(rows: list[dict[str, object]], logs: np.ndarray, model: str = "equal") -> np.ndarray:
    """(rows, 2): logarithms of predicted over given. with `power` a seventh figure: TFLOPS a watt."""
    found = []
    for row in rows:
        figures = np.exp(logs[:6])
        if model != "equal":
            figures[4:] *= 1.75 / GHZ[str(row["gpu"])]
        if model == "power":
            gpu = find_gpu(KINDS[str(row["gpu"])], "benchmark")
            sustained = np.exp(logs[6]) * 1e12 * WATTS[str(row["gpu"])]
            figures[0] = (figures[0] ** -4 + (sustained / gpu.half_flops_per_s) ** -4) ** -0.25
        times = stage(row, ServingEfficiency(*figures))
        batch, tokens, output = (int(str(row[key])) for key in ("batch", "isl", "osl"))
        prefill_s = times.prefill_s(batch * tokens, batch * causal_pairs(tokens), batch)
        decode_s = times.decode_s(batch, batch * (tokens + output / 2))
        given = float(str(row["prefill_ms"])), float(str(row["tpot_ms"]))
        found.append((np.log(prefill_s * 1e3 / given[0]), np.log(decode_s * 1e3 / given[1])))
    return np.array(found)


def fitted(rows: list[dict[str, object]], model: str = "equal") -> np.ndarray:
    """Logarithms of the figures that fit the rows best."""
    size = 7 if model == "power" else 6

    def off(logs: np.ndarray) -> np.ndarray:
        return np.append(errors(rows, logs, model).ravel() / PRECISION, (logs - USUAL[:size]) / SPREAD[:size])

    return np.asarray(least_squares(off, USUAL[:size], diff_step=[1e-3] * size).x)


def say(label: str, found: np.ndarray) -> None:
    off = np.abs(np.expm1(found)) * 100.0
    mean, worst = off.mean(axis=0), off.max(axis=0)
    sys.stdout.write(
        f"{label:44s} prefill {mean[0]:5.1f} % (worst {worst[0]:4.0f}), decode {mean[1]:5.1f} % ({worst[1]:4.0f})\n"
    )
    sys.stdout.flush()


def main() -> None:
    """Print a line for each fit."""
    of = {gpu: [row for row in ROWS if row["gpu"] == gpu] for gpu in KINDS}
    for gpu, rows in of.items():
        logs = fitted(rows)
        say(f"{gpu} by itself", errors(rows, logs))
        sys.stdout.write("   " + " ".join(f"{value:.3g}" for value in np.exp(logs)) + "\n")
        for degree in sorted({row["tp"] for row in rows}):
            rest, out = ([row for row in rows if (row["tp"] == degree) is same] for same in (False, True))
            if rest:
                say(f"{gpu}, degree {degree} left out", errors(out, fitted(rest)))
    for gpu, rows in of.items():
        rest = [row for row in ROWS if row["gpu"] != gpu]
        for model in MODELS:
            logs = fitted(rest, model)
            say(f"{gpu} left out, {model}", errors(rows, logs, model))


if __name__ == "__main__":
    main()
