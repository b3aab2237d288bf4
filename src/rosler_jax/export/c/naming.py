"""The prefix of all names in exported C: several models in one program each have their own."""

from __future__ import annotations

import re

from rosler_jax.export._errors import ExportError

DEFAULT = "rosler"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,47}")


def check_name(name: str) -> str:
    """A prefix as it is, if C takes it.

    Raises:
      ExportError: if it is no identifier, or would be another model's training code.
    """
    if not (isinstance(name, str) and _NAME.fullmatch(name)) or name.lower().endswith("_train"):
        raise ExportError(
            f"name {name!r}; expected a prefix for names in C: a letter, then letters, digits and "
            "underscores, at most 48, not ending in _train, as gesture"
        )
    return name


def renamed(text: str, name: str) -> str:
    """C code, or a file's name, with another prefix.

    Example:
      >>> renamed("int rosler_argmax(void); /* below ROSLER_OUTPUT_SIZE */", "gesture")
      'int gesture_argmax(void); /* below GESTURE_OUTPUT_SIZE */'
    """
    text = re.sub(rf"\b{DEFAULT}_(?=\w)", f"{name}_", text)
    return re.sub(rf"\b{DEFAULT.upper()}_(?=\w)", f"{name.upper()}_", text)
