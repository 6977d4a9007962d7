"""Layers for neural ODEs that Keras lacks."""

from keras_node.layers.augment import Augment
from keras_node.layers.time import ConcatSquash
from keras_node.layers.time import ConcatTime

__all__ = ["Augment", "ConcatSquash", "ConcatTime"]
