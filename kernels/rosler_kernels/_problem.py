"""What an implementation is chosen for."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """What a choice depends on besides the device.

    Attributes:
      operation: name of the operation.
      kind: family of the sketch, or how the operands are held.
      dtype: name of the inputs' dtype.
      shape: (rows, contraction, columns) of the product; the rows may be symbolic, as while a
        function is exported with a batch of any size.
    """

    operation: str
    kind: str
    dtype: str
    shape: tuple[int, int, int]
