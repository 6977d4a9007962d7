"""A scope in which a layer reads and writes what it is handed."""

import keras

from keras_node.types import Tensor


class RecordingScope(keras.StatelessScope):
    """Scope that notes the variables read that have no value in `mapping`.

    What a layer writes stays in the scope, and is dropped with it.
    """

    def __init__(self, mapping: list, strangers: dict):
        super().__init__(mapping, collect_losses=True)
        # As they are: Keras may have cast them.
        self.state_mapping.update({id(k): v for k, v in mapping})
        self._start = dict(self.state_mapping)
        self._strangers = strangers

    def get_current_value(self, variable: keras.Variable) -> Tensor:
        value = super().get_current_value(variable)
        if value is None:
            self._strangers[id(variable)] = variable
            if self.original_scope:  # Keras's own scope, around the block
                value = self.original_scope.get_current_value(variable)
        return value

    @property
    def moves(self) -> bool:
        """Flag: a variable was written, or a loss was added."""
        return bool(self.losses) or any(
            value is not self._start.get(key)
            for key, value in self.state_mapping.items()
        )
