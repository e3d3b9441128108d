"""What a search asks of a cost model about plans in classes of like devices: the price of many plans, quickly.

A class is a number for devices that the model can't tell apart. A group is a tensor-parallel group, a sorted tuple of
classes; a chain is a pipeline, a tuple of (group, layers).
"""

from collections.abc import Sequence
from typing import Protocol

Group = tuple[int, ...]
Chain = tuple[tuple[Group, int], ...]


class ChainPricer(Protocol):
    """Prices plans of one cluster, model, job and set of options; it remembers what it has seen of each chain."""

    def split(self, groups: tuple[Group, ...], pipelines: int) -> Chain | None:
        """The chain of these groups whose slowest stage is fastest, under memory; None where no split fits."""
        ...

    def fits(self, chain: Chain, pipelines: int) -> bool:
        """Whether no stage needs more memory than it has, in a plan of so many pipelines."""
        ...

    def shares(self, chains: Sequence[Chain]) -> list[int]:
        """How many micro-batches each does."""
        ...

    def price(self, chains: Sequence[Chain]) -> tuple[float, float]:
        """The iteration time, which equals the cost model's; and a guide that also sees what a maximum hides."""
        ...
