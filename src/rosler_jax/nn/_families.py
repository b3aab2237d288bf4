"""The families of a layer's two sketches, from the one word that names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import rosler_kernels as rk

if TYPE_CHECKING:
    from jaxtyping import Array


class Kind(NamedTuple):
    """A family, and the size of the images that it is for.

    Attributes:
      name: a key of ``rosler_kernels.FAMILIES``.
      size: height and width; None for vectors.
    """

    name: str
    size: tuple[int, int] | None = None

    @property
    def nested(self) -> bool:
        """Whether a sketch may have fewer live columns."""
        return rk.family(self.name).nested

    def make(self, seed: Array | int, rows: int, cols: int) -> rk.Sketch:
        """The sketch of that seed."""
        size: dict[str, Any] = dict(zip(("height", "width"), self.size or (), strict=False))
        return rk.make(self.name, seed, rows, cols, **size)


def kinds(sketch: str, m: int) -> tuple[Kind, Kind]:
    """The families of the sketches of a layer's inputs and of its outputs.

    One word names both; two, as in ``"dct:28x28/srht"``, one each. A size, of images whose channels
    come last, belongs to the side it is named for: outputs that have no word of their own are
    vectors. Where outputs have one, it serves inputs as well that are no such images: so a word
    serves all layers of a model.

    Args:
      sketch: the word.
      m: inputs of the layer.

    Raises:
      ValueError: for an unknown family or size, a family that a layer cannot have, or inputs that
        the one family does not fit.

    Example:
      >>> kinds("dct:28x28", 784)
      (Kind(name='dct', size=(28, 28)), Kind(name='dct', size=None))
      >>> [kind.name for m in (784, 300) for kind in kinds("dct:28x28/srht", m)]
      ['dct', 'srht', 'srht', 'srht']
    """
    first, slash, second = sketch.partition("/")
    inputs = kind_of(first)
    fits = inputs.size is None or m % (inputs.size[0] * inputs.size[1]) == 0
    if slash:
        outputs = kind_of(second)
        return (inputs if fits else Kind(outputs.name)), outputs
    if not fits:
        raise ValueError(
            f"sketch {sketch!r} of a layer with {m} inputs, which are no such images; pass a "
            f"second family, for outputs and for such layers, as {first}/srht"
        )
    return inputs, Kind(inputs.name)


def kind_of(word: str) -> Kind:
    """One family, with the size of its images or without: ``"srht"``, ``"pool:28x28"``.

    Raises:
      ValueError: for an unknown family or size, or a family that a layer cannot have.

    Example:
      >>> kind_of("pool:28x28")
      Kind(name='pool', size=(28, 28))
    """
    name, colon, text = word.partition(":")
    if rk.family(name).weighted:
        raise ValueError(f"sketch {name!r} samples the rows of a given matrix; pass another")
    if not colon:
        return Kind(name)
    height, _, width = text.partition("x")
    if rk.family(name).separable is None or not (height.isdecimal() and width.isdecimal()):
        sized = "/".join(kind for kind, family in rk.FAMILIES.items() if family.separable)
        raise ValueError(f"sketch {word!r}; expected a family, or {sized}:HEIGHTxWIDTH")
    return Kind(name, (int(height), int(width)))
