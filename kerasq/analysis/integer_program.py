"""`IntegerProgram`: one candidate for each layer, the best under a limit, exactly."""

import dataclasses

import numpy as np

from kerasq.support import optional

# Weight of the bits of activations in the objective: among equally good allocations the one with
# the narrowest activations is taken.
_TIE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class IntegerProgram:
    """A choice of one candidate for each layer, noise and cost being sums over layers.

    With x[l, c] = 1 where layer l gets candidate c, else 0, and sum_c x[l, c] = 1::

        minimize sum x * noise  subject to  sum x * cost <= limit,   or
        minimize sum x * cost   subject to  sum x * noise <= limit,

    solved by HiGHS (`scipy.optimize.milp`). All arrays have the shape `(layers, candidates)`; a
    choice is the index of each layer's candidate, `(layers,)`.

    Attributes:
        noise: what a candidate adds to the noise.
        cost: what a candidate adds to the cost.
        memory: its share of the bits of all activations, which decides between equals.
        allowed: whether a layer may have it.
    """

    noise: np.ndarray
    cost: np.ndarray
    memory: np.ndarray
    allowed: np.ndarray

    def least_noise(self, cost: float = np.inf) -> np.ndarray | None:
        """The choice with the least noise within a cost; None where there is none."""
        return self._solve(self.noise, self.cost, cost)

    def least_cost(self, noise: float) -> np.ndarray | None:
        """The choice with the least cost within a noise; None where there is none."""
        return self._solve(self.cost, self.noise, noise)

    def quietest(self) -> np.ndarray:
        """The choice with the least noise, among equals the dearest and widest."""
        # Where a few samples show no noise of single layers, there may be some of all together.
        order = np.lexsort((self.memory, self.cost, -self.noise, self.allowed), axis=-1)
        return order[:, -1]

    def cheapest(self) -> float:
        """The least cost that there is."""
        return float(np.where(self.allowed, self.cost, np.inf).min(1).sum())

    def _solve(self, objective: np.ndarray, rows: np.ndarray, limit: float) -> np.ndarray | None:
        """The choice with the least objective under `sum x * rows <= limit`."""
        optimize = optional.load("scipy.optimize", "allocate")
        layers, candidates = objective.shape
        one_each = np.kron(np.eye(layers), np.ones(candidates))
        # HiGHS's tolerances are absolute: noise of 1e-9 would be 0 to it.
        scale = max(float(np.abs(objective).max()), 1e-300)
        if 0.0 < limit < 1.0:
            rows, limit = rows / limit, 1.0
        result = optimize.milp(
            objective.ravel() / scale + _TIE * self.memory.ravel(),
            constraints=[
                optimize.LinearConstraint(one_each, 1, 1),
                optimize.LinearConstraint(rows.ravel()[None], -np.inf, limit),
            ],
            integrality=np.ones(layers * candidates),
            bounds=optimize.Bounds(0, self.allowed.ravel().astype(float)),
            # HiGHS else stops within 1e-4 of the best, which is more than decides among equals.
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return None
        # Integers come back as floats that are only nearly whole.
        return result.x.reshape(layers, candidates).argmax(1)
