"""Predicts images per second on slices and clusters of several sizes, from one compiled step."""

import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.errors import UserError
from resnet_jax.training import compiled
from resnet_jax.xla import networks, topologies

# A step reads float32 parameters forward and backward, writes and reads gradients, and reads and
# writes parameters and momentum: this does not depend on the images.
PARAMETER_BYTES = 8 * 4


def sweep(config: ConfigDict, names: Sequence[str]) -> dict[str, Any]:
    """Compiles a step for the first topology, and predicts the steps of all of them.

    Weak scaling keeps the images per device, so all devices run the program that was compiled and
    only the all-reduce differs. Strong scaling keeps the batch: a device's FLOPs and bytes shrink
    in proportion to its images, except `PARAMETER_BYTES` per parameter; topologies whose devices
    cannot share the batch out evenly, such as more devices than images, are left out of it. In
    both, a device adds up batch statistics alone.

    Args:
      config: see `compiled.report`; its batch is that of the first topology, and of strong scaling.
      names: see `topologies.describe`; the first is a single slice.

    Returns:
      'base': the `compiled.report` of the first topology. 'points': for each kind of scaling and
      topology, 'scaling', 'topology', 'devices', 'batch_size', 'images_per_device'; 'flop_seconds',
      'memory_seconds' and 'communication_seconds'; 'images_per_second' and 'efficiency', images per
      second and device relative to the smallest topology without communication, if communication
      overlaps with nothing, and 'efficiency_overlapped', if it overlaps with everything; 'bound',
      the longest of the times. 'left_out': names of the topologies without strong scaling.

    Raises:
      UserError: there is no such topology, or its peak is not known; the step does not fit.
    """
    targets = sorted(map(topologies.describe, names), key=lambda target: target.count)
    if unknown := [target.name for target in targets if target.peak is None]:
        raise UserError(f'--sweep cannot predict {unknown[0]}, whose peak is not known.')
    if '*' in names[0]:
        raise UserError(f'--sweep compiles for its first topology, a single slice; put {names[0]} '
                        'behind another one.')
    base = compiled.report(config, topologies.create(names[0]))
    compiled.check_memory(base)
    points, left_out = [], [target for target in targets if config.batch_size % target.count]
    for scaling in ('weak', 'strong'):
        rows = [_point(scaling, base, config.batch_size, target) for target in targets
                if scaling == 'weak' or target not in left_out]
        alone = rows[0]['images_per_device'] / _compute(rows[0])
        for row in rows:
            row['efficiency'] = row['images_per_device'] / _in_turn(row) / alone
            row['efficiency_overlapped'] = row['images_per_device'] / _at_once(row) / alone
        points += rows
    return {'base': base, 'points': points, 'left_out': [target.name for target in left_out]}


def expand(text: Sequence[str]) -> list[str]:
    """Completes ['v5e:4x4', '8x8'] to ['v5e:4x4', 'v5e:8x8'].

    Raises:
      UserError: there is no such topology.
    """
    names, kind = [], ''
    for name in text:
        if ':' in name:
            kind = name.partition(':')[0]
        elif kind and re.fullmatch(r'(\d+\*)?\d+(x\d+)*', name):
            name = f'{kind}:{name}'
        names.append(topologies.describe(name).name)
    return names


def table(result: dict[str, Any]) -> str:
    """Formats a `sweep` as text."""
    lines = [f'{"scaling":<8} {"topology":<12} {"devices":>7} {"batch":>8} {"images":>8} '
             f'{"compute":>10} {"all-reduce":>11} {"images/s":>10} {"efficiency":>15}  bound by']
    for row in result['points']:
        efficiency = f'{row["efficiency"]:.0%} to {row["efficiency_overlapped"]:.0%}'
        lines.append(
            f'{row["scaling"]:<8} {row["topology"]:<12} {row["devices"]:>7,} '
            f'{row["batch_size"]:>8,} {row["images_per_device"]:>8,.4g} '
            f'{1000 * _compute(row):>7.2f} ms '
            f'{1000 * row["communication_seconds"]:>8.2f} ms {row["images_per_second"]:>10,.0f} '
            f'{efficiency:>15}  {row["bound"]}')
    return '\n'.join([
        *lines, '', 'images: per device. images/s: if the all-reduce overlaps with nothing.',
        'efficiency: relative to the smallest without communication, without and with overlap.',
        f'Compiled for {result["base"]["topology"]} only: whether more images per device fit into '
        'memory is not checked.', *(f'note: {note}' for note in result['base']['notes']),
        *(f'note: {name} has no strong scaling: its devices cannot share out the batch evenly.'
          for name in result['left_out'])])


def _point(scaling: str, base: dict[str, Any], batch: int,
           target: topologies.Topology) -> dict[str, Any]:
    """The times of one step; see `sweep`."""
    images = batch / (base['devices'] if scaling == 'weak' else target.count)
    share = images * base['devices'] / batch  # of the images of a device that were compiled for
    fixed = min(PARAMETER_BYTES * base['parameters'], base['bytes'] / base['devices'])
    moved = (base['bytes'] / base['devices'] - fixed) * share + fixed
    row = {
        'scaling': scaling, 'topology': target.name, 'devices': target.count,
        'batch_size': round(images * target.count), 'images_per_device': images,
        'flop_seconds': base['flops'] / base['devices'] * share / target.peak,
        'memory_seconds': moved / target.bandwidth,
        'communication_seconds': networks.total_seconds(base['collectives'], target.network)}
    times = {'FLOPs': row['flop_seconds'], 'memory': row['memory_seconds'],
             'communication': row['communication_seconds']}
    return row | {'images_per_second': row['batch_size'] / _in_turn(row),
                  'bound': max(times, key=lambda name: times[name])}


def _compute(row: dict[str, Any]) -> float:
    """Seconds of a step without communication."""
    return max(row['flop_seconds'], row['memory_seconds'])


def _in_turn(row: dict[str, Any]) -> float:
    """Seconds of a step whose collectives wait for its arithmetic."""
    return _compute(row) + row['communication_seconds']


def _at_once(row: dict[str, Any]) -> float:
    """Seconds of a step whose collectives overlap with its arithmetic."""
    return max(_compute(row), row['communication_seconds'])
