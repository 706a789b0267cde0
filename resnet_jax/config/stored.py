"""Configs as they are stored beside checkpoints, and their comparison with that of a new run."""

import json
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config.fields import (
    BEFORE,
    EXECUTION_FIELDS,
    LOCAL_FIELDS,
    MEANINGLESS_WITHOUT,
    NOW_ARGUMENTS,
    REMOVED,
    RENAMED,
    default,
)


def leaves(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
    """Lists all fields by path, such as 'model.depth', with their values as JSON holds them."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            fields.update(leaves(value, f'{prefix}{name}.'))
        else:
            fields[prefix + name] = json.loads(json.dumps(value))
    for name in ('data.image_size', 'data.eval_size'):
        size = fields.get(name)
        if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
            fields[name] = size[0]  # the same square
    return fields


def given(config: ConfigDict) -> dict[str, Any]:
    """The `leaves` that are not None."""
    return {name: value for name, value in leaves(config).items() if value is not None}


def common_fields(config: ConfigDict) -> dict[str, str]:
    """JSON values, by path, of the fields that must agree in all processes of a job."""
    return {name: json.dumps(value) for name, value in leaves(config).items()
            if name not in LOCAL_FIELDS}


def upgrade(stored: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translates the fields of a stored config, possibly of an older version, to those of today.

    Args:
      stored: `leaves` of a config whose fields may differ from today's.

    Returns:
      All fields of today, and the names of unknown stored fields. A missing field gets the value
      that reproduces the behaviour from before the field existed.
    """
    known = leaves(default())
    renamed = {RENAMED.get(name, name): value for name, value in stored.items()}
    arguments = [[argument, renamed[name]]
                 for name, (optimizer, argument, default_value) in NOW_ARGUMENTS.items()
                 if renamed.get('optimizer.name') == optimizer
                 and renamed.get(name, default_value) != default_value]
    if arguments:
        renamed.setdefault('optimizer.arguments', arguments)
    before = {**known, **{name: value for name, value in BEFORE.items() if name in known}}
    return ({name: renamed.get(name, value) for name, value in before.items()},
            [name for name in renamed if name not in {*known, *REMOVED, *NOW_ARGUMENTS}])


def from_stored(content: Any) -> tuple[ConfigDict, list[str]]:
    """Makes a config from the content of a config.json.

    Args:
      content: the parsed JSON.

    Returns:
      The config, and the names of stored fields that are unknown today; see `upgrade`.

    Raises:
      ValueError: the content is not a config, or a value has the wrong type for its field.
    """
    if not isinstance(content, dict):
        raise ValueError('not a JSON object')
    fields, unknown = upgrade(leaves(ConfigDict(content)))
    config = default()
    for name, value in fields.items():
        try:
            config.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise ValueError(f'{name} cannot be {json.dumps(value)}') from error
    return config, unknown


def differences(config: ConfigDict, stored: dict[str, Any]) -> list[str]:
    """Lists changed fields that prevent a run from resuming, because they change its computation.

    Args:
      config: config of the run that is about to start.
      stored: `leaves` of the config, possibly of an older version, that wrote the checkpoint.

    Returns:
      One string 'field: stored -> new' per field, in the order of the fields.
    """
    new, (old, _) = leaves(config), upgrade(stored)
    return [f'{name}: {old[name]} -> {new[name]}' for name in new
            if old[name] != new[name] and not _is_free(name, config)
            and not _is_meaningless(name, old, new)]


def _is_meaningless(name: str, *configs: dict[str, Any]) -> bool:
    other = MEANINGLESS_WITHOUT.get(name)
    return other is not None and not any(config[other] for config in configs)


def _is_free(name: str, config: ConfigDict) -> bool:
    """Whether a run can be resumed with another value of this field."""
    if name == 'num_steps' and config.schedule.name == 'cosine':
        return False
    return any(name == field or name.startswith(field + '.') for field in EXECUTION_FIELDS)
