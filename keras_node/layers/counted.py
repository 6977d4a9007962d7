"""Base of the layers whose solves `callbacks.SolverStats` counts."""

from typing import Any

import keras


class Counted(keras.layers.Layer):
    """Layer that hands the `Solution` of each call to its `stats`, if any.

    `callbacks.SolverStats` puts its counters there while it is in use.
    """

    stats: Any = None

    @property
    def variables(self) -> list:
        # Variables and not metrics: on JAX a layer cannot update a metric.
        counters = [] if self.stats is None else self.stats.variables
        return [*super().variables, *counters]
