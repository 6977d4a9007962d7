"""Configuration objects: the base of solvers and adjoints."""

from typing import Any
from typing import ClassVar
from typing import TypeVar

import keras

T = TypeVar("T", bound="Config")

register = keras.saving.register_keras_serializable(package="keras_node")


class Config:
    """Value object, saved and compared by the arguments of its `__init__`.

    Two objects of one class with equal arguments are equal.
    """

    _config_keys: ClassVar[tuple[str, ...]] = ()

    def get_config(self) -> dict[str, Any]:
        return {
            key: keras.saving.serialize_keras_object(getattr(self, key))
            for key in self._config_keys
        }

    @classmethod
    def from_config(cls: type[T], config: dict[str, Any]) -> T:
        return cls(**config)

    def replace(self: T, **changes: Any) -> T:
        """Copies the object, with other values for some arguments."""
        arguments = {key: getattr(self, key) for key in self._config_keys}
        return type(self)(**{**arguments, **changes})

    def _key(self) -> tuple:
        return type(self), *(getattr(self, key) for key in self._config_keys)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={getattr(self, k)!r}" for k in self._config_keys)
        return f"{type(self).__name__}({args})"
