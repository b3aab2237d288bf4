"""Methods of ``scripts/reproduce training-cost`` that are not the library's own rows."""

from __future__ import annotations

from typing import Any

from rosler_jax.fit import make_schedule
from rosler_jax.methods import METHODS, Method, Setting
from rosler_jax.optim import sketched_adamw


def _sketched_adamw(inner: Any, setting: Setting) -> Any:
    """AdamW of dense weights with its moments in sketch space, in the place of AdamW."""
    del inner
    config, hyper = setting.config, setting.hyper
    assert config.epoch_examples is not None
    updates = config.epochs * (config.epoch_examples // config.batch_size)
    rate = make_schedule(config, hyper.learning_rate, updates)
    return sketched_adamw(
        rate, int(config.rank), weight_decay=hyper.weight_decay, view=setting.learner.views
    )


sketched_adam = Method(rate=1e-3, optimizer=_sketched_adamw, masks=False)

# Its sketches are drawn by the seed of the first member of a population: members differ in all
# else, and share a program.
restrict_rank = METHODS["restrict-rank"]._replace(seeds=False)
