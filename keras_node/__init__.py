"""Neural ordinary differential equations as a Keras layer."""

from keras_node import adjoints
from keras_node import callbacks
from keras_node import layers
from keras_node import solvers
from keras_node.flow import ContinuousFlow
from keras_node.initial_value import solve_ivp
from keras_node.integration.solution import Solution
from keras_node.integration.solution import SolverError
from keras_node.layers.ode_block import ODEBlock

__all__ = [
    "ContinuousFlow",
    "ODEBlock",
    "Solution",
    "SolverError",
    "adjoints",
    "callbacks",
    "layers",
    "solve_ivp",
    "solvers",
]
__version__ = "0.1.0"
