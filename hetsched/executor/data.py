"""Real text as bytes: which window of it a sample is depends on step and number alone, never on the layout."""

import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from hetsched.errors import HetschedError
from hetsched.files import read_text

SPREAD = 2654435761  # Knuth's multiplicative hash: neighbouring samples start far apart


class Epochs:
    """Which batch of samples a step trains on: a new one each step, or `steps` batches in a new order every epoch.

    A batch has the same samples in every epoch, so that a sample always comes to the same pipeline.
    """

    def __init__(self, steps: int | None, seed: int) -> None:
        self._steps, self._seed = steps, seed
        self._epoch, self._order = -1, list[int]()

    def batch(self, step: int) -> int:
        """The number of the batch of a step."""
        if self._steps is None:
            return step
        epoch, place = divmod(step, self._steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(self._steps))
            random.Random(f"{self._seed}:{epoch}").shuffle(self._order)
        return self._order[place]


class ByteText:
    """A text whose tokens are its UTF-8 bytes, 0 to 255, read in a circle.

    path: the text file; None is the bundled `sample.txt`, in the public domain. HetschedError where it is unreadable.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            text = files("hetsched.executor").joinpath("sample.txt").read_text(encoding="utf-8")
        else:
            text = read_text(path, "text file")
        if not text:
            raise HetschedError(f"text file {path} is empty", hint="give a text of a few thousand characters")
        self._tokens = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def samples(self, first: int, numbers: Sequence[int], seq_len: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (len(numbers), seq_len) token ids, of the samples `first + number`.

        `first` is batch × global batch, `number` a sample's place in the global batch.
        """
        starts = torch.tensor([(first + number) * SPREAD % len(self._tokens) for number in numbers])
        places = (starts[:, None] + torch.arange(seq_len + 1)) % len(self._tokens)
        windows = self._tokens[places].long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
