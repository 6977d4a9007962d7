"""Neural ordinary differential equations as a Keras layer."""

from keras_node import adjoints
from keras_node import callbacks
from keras_node import layers
from keras_node import solvers
from keras_node.ode_block import ODEBlock
from keras_node.solution import SolverError

__all__ = [
    "ODEBlock",
    "SolverError",
    "adjoints",
    "callbacks",
    "layers",
    "solvers",
]
__version__ = "0.1.0"
