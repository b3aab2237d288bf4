"""What a user writes, in types that both checkers know."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import rosler_jax
import rosler_kernels as rk
from rosler_jax import Graph, MatrixView, Rule, SketchConv, SketchLinear
from rosler_jax.config import TrainConfig
from rosler_jax.export import export
from rosler_jax.federated import FederatedConfig, federated_fit
from rosler_jax.sweep import sweep


class Net(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = SketchConv(1, 8, (3, 3), rank=2, rngs=rngs)
        self.head = SketchLinear(8, 4, rank=2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        y: Array = nnx.relu(self.first(x)).mean((1, 2))
        return self.head(y)


plain = nnx.Linear(16, 12, rngs=nnx.Rngs(0))
views = rosler_jax.matrix_views(plain)
tx: optax.GradientTransformation = rosler_jax.restrict_rank(
    optax.adamw(1e-2), rank=8, every=10, view=views
)
thin, report = rosler_jax.sketchify(plain, [Rule("*", rank=0.5)], rngs=nnx.Rngs(1))
model = Net(rngs=nnx.Rngs(0))
print(str(report), MatrixView(inputs=(0,), outputs=(1,)))
final = rosler_jax.finish(model)
graph: Graph = rosler_jax.trace(final, jnp.ones((1, 8, 8, 1)))
rosler_jax.save("model.rosler", graph, bits=8)
loaded = rosler_jax.load("model.rosler")
print(loaded(jnp.ones((1, 8, 8, 1))).shape)
adam: optax.GradientTransformation = rosler_jax.sketched_adamw(1e-3, rank=8)
staged: optax.GradientTransformation = rosler_jax.ares_bp(optax.adamw(1e-3), switch_step=5)
delta = rosler_jax.seeded_delta(plain, k=4, seed=0)
size: int = rosler_jax.save_delta("task.delta", delta, delta.start(), bits=8)
y: Array = rk.project(jnp.ones((2, 100)), rk.srht(0, 100, 4))
done = export("model.rosler", "edge", dtype="float32", board=None)
print(done.text, rosler_jax.size_report(final, inputs=(jnp.ones((1, 8, 8, 1)),)))
config = TrainConfig(hidden=(8,), method="chain", rank=2, batch_size=8)
rng = np.random.default_rng(0)
x, labels = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60, dtype=np.int32) % 3
summary = sweep({"rank": {"grid": [1, 2]}}, (x, labels), config, out="runs/s")
print(len(summary.rows), federated_fit(config, FederatedConfig(clients=2), (x, labels)).history)
key: Array = jax.random.key(0)
