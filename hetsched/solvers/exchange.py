"""Local search on a finished grid by the cost model's own price: exchange devices, pipelines and stages."""

from dataclasses import dataclass

import numpy as np

from hetsched.cost.base import CostModel
from hetsched.problem import Problem
from hetsched.solvers.base import Candidate
from hetsched.solvers.grid import Grid, Variant, on_grid

DEVICE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Exchange:
    """Descent by `tries` random exchanges."""

    tries: int = 40

    def improve(
        self,
        problem: Problem,
        model: CostModel,
        start: Grid,
        variant: Variant,
        classes: np.ndarray,
        rng: np.random.Generator,
    ) -> Candidate:
        """The best plan met from `start` on, on the grid's shape.

        start: [stage][replica] positions; classes: (devices,), equal where an exchange would change nothing.
        """
        stages, replicas = len(start), len(start[0])
        used = np.asarray(start, dtype=np.intp).reshape(-1)
        idle = np.setdiff1d(np.arange(len(problem.cluster.devices)), used)
        line = np.concatenate([used, idle])
        best = on_grid(problem, model, start, variant)
        for _ in range(self.tries):
            trial = self._neighbour(line, stages, replicas, classes, rng)
            if trial is None:
                continue
            candidate = on_grid(problem, model, trial[: len(used)].reshape(stages, replicas).tolist(), variant)
            if candidate.cost.rank(problem.objective) <= best.cost.rank(problem.objective):
                line, best = trial, candidate
        return best

    @staticmethod
    def _neighbour(
        line: np.ndarray, stages: int, replicas: int, classes: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray | None:
        trial = line.copy()
        grid = trial[: stages * replicas].reshape(stages, replicas)
        kind = rng.random()
        if kind < DEVICE_SHARE:
            a, b = int(rng.integers(grid.size)), int(rng.integers(len(trial)))
            if classes[trial[a]] == classes[trial[b]]:
                return None
            trial[[a, b]] = trial[[b, a]]
        elif kind < (1 + DEVICE_SHARE) / 2:
            a, b = (int(x) for x in rng.integers(replicas, size=2))
            grid[:, [a, b]] = grid[:, [b, a]]
        else:
            a, b = (int(x) for x in rng.integers(stages, size=2))
            grid[[a, b]] = grid[[b, a]]
        return trial
