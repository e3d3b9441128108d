"""AQ-SGD against direct quantisation and none: `python -m tests.benchmarks.bench_compression -o DIR`.

A byte model is trained on this project's licence, and then fine-tuned on the bundled sample text by one
pipeline of four stages, once for each way to send activations: as they are, as quantised changes since the sample was
last seen (AQ-SGD, Wang et al. 2022, arXiv 2206.01299), and quantised directly in as many bits. Activation gradients
travel in 8 bits. Prints the mean loss of the last epoch, and draws the loss by epoch (compression.svg).
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape

from hetsched.executor import RunSettings, run_plan
from hetsched.files import write_text
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage
from hetsched.workload import TrainingJob

ROOT = Path(__file__).parents[2]
MODEL = ModelSpec.from_json(
    {
        "name": "byte-llama",
        "num_layers": 4,
        "hidden_size": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_size": 128,
        "vocab_size": 256,
        "max_positions": 64,
    }
)
JOB = TrainingJob(global_batch=16, seq_len=64, micro_batch=4, dtype="fp32")
STAGES = tuple(Stage((block, block + 1), (f"n{block}/0",)) for block in range(MODEL.num_layers))
PLAN = Plan(MODEL, JOB, (Pipeline("p0", STAGES, 4),))
BACKWARD_BITS, EPOCH_STEPS = 8, 8
COLOURS = ("#999999", "#0072b2", "#d55e00", "#009e73", "#cc79a7")


def pretrained(folder: Path, steps: int) -> Path:
    """A folder with the weights of the model after so many steps."""
    text = folder / "text.txt"
    write_text(text, (ROOT / "LICENSE").read_text(encoding="utf-8"))
    weights = folder / "weights"
    run_plan(
        replace(PLAN, pipelines=(Pipeline("p0", (Stage((0, MODEL.num_layers), ("n0/0",)),), 4),)),
        RunSettings(
            steps=steps,
            device="cpu",
            text=text,
            learning_rate=1e-3,
            checkpoint_to=folder / "checkpoints",
            save_weights=weights,
        ),
    )
    return weights


def losses(weights: Path, bits: int, quantise: str, epochs: int, learning_rate: float) -> list[float]:
    """The mean loss of each epoch of fine-tuning; bits: of activations, 16 where nothing is compressed."""
    compression = Compression() if bits == Compression().activation_bits else Compression(bits, BACKWARD_BITS)
    settings = RunSettings(
        steps=epochs * EPOCH_STEPS,
        device="cpu",
        epoch_steps=EPOCH_STEPS,
        quantise=quantise,
        weights=weights,
        learning_rate=learning_rate,
    )
    found = run_plan(replace(PLAN, options=Options(compression=compression)), settings).losses
    return [statistics.fmean(found[first : first + EPOCH_STEPS]) for first in range(0, len(found), EPOCH_STEPS)]


def plot(curves: dict[str, list[float]]) -> str:
    """The curves by epoch, as an SVG document."""
    width, height, left, bottom = 640, 400, 60, 50
    low, high = min(map(min, curves.values())), max(map(max, curves.values()))
    epochs = max(map(len, curves.values()))

    def x(epoch: float) -> float:
        return left + (epoch - 1) / max(epochs - 1, 1) * (width - left - 20)

    def y(loss: float) -> float:
        return 20 + (high - loss) / (high - low or 1.0) * (height - bottom - 20)

    def width_of(number: int) -> int:
        return 2 if number else 6  # the first is seen under one that covers it

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13"><rect width="100%" height="100%" fill="white"/>',
        f'<path d="M{left} 20V{height - bottom}H{width - 20}" fill="none" stroke="#888"/>',
        f'<text x="{(left + width) / 2}" y="{height - 12}" text-anchor="middle">epoch</text>',
        f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">'
        "mean training loss (nats a byte)</text>",
    ]
    for tick in range(6):
        loss, epoch = low + tick / 5 * (high - low), 1 + round(tick / 5 * (epochs - 1))
        lines.append(f'<text x="{left - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
        lines.append(f'<text x="{x(epoch):.1f}" y="{height - bottom + 18}" text-anchor="middle">{epoch}</text>')
    for number, (name, losses_) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(epoch):.1f},{y(loss):.1f}" for epoch, loss in enumerate(losses_, start=1))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width_of(number)}"/>')
        lines.append(f'<text x="{width - 24}" y="{36 + 18 * number}" text-anchor="end" fill="{colour}">')
        lines[-1] += f"{escape(name)}: {losses_[-1]:.3f}</text>"
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="for compression.svg")
    parser.add_argument("--bits", type=int, nargs="+", default=[3], help="of activations")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    curves: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        weights = pretrained(Path(name), given.pretrain_steps)
        ways = [("not compressed", 16, "changes")]
        for bits in given.bits:
            ways.append((f"changes in {bits} bits (AQ-SGD)", bits, "changes"))
            ways.append((f"directly in {bits} bits", bits, "direct"))
        for label, bits, quantise in ways:
            curves[label] = losses(weights, bits, quantise, given.epochs, given.learning_rate)
            worse = curves[label][-1] / curves["not compressed"][-1] - 1
            sys.stdout.write(f"{label:<28} loss {curves[label][0]:.4f} to {curves[label][-1]:.4f}  {worse:+.1%}\n")
            sys.stdout.flush()
    write_text(given.output / "compression.svg", plot(curves))
    return 0


if __name__ == "__main__":
    sys.exit(main())
