"""The check of a config: every field is set and in its range, and the fields go together."""

import math
import re
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config.fields import (
    CHOICES,
    LEAST,
    MOST,
    MOST_PIXELS,
    OPTIONAL_FIELDS,
    POSITIVE,
    SHARES,
)
from resnet_jax.config.stored import leaves
from resnet_jax.errors import UserError


def check(config: ConfigDict, data_shards: int) -> None:
    """Checks that the fields are set, in range and consistent.

    Args:
      config: see `default`.
      data_shards: devices along the batch.

    Raises:
      UserError: a field is not set, out of range, or inconsistent with another one.
    """
    fields = leaves(config)
    check_ranges(fields)
    parts = config.optimizer.accumulation_steps
    for name, divisor in (('batch_size', data_shards * parts), ('eval.batch_size', data_shards)):
        if fields[name] % divisor:
            what = 'the number of data-parallel devices'
            if divisor != data_shards:
                what += f' ({data_shards}) times optimizer.accumulation_steps ({parts})'
            raise UserError(
                f'{name}={fields[name]} must be a multiple of {divisor}, {what}.')
    size, part = config.model.virtual_batch_size, config.batch_size // parts
    if size is not None and part > size and part % size:
        raise UserError(
            f'model.virtual_batch_size={size} must divide the {part} images that are normalised '
            'together, batch_size over optimizer.accumulation_steps.')
    _check_schedule(config)
    if config.loss.target_threshold is not None and config.loss.name != 'binary':
        raise UserError("loss.target_threshold needs loss.name 'binary'.")
    if config.init.checkpoint and config.init.resume_from:
        raise UserError('init.checkpoint and init.resume_from cannot both be set: the first starts '
                        'at step 0 with the weights alone, the second at the step of the '
                        'checkpoint.')


def _check_schedule(config: ConfigDict) -> None:
    schedule = config.schedule
    if schedule.name == 'plateau' and schedule.plateau_window is None:
        raise UserError('schedule.plateau_window must be set to a number of steps over which the '
                        'training error is averaged.')
    if schedule.name == 'cosine' and schedule.warmup == 'linear' and (
            schedule.warmup_steps >= config.num_steps):
        raise UserError(f'schedule.warmup_steps ({schedule.warmup_steps}) must be below num_steps '
                        f'({config.num_steps}).')


def check_ranges(fields: dict[str, Any]) -> None:
    """Checks that fields are set and in range; the ranges are in `resnet_jax.config.fields`.

    Args:
      fields: values by path, see `leaves`; all fields or some.

    Raises:
      UserError: a field is not set or out of range.
    """
    for name, value in fields.items():
        if value is None:
            if name not in OPTIONAL_FIELDS:
                raise UserError(f'{name} is not set; pass --config.{name}=VALUE.')
        elif problem := _problem(name, value):
            raise UserError(f'{name} must be {problem}, got {value!r}.')


def _problem(name: str, value: Any) -> str | None:
    """What a field must be, if its value is something else."""
    if not all(map(math.isfinite, floats(value))):
        return 'finite'
    if name in CHOICES and value not in CHOICES[name]:
        return 'one of ' + ', '.join(CHOICES[name])
    if name in LEAST and value < LEAST[name]:
        return f'at least {LEAST[name]}'
    if name in MOST and value > MOST[name]:
        return f'at most {MOST[name]}'
    if name in SHARES and not 0 <= value < 1:
        return 'at least 0 and below 1'
    if name in POSITIVE and value <= 0:
        return 'positive'
    if name in FORMS and not FORMS[name][0](value):
        return FORMS[name][1]
    return None


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, (list, tuple)) else (value, value)
    return len(sides) == 2 and all(
        isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= MOST_PIXELS
        for side in sides)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and _is_size(value)


def _are_sides(value: Any) -> bool:
    return all(isinstance(side, int) and 1 <= side <= MOST_PIXELS for side in value)


def _are_areas(value: Any) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1]


def _are_steps(value: Any) -> bool:
    return all(isinstance(step, int) for step in value) and list(value) == sorted(set(value))


def _are_patterns(value: Any) -> bool:
    try:
        return all(re.compile(pattern) for pattern in value)
    except (TypeError, re.error):
        return False


def _are_rules(value: Any) -> bool:
    return all(isinstance(rule, (list, tuple)) and len(rule) == 2 and _are_patterns(rule[:1])
               and isinstance(rule[1], (list, tuple)) for rule in value)


def _are_arguments(value: Any) -> bool:
    return all(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
               and pair[0].isidentifier() for pair in value)


# Fields of other forms: the check, and the form in words.
FORMS = {
    'mesh.data': (lambda value: value == -1 or value >= 1, '-1 or at least 1'),
    'mesh.rules': (_are_rules, 'pairs such as ("head/kernel", (None, "model"))'),
    'data.image_size': (_is_size, 'at least 1 and at most '
                        f"{MOST_PIXELS}, one number or a pair '(height, width)'"),
    'optimizer.arguments': (_are_arguments,
                            'pairs of a name and a value, such as (("b1", 0.95), ("eps", 1e-6))'),
    'data.eval_size': (_is_size, 'at least 1 and at most '
                       f"{MOST_PIXELS}, one number or a pair '(height, width)'"),
    'data.eval_crop_share': (lambda value: 0 < value <= 1, 'above 0 and at most 1'),
    'schedule.boundaries': (_are_steps, 'numbers of steps in ascending order'),
    'data.window': (_is_size, 'at least 1 and at most '
                    f"{MOST_PIXELS}, one number or a pair '(height, width)'"),
    'data.canvases': (lambda value: all(map(_is_pair, value)),
                      "sizes (height, width), such as '((1344, 800),)'"),
    'data.short_sides': (_are_sides, f'lengths in pixels from 1 to {MOST_PIXELS}'),
    'eval.object_areas': (_are_areas, 'two areas in square pixels, the smaller one first'),
    'init.freeze': (_are_patterns, 'regular expressions'),
}


def floats(value: Any) -> Iterator[float]:
    """All floats in the value of a field, including those in nested sequences."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from floats(part)
    elif isinstance(value, float):
        yield value
