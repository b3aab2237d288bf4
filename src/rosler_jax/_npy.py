"""What reading a damaged ``.npy`` or ``.npz`` file raises."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib

# Damaged offsets, sizes and methods lead zipfile to many of these; a header is tokenised as Python.
DAMAGE = (
    ValueError,
    TypeError,
    EOFError,
    OSError,
    RuntimeError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
)
"""All that NumPy raises for a file that is none of its own, or damaged."""
