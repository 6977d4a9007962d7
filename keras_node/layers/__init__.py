"""Layers for neural ODEs that Keras lacks."""

from keras_node.layers.augment import Augment
from keras_node.layers.cde import CDEBlock
from keras_node.layers.gru_ode import GRUODE
from keras_node.layers.hamiltonian import Hamiltonian
from keras_node.layers.interpolate import Interpolate
from keras_node.layers.ode_rnn import ODERNN
from keras_node.layers.time import ConcatSquash
from keras_node.layers.time import ConcatTime
from keras_node.series.fill import fill_missing

__all__ = [
    "GRUODE",
    "ODERNN",
    "Augment",
    "CDEBlock",
    "ConcatSquash",
    "ConcatTime",
    "Hamiltonian",
    "Interpolate",
    "fill_missing",
]
