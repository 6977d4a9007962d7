"""The time elapsed since `t0`.

The float32 numbers are 128 s apart in Unix seconds of 2023, and 6 h apart in
Julian days. A solve counts from 0. `t0` is therefore subtracted in float64, and
only the difference is rounded.
"""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_node.integration.span import Span
from keras_node.times.given import Times
from keras_node.types import Tensor

_None = type(None)


class _Ends(NamedTuple):
    """Ends of an interval: arrays, or tensors; of all samples or of each."""

    t0: Any
    t1: Any
    length: Any

    def of_rows(self) -> "_Ends":
        """Aligns the ends with rows of times."""
        return _Ends(*(x[:, None] if len(x.shape) else x for x in self))


def _ends(span: Times, dtype: str) -> _Ends:
    """Splits a span: into tensors if a gradient may flow to it."""
    if not span.moves:
        return _known_ends(span)
    return _split(_floats(span.tensor, dtype))


def _known_ends(span: Times) -> _Ends:
    return _split(span.values)


def _split(x: Any) -> _Ends:
    t0, t1 = x[..., 0], x[..., 1]
    return _Ends(t0, t1, t1 - t0)


def _floats(x: Tensor, dtype: str) -> Tensor:
    """Casts to `dtype`, but not from float64."""
    exact = keras.backend.standardize_dtype(x.dtype) == "float64"
    return x if exact else ops.cast(x, dtype)


def start_of(span: Times, dtype: str) -> Any:
    """Returns `t0`, in the shape that it has."""
    return _ends(span, dtype).t0


def as_span(span: Times, dtype: str) -> Span:
    """Makes the tensors of a `Span`."""
    return Span(*(as_tensor(x, dtype) for x in _ends(span, dtype)))


def as_tensor(x: Any, dtype: str) -> Tensor:
    """Casts a tensor, or makes one of an array."""
    if ops.is_tensor(x):
        return ops.cast(x, dtype)
    # PyTorch would make float32 of a number.
    return ops.convert_to_tensor(np.asarray(x), dtype)


def check(
    name: str, value: Any, times: Times, span: Times, dtype: str, mask: Any
) -> None:
    """Checks that times lie within a span, as far as both are known.

    Args:
        name: The name of the argument.
        value: The value received.
        times: The times.
        span: The ends of the interval.
        dtype: The dtype in which the time elapsed will be counted.
        mask: Array or tensor, false where a time does not count; or `None`.
    """
    if span.values is None:
        return
    ends = _known_ends(span).of_rows()
    spacing = _spacing(np, times, ends)
    # Times are off by up to half their spacing. The default `rtol` allows a
    # state an error of 1e-3.
    same = (spacing > 1e-3 * abs(ends.length)) & (ends.length != 0)
    if np.any(same):
        raise ValueError(
            f"`{name}` must be of a precision that tells times within `t_span`,"
            f" here {_first(span, same)}, apart; theirs are "
            f"{np.max(spacing):.2g} apart or the same. Give Python floats or "
            "float64, or shift time so that `t_span` starts at 0. "
            f"Received: {name}={value!r}"
        )
    if times.values is None or not isinstance(mask, (np.ndarray, _None)):
        return
    outside = ~_inside(np, times.values, times, ends, dtype)
    if mask is not None and times.values.ndim > 1:
        outside = outside & mask
    if np.any(outside):
        t = np.broadcast_to(times.values, outside.shape)[outside][0]
        raise ValueError(
            f"`{name}` must be times within `t_span`, here "
            f"{_first(span, outside)}. Received: {name}={value!r}, in it {t}"
        )


def _first(span: Times, wrong: np.ndarray) -> tuple:
    """Finds the ends of the first row in which something is wrong."""
    row: Any = ...
    if span.values.ndim > 1:
        row = np.argmax(np.any(wrong, axis=1))
    return tuple(span.values[row].tolist())


def at_ends(times: Times, span: Times, dtype: str) -> np.ndarray:
    """Moves known times that miss an end by rounding onto that end."""
    ends = _known_ends(span).of_rows()
    values, slack = times.values, _slack(np, times, ends, dtype)
    for end in (ends.t0, ends.t1):
        values = np.where(abs(values - end) <= slack, end, values)
    return values


def _spacing(xp: Any, times: Times, ends: _Ends) -> Any:
    """Computes the spacing of the numbers of the dtype within the interval."""
    first, last = abs(ends.t0), abs(ends.t1)
    return times.eps * xp.where(first < last, last, first)


def _slack(xp: Any, times: Times, ends: _Ends, dtype: str) -> Any:
    """Bounds the rounding error of the times and of the time elapsed."""
    spacing = _spacing(xp, times, ends)
    since = float(np.finfo(dtype).eps) * abs(ends.length)
    return 4 * xp.where(spacing < since, since, spacing)


def _inside(xp: Any, t: Any, times: Times, ends: _Ends, dtype: str) -> Any:
    """Tells whether times lie in the interval, but for rounding."""
    backwards = ends.length < 0
    slack = _slack(xp, times, ends, dtype)
    low = xp.where(backwards, ends.t1, ends.t0) - slack
    high = xp.where(backwards, ends.t0, ends.t1) + slack
    return xp.logical_and(t >= low, t <= high)  # not for NaN


def extent_of(span: Times, dtype: str, per_sample: bool) -> Any:
    """Chooses the extent of a `Course`; 1 where the interval is empty.

    Returns:
        An array if the ends are known and no gradient flows to them, else a
        tensor.
    """
    length = _ends(span, dtype).length
    xp: Any = ops if span.moves else np
    extent = abs(ops.stop_gradient(length) if span.moves else length)
    if len(extent.shape) and not per_sample:
        extent = xp.max(extent, initial=0.0)
    return xp.where(extent > 0, extent, xp.ones_like(extent))


class Elapsed(NamedTuple):
    """Times elapsed since `t0`, and whether they lie in the interval."""

    s: Any
    inside: Any


def elapsed(
    times: Times, span: Times, extent: Any, dtype: str, mask: Any = None
) -> Elapsed:
    """Maps times to `s`, which runs from 0 at `t0` to `extent` at `t1`.

    A time that misses an end of the interval by rounding counts as that end.
    One outside, too, and `inside` is false there. Times that do not count are
    mapped to 0.

    Args:
        times: The times, `(T,)` or `(batch, T)`.
        span: The ends of the interval.
        extent: See `Course`: an array or a tensor.
        dtype: The dtype in which `s` is counted.
        mask: Array or tensor `(batch, T)`, false where a time does not count.

    Returns:
        Arrays if all is known and no gradient flows, else tensors.
    """
    ends = _ends(span, dtype).of_rows()
    known = not (
        times.moves or span.moves or not isinstance(mask, (np.ndarray, _None))
    )
    xp: Any = np if known else ops
    t = times.values
    if not known:
        t, ends, extent = _tensors(times, ends, extent, dtype)
    if len(extent.shape):
        extent = extent[:, None]
    if mask is not None and len(t.shape) > 1:
        t = xp.where(mask, t, ends.t0)
    since = t - ends.t0
    rate = xp.where(ends.length == 0, 1.0, ends.length / extent)
    s = since / rate
    slack = _slack(xp, times, ends, dtype)
    end = xp.zeros_like(s) + extent
    value = s if known else ops.stop_gradient(s)
    value = xp.where(abs(since - ends.length) <= slack, end, value)
    value = xp.where(abs(since) <= slack, xp.zeros_like(s), value)
    inside = _inside(xp, t, times, ends, dtype)
    value = xp.where(xp.logical_and(inside, value < end), value, end)
    value = xp.where(value > 0, value, xp.zeros_like(s))
    if known:
        return Elapsed(value, inside)
    # Times that were moved have the gradient of those that were not.
    s = xp.where(inside, s, end)
    return Elapsed(ops.cast(value + (s - ops.stop_gradient(s)), dtype), inside)


def aligned(times: Times, span: Times, dtype: str) -> tuple[Any, Any]:
    """Returns times and `t1`, of ranks that go together.

    They are arrays if both are known and no gradient flows, else tensors.
    """
    ends = _ends(span, dtype).of_rows()
    if not (times.moves or span.moves):
        return times.values, ends.t1
    t, ends, _ = _tensors(times, ends, 1.0, dtype)
    return t, ends.t1


def _tensors(times: Times, ends: _Ends, extent: Any, dtype: str) -> tuple:
    """Makes tensors of one dtype, the widest of those that are given."""
    given = [x for x in (times.tensor, ends.t0) if ops.is_tensor(x)]
    dtypes = {keras.backend.standardize_dtype(x.dtype) for x in given}
    dtype = "float64" if "float64" in dtypes else dtype
    t = times.values if times.tensor is None else times.tensor
    ends = _Ends(*(as_tensor(x, dtype) for x in ends))
    return as_tensor(t, dtype), ends, as_tensor(extent, dtype)
