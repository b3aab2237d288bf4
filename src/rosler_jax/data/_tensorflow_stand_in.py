"""The few functions of TensorFlow that tensorflow-datasets' own image builders call.

Its builders prepare and read data without TensorFlow, except that its extractor opens files with
``tf.io.gfile``, its ``Image`` feature encodes arrays with ``tf.image``, and the builders of MNIST,
CIFAR-10 and cats_vs_dogs open and decode files with both.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np


def _decode_image(content: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def _encode_jpeg(image: np.ndarray) -> Any:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)  # the quality that TensorFlow writes
    return SimpleNamespace(numpy=buffer.getvalue)


def _encode_image(encoder: Any, image: np.ndarray) -> bytes:
    """What the ``Image`` feature stores of an array: the same pixels, PNG unless it says JPEG."""
    from PIL import Image

    wanted = encoder.shape
    fits = image.ndim == 3 and all(n in (None, m) for n, m in zip(wanted, image.shape, strict=True))
    if image.dtype != np.uint8 or not fits:
        raise ValueError(f"image is {image.dtype} of shape {image.shape}; expected uint8, {wanted}")
    buffer = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(buffer, encoder.encoding_format.upper(), quality=95)
    return buffer.getvalue()


def _as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


STAND_IN = SimpleNamespace(
    compat=SimpleNamespace(as_text=_as_text, as_bytes=_as_bytes),
    image=SimpleNamespace(decode_image=_decode_image),
    io=SimpleNamespace(gfile=SimpleNamespace(GFile=open), encode_jpeg=_encode_jpeg),
)


@contextlib.contextmanager
def without_tensorflow(builder: Any) -> Iterator[None]:
    """Stands in where a builder's preparation would call TensorFlow, if that is not installed.

    Args:
      builder: the builder about to prepare its data; all is put back at the end.
    """
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    with contextlib.ExitStack() as stack:
        for holder, attribute, value in _replacements(builder):
            stack.callback(setattr, holder, attribute, getattr(holder, attribute))
            setattr(holder, attribute, value)
        yield


def _replacements(builder: Any) -> list[tuple[Any, str, Any]]:
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.features import image_feature

    modules = {base.__module__: sys.modules[base.__module__] for base in type(builder).__mro__}
    return [
        (image_feature._ImageEncoder, "_encode_image", _encode_image),
        (extractor, "tf", STAND_IN),
        *(
            (module, "tf", STAND_IN)
            for name, module in modules.items()
            if name.startswith("tensorflow_datasets.image_classification.")
            and hasattr(module, "tf")
        ),
    ]
