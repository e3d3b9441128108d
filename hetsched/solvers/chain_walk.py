"""Simulated annealing on asymmetric plans: a walk by the moves of `chain_moves` (Kirkpatrick et al. 1983,
doi:10.1126/science.220.4598.671). A temperature is a share of the iteration time."""

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from math import inf, log
from random import Random

from hetsched.cost.chains import Chain, ChainPricer, Standing
from hetsched.solvers.chain_moves import CHANGE_DEVICES, MOVES
from hetsched.solvers.draft import Changes, Draft, Limits
from hetsched.solvers.inventory import Inventory


@dataclass(frozen=True, slots=True)
class Walk:
    """Where a search walks: the devices, the prices, what the user has fixed, and the chance.

    rent: where it is given, its product with the time is lessened, and not the time.
    """

    inventory: Inventory
    pricer: ChainPricer
    limits: Limits
    random: Random
    rent: Callable[[Sequence[Chain]], float] | None = None

    def run(self, start: Sequence[Chain], moves: int, hot: float, cold: float) -> Standing:
        """The best plan met in so many moves from `start` on, while the temperature falls from `hot` to `cold`."""
        best, best_worth = self.pricer.stand(start), inf
        for standing, rate in self._on(start, moves, hot, cold):
            if standing.seconds * rate < best_worth:
                best, best_worth = standing, standing.seconds * rate
        return best

    def drift(self, start: Sequence[Chain], steps: int, moves: int, heat: float) -> Standing:
        """Where so many steps lead at one temperature; `moves`: tried at most."""
        *_, (standing, _) = islice(self._on(start, moves, heat, heat), steps + 1)
        return standing

    def _on(self, start: Sequence[Chain], moves: int, hot: float, cold: float) -> Iterator[tuple[Standing, float]]:
        """Where it stands: at the start, and after each move that is taken; and the rent there."""
        standing = self.pricer.stand(start)
        inventory, pricer, random, rent = self.inventory, self.pricer, self.random, self.rent
        rate = rent(start) if rent else 1.0
        yield standing, rate
        draft = Draft(pricer, standing.chains, inventory.idle(start), inventory.kinds, self.limits, random)
        ways = [move for move, _ in MOVES]
        upto = list(accumulate(weight for _, weight in MOVES))
        cooling = (cold / hot) ** (1 / max(1, moves))
        heat = hot * (standing.seconds * rate if standing.seconds < inf else 1.0)
        for _ in range(moves):
            heat *= cooling
            way = ways[bisect(upto, random.random() * upto[-1])]
            changes = way(draft)
            if not changes:
                continue
            chains = _after(standing.chains, changes)
            trial_rate = rent(chains) if rent else 1.0
            limit_s = (standing.guide_s * rate - heat * log(1.0 - random.random())) / (trial_rate or 1.0)
            trial = pricer.stand(chains, limit_s, standing)
            if trial.guide_s == inf or trial.guide_s > limit_s:
                continue
            if way in CHANGE_DEVICES:
                draft.idle = inventory.idle(trial.chains)
            standing, rate = trial, trial_rate
            draft.chains = trial.chains
            yield standing, rate


def _after(chains: list[Chain], changes: Changes) -> list[Chain]:
    size = len(chains)
    after = [changes.get(position, chain) for position, chain in enumerate(chains)]
    after += [chain for position, chain in changes.items() if position >= size]
    return [chain for chain in after if chain is not None]
