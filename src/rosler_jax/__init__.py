"""Random sketch learning in JAX and Flax: compact networks, trained directly.

A large layer `y = x W + b` is held as thin factors or as a seeded core, never as the dense `W`. The
method is our reading of Li, Chen, Liu et al., "Random sketch learning for deep neural networks in
edge computing", Nat. Comput. Sci. 1, 221-228 (2021), doi 10.1038/s43588-021-00039-6.
"""

from __future__ import annotations

from rosler_jax._version import __version__

__all__ = ["__version__"]
