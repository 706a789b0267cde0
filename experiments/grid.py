"""The cells of a sweep: all combinations of the values given for fields of a config."""

import collections
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import cli
from resnet_jax.config import from_stored, leaves
from resnet_jax.errors import UserError

ONE_DEVICE = {'mesh.data': 1, 'mesh.model': 1}  # of measurements that do not depend on the mesh


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      overrides: the swept fields and their values, in the order of the fields' names.
      arguments: of `python -m resnet_jax.main`, all but --workdir.
      config: what they describe.
    """

    overrides: Mapping[str, Any]
    arguments: tuple[str, ...]
    config: ConfigDict

    @property
    def name(self) -> str:
        """Of the run's folder: the overrides, such as 'model.depth=20,seed=0'."""
        text = ','.join(f'{field}={_text(value)}' for field, value in self.overrides.items())
        plain = re.sub(r'[^\w.,=+-]', '_', text)[:150]
        if plain == text:
            return text
        return f'{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'


def parse(sweeps: Sequence[str]) -> dict[str, list[str]]:
    """Fields and the texts of their values, from texts such as 'model.depth=20,32,44'.

    Commas inside brackets belong to a value, as in 'schedule.boundaries=(200,300),(300,400)'.

    Raises:
      UserError: a text has no field or no values, or two have the same field.
    """
    grid = {}
    for sweep in sweeps:
        field, _, values = sweep.partition('=')
        texts = [text.strip() for text in re.split(r',(?![^(\[]*[)\]])', values)]
        if not field or not all(texts):
            raise UserError(f'--sweep={sweep} is not understood: give a field and values, as in '
                            '--sweep model.depth=20,32,44.')
        if field in grid:
            raise UserError(f'--sweep names {field} twice: give all its values at once.')
        grid[field] = texts
    return grid


def cells(base: Sequence[str], grid: Mapping[str, Sequence[str]]) -> list[Cell]:
    """All combinations of the values, the last field changing fastest.

    Args:
      base: arguments that all cells share: '--config=FILE', '--config.FIELD=VALUE'.
      grid: texts of the values of each field, as on a command line.

    Raises:
      UserError: there is no such config or field; a field has no values, or one that is not of
        its type; or two values are the same.
    """
    for field, texts in grid.items():
        if not texts:
            raise UserError(f'{field} has no values; give at least one.')
        values = []
        for text in texts:
            try:
                config = cli.read_config([*base, f'--config.{field}={text}'])
            except UserError as error:
                raise UserError(f'--sweep {field}={text}: {error}') from error
            values.append(json.dumps(leaves(config)[field]))
        twice = [value for value, count in collections.Counter(values).items() if count > 1]
        if twice:
            raise UserError(f'--sweep {field} has the value {twice[0]} twice.')
    found = []
    for texts in itertools.product(*grid.values()):
        arguments = (*base, *(f'--config.{field}={text}'
                              for field, text in zip(grid, texts, strict=True)))
        config = cli.read_config(arguments)
        fields = leaves(config)
        found.append(Cell({field: fields[field] for field in sorted(grid)}, arguments, config))
    return found


def check(cells: Sequence[Cell], num_devices: int) -> None:
    """Checks the config of every cell, and that its data is there, before any of them runs.

    Args:
      cells: of the sweep.
      num_devices: that each run will have.

    Raises:
      UserError: names the cell and what is wrong.
    """
    from resnet_jax import config as config_lib
    from resnet_jax import data
    from resnet_jax.distributed import sharding
    from resnet_jax.training import choices
    from resnet_jax.training.program import completed, create_model

    sources = set()
    for cell in cells:
        try:
            shards = sharding.mesh_shape(cell.config, num_devices)[0]
            config, _ = choices.choose(completed(cell.config), choices.Machine(shards, 'cpu'))
            config_lib.check(config, shards)
            create_model(looped(config))
            if (source := cell.config.data.to_json()) not in sources:
                data.create_source(config, 'train')
                data.create_eval_source(config)
            sources.add(source)
        except UserError as error:
            raise UserError(f'{cell.name}: {error}') from error


def _text(value: Any) -> str:
    """As it may be given on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def looped(config: ConfigDict) -> ConfigDict:
    """The config with loops over the blocks: the same network, traced and compiled sooner."""
    config = config.copy_and_resolve_references()  # a plain copy would share its sections
    config.model.unroll = False
    return config


def rebuild(fields: Mapping[str, Any]) -> ConfigDict:
    """A config from its fields by path, as a ledger has them, of whatever time.

    Its stages are loops: the network is the same, and quicker to trace.
    """
    sections: dict[str, Any] = {}
    for path, value in fields.items():
        *names, field = path.split('.')
        section = sections
        for name in names:
            section = section.setdefault(name, {})
        section[field] = value
    sections['model']['unroll'] = False
    return from_stored(sections)[0]
