"""The C target's training: forward, backward, update, and weights that survive a power failure.

from rosler_jax.export.c.train import Training, write_training
source = write_training(graph, Training(loss="cross_entropy", batch=16))
source.header, source.source  # rosler_train.h, rosler_train.c

The files stand alone, or go beside ``rosler_model.*`` into one image.
"""

from rosler_jax.export.c.train.header import HEADER, SOURCE
from rosler_jax.export.c.train.options import Training
from rosler_jax.export.c.train.parallel import Parallel, parallel_graph
from rosler_jax.export.c.train.parameters import Field, unpack
from rosler_jax.export.c.train.source import TrainSource
from rosler_jax.export.c.train.write import write_training

__all__ = [
    "HEADER",
    "SOURCE",
    "Field",
    "Parallel",
    "TrainSource",
    "Training",
    "parallel_graph",
    "unpack",
    "write_training",
]
