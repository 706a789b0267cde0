"""Learning-rate schedules: a curve over the steps, times a warm-up.

To add one, write a function from the config to a `Schedule`, and enter it in the table SCHEDULES
(or WARMUPS) at the end of this file and in `CHOICES` of resnet_jax/config/fields.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


class Schedule(NamedTuple):
    """A learning rate, or a factor of it, which may depend on the progress of training.

    Attributes:
      init: () -> state, or None if it has none.
      update: (state, step, watched) -> (state, rate). `step` is int32 []; `watched` is float32 [],
        the number of this step's batch that the task lets schedules listen to (the top-1 error in
        percent for classification); `rate` is float32 [] and holds for this step.
    """

    init: Callable[[], Any]
    update: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]


def create(config: ConfigDict) -> Schedule:
    """Creates the schedule of `config.schedule`: the curve `name` times the `warmup`."""
    names = config.schedule
    parts = {names.name: SCHEDULES[names.name](config), 'warmup': WARMUPS[names.warmup](config)}

    def init():
        states = {name: part.init() for name, part in parts.items()}
        return {name: state for name, state in states.items() if state is not None}

    def update(state, step, watched):
        rate, new_state = jnp.float32(1), {}
        for name, part in parts.items():
            part_state, factor = part.update(state.get(name), step, watched)
            if name in state:
                new_state[name] = part_state
            rate *= factor
        return new_state, rate

    return Schedule(init, update)


def of_step(curve: Callable[[jax.Array], Any]) -> Schedule:
    """Makes a schedule from a function of the step."""
    return Schedule(lambda: None,
                    lambda state, step, watched: (None, jnp.asarray(curve(step), jnp.float32)))


def constant(config: ConfigDict) -> Schedule:
    """Keeps the learning rate constant."""
    return of_step(optax.constant_schedule(config.schedule.learning_rate))


def steps(config: ConfigDict) -> Schedule:
    """Multiplies the learning rate by `factor` at each of the `boundaries` (section 4.2)."""
    s = config.schedule
    return of_step(optax.piecewise_constant_schedule(
        s.learning_rate, {int(step): s.factor for step in s.boundaries}))


def cosine(config: ConfigDict) -> Schedule:
    """Lowers the learning rate to 0 along half a cosine, which begins after a linear warm-up.

    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """
    s = config.schedule
    begin = s.warmup_steps if s.warmup == 'linear' else 0
    curve = optax.cosine_decay_schedule(s.learning_rate, config.num_steps - begin)
    return of_step(lambda step: curve(jnp.maximum(step - begin, 0)))


def plateau(config: ConfigDict) -> Schedule:
    """Lowers the learning rate when the watched number stops falling (paper, section 3.4).

    The number is averaged over windows of `plateau_window` steps. If none of `plateau_patience`
    windows improves on the best one by `plateau_threshold`, relative to it, the learning rate is
    multiplied by `factor`. The product of these factors never falls below `plateau_min_factor`.
    """
    s = config.schedule
    rule = optax.contrib.reduce_on_plateau(
        s.factor, patience=s.plateau_patience, rtol=s.plateau_threshold,
        accumulation_size=s.plateau_window, min_scale=s.plateau_min_factor)

    def update(state, step, watched):
        _, state = rule.update(jnp.ones(()), state, value=watched)
        return state, s.learning_rate * state.scale

    return Schedule(lambda: rule.init(jnp.ones(())), update)


SCHEDULES = {'steps': steps, 'plateau': plateau, 'cosine': cosine, 'constant': constant}


def no_warmup(config: ConfigDict) -> Schedule:
    """Uses no warm-up: a factor of 1."""
    del config
    return of_step(optax.constant_schedule(1.0))


def linear_warmup(config: ConfigDict) -> Schedule:
    """Increases a factor to 1 in `warmup_steps` steps (Goyal et al., 2017, section 2.2).

    The learning rate is `warmup_from` a step before the first.
    """
    s = config.schedule
    length, begin = max(s.warmup_steps, 1), s.warmup_from / s.learning_rate
    return of_step(lambda step: begin + (1 - begin) * jnp.minimum((step + 1) / length, 1))


class ErrorWarmup(NamedTuple):
    warm: jax.Array  # bool: the watched number has been low enough
    total: jax.Array  # float32: its sum in this window
    # int32: steps in this window; a tuple has a method of this name
    count: jax.Array  # type: ignore[assignment]


def error_warmup(config: ConfigDict) -> Schedule:
    """Starts with `warmup_learning_rate`, until the error falls (paper, section 4.2, ResNet-110).

    The warm-up ends for good when the watched number, averaged over a window of `warmup_window`
    steps, is below `warmup_error` for the first time.
    """
    s = config.schedule
    window = s.warmup_window

    def init():
        return ErrorWarmup(jnp.zeros((), bool), jnp.zeros(()), jnp.zeros((), jnp.int32))

    def update(state, step, watched):
        total, count = state.total + watched, state.count + 1
        full = count == window
        warm = state.warm | (full & (total / window < s.warmup_error))
        state = ErrorWarmup(warm, jnp.where(full, 0.0, total), jnp.where(full, 0, count))
        return state, jnp.where(warm, 1.0, s.warmup_learning_rate / s.learning_rate)

    return Schedule(init, update)


WARMUPS = {'none': no_warmup, 'linear': linear_warmup, 'error': error_warmup}
