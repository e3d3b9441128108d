"""A plan under search, as moves see it, and what a move gives.

A move gives the new chains in place of some of the old ones, by position (None: the pipeline is dropped; a position
past the end: a new one), or None where it is not possible here. Devices of all machines are known by class.
"""

from dataclasses import dataclass
from random import Random

from hetsched.cost.chains import Chain, ChainPricer, Group

Changes = dict[int, Chain | None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user has fixed: how many pipelines, how many stages in each; None where it is open."""

    replicas: int | None = None
    stages: int | None = None
    most_replicas: int = 1_000_000

    def allow(self, chain: Chain) -> bool:
        """Whether a pipeline has as many stages as asked for."""
        return self.stages in (None, len(chain))


@dataclass(slots=True)
class Draft:
    """A plan under search: its chains, the idle devices of each class, and what moves need to know."""

    pricer: ChainPricer
    chains: list[Chain]
    idle: list[int]
    kinds: list[int]
    limits: Limits
    random: Random

    def pick(self) -> int:
        """A pipeline."""
        return int(self.random.random() * len(self.chains))

    def below(self, size: int) -> int:
        """A number from 0 to size - 1."""
        return int(self.random.random() * size)

    def split(self, groups: list[Group], more: int = 0) -> Chain | None:
        """A chain of these groups; `more`: how many pipelines more than now there will be."""
        if not groups:
            return None
        if self.limits.stages is not None and len(groups) != self.limits.stages:
            return None
        return self.pricer.split(tuple(groups), len(self.chains) + more)

    def idle_classes(self) -> list[int]:
        """The classes with idle devices."""
        return [member for member, count in enumerate(self.idle) if count]


def groups_of(chain: Chain) -> list[Group]:
    """The group of each stage."""
    return [group for group, _ in chain]


def layers_of(chain: Chain) -> list[int]:
    """How many blocks each stage holds."""
    return [layers for _, layers in chain]
