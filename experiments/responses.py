"""Figure 7: how strongly the 3x3 layers of trained networks respond.

  python -m experiments.responses
  python -m experiments.responses --config=configs/cifar10.py --depths=20,56,110

The response of a layer is its output after batch normalisation, before the non-linearity and the
addition. Its standard deviation is computed over the test images, all positions and all channels,
with the running statistics. Without --config it trains depths 20 and 56 on scikit-learn's digits,
plain and residual, three seeds each, unless `experiments.degradation` has already trained them in
the same folder. Writes responses.svg, .png, .json and .txt to --workdir.
"""

import collections
import functools
import itertools
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import grid, layers, options, paper, runs, study, tables
from experiments.claims import Finding, estimate, lower
from experiments.ledger import Row
from resnet_jax import cli
from resnet_jax.errors import UserError

DEPTHS = cli.flag(flags.DEFINE_list, 'depths', ['20', '56'], 'Depths to compare.')
BATCHES = cli.flag(
    flags.DEFINE_integer, 'batches', None,
    'Number of evaluation batches to average over. Default: the whole split.',
    lower_bound=1)
options.figure_flags()


def main(_) -> None:
    grids = [{'model.depth': DEPTHS.value, 'model.plain': ['true', 'false']}]
    if not flags.FLAGS.ledger:
        for cell in study.cells(grids):
            check(cell.config)
    rows, folder = study.rows(grids)
    depths = {int(depth) for depth in DEPTHS.value}
    rows = [row for row in rows if row['config']['model.depth'] in depths]
    for row in rows:
        check(grid.rebuild(row['config']))
    trained = study.by(rows, 'model.depth', 'model.plain')
    groups = {}
    for key in sorted(trained):
        runs.say(f'{paper.name(next(iter(trained[key].values()))["config"])} …')
        groups[key] = {seed: of_run(row, folder, BATCHES.value)
                       for seed, row in trained[key].items()}
    points = average(groups)
    drawn = chart(points, max(map(len, groups.values())))
    study.publish('responses', folder, {'': drawn}, table(groups), findings(groups),
                  {'layers': points, 'seeds': layers.by_seed(groups, 'std')}, rows)


def check(config: ConfigDict) -> None:
    """Refuses networks that have no responses, or no plain twin, before they are trained.

    Raises:
      UserError: says what to choose instead.
    """
    if layers.network(config).block.preactivated:
        raise UserError('the responses are those of layers with batch normalisation behind them, '
                        'and blocks with pre-activation have it in front: give a --config with '
                        'model.family cifar or imagenet.')


def of_run(row: Row, folder: pathlib.Path, batches: int | None) -> list[float]:
    """The standard deviation of each 3x3 layer of a trained network, in the order of the layers.

    Args:
      row: of a ledger.
      folder: of the ledger.
      batches: of the evaluation split; None: all.

    Raises:
      UserError: the run's checkpoint or its data is not there.
    """
    import jax

    from resnet_jax import data
    from resnet_jax.distributed import sharding
    from resnet_jax.weights import stored

    weights = stored.read(folder / row['run'])
    config = grid.looped(weights.config)  # has what the ledger leaves to the data
    config.update_from_flattened_dict(grid.ONE_DEVICE)  # whatever it was trained on
    mesh = sharding.create_mesh(config, jax.local_devices()[:1])
    evaluation = data.create_pipelines(config, mesh)[1]
    count = math.ceil(evaluation.num_images / evaluation.batch_size)
    measure = _compiled(config.model.to_json())
    make = jax.jit(lambda inputs, index: evaluation.batch(inputs, index, weights.normalization))
    totals = collections.Counter()
    for index, inputs in enumerate(itertools.islice(
            evaluation.inputs(0), min(count, batches or count))):
        batch = make(inputs, index)
        new = jax.device_get(measure(weights.variables, batch['image'], batch['mask']))
        for layer, moment in itertools.product(new, range(3)):
            totals[layer, moment] += np.asarray(new[layer][moment], np.float64)
    return layers.in_order({layer: _deviation(*(totals[layer, moment] for moment in range(3)))
                            for layer in new})


@functools.cache
def _compiled(model: str) -> Any:
    """`moments` of a network, which its seeds share."""
    import jax

    from resnet_jax import models

    return jax.jit(functools.partial(moments, models.create(json.loads(model))))


def moments(model: Any, variables: Any, images: Any, mask: Any) -> dict[str, tuple]:
    """Sums over the responses of each 3x3 layer. Pure.

    Args:
      model: a `ResNet`.
      variables: 'params' and 'batch_stats'.
      images: float32 [N, H, W, C], normalised.
      mask: float32 [N]; 0 for images that do not count.

    Returns:
      By the path of the normalisation, such as 'stage1/blocks/norm2': count, sum and sum of
      squares, float32 scalars, or [blocks] of stacked blocks.
    """
    import jax
    import jax.numpy as jnp

    def is_response(module, _):
        return bool(re.fullmatch(r'norm\d?', module.name or '')) and 'shortcut' not in module.path

    intermediates = model.apply(
        variables, images, train=False, mutable=['intermediates'],
        capture_intermediates=is_response)[1]['intermediates']
    sums = {}
    for path, leaf in jax.tree.leaves_with_path(intermediates):
        keys = [key.key for key in path if hasattr(key, 'key')]
        layer = variables['params']
        for key in [*keys[:-2], keys[-2].replace('norm', 'conv')]:
            layer = layer[key]
        if layer['kernel'].shape[-4:-2] != (3, 3):
            continue
        y = leaf.astype(jnp.float32)  # [N, H, W, C], or [blocks, N, H, W, C]
        weight = mask[:, None, None, None]
        axes = (-4, -3, -2, -1)
        count = mask.sum() * y.shape[-1] * y.shape[-2] * y.shape[-3]
        sums['/'.join(keys[:-1])] = (count, (y * weight).sum(axes), (y**2 * weight).sum(axes))
    return sums


def _deviation(count, total, squares) -> np.ndarray:
    return np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))


def average(groups: layers.Groups) -> list[dict[str, Any]]:
    """Mean over the seeds, layer by layer, and in the order of size.

    Returns:
      'network', 'depth', 'kind' ('plain' or 'residual'), 'order' ('by layer' or 'sorted'), 'layer'
      (from 1) and 'std'.
    """
    points = []
    for (depth, plain), seeds in groups.items():
        name, kind = layers.name(depth, plain), 'plain' if plain else 'residual'
        values = np.array(list(seeds.values()))  # [seeds, layers]
        for order, table in (('by layer', values), ('sorted', -np.sort(-values, axis=1))):
            points += [{'network': name, 'depth': depth, 'kind': kind, 'order': order,
                        'layer': i + 1, 'std': float(std)}
                       for i, std in enumerate(table.mean(0))]
    return points


def means(seeds: Mapping[int, Sequence[float]]) -> list[float]:
    """The mean over the layers, for each seed."""
    return [float(np.mean(values)) for values in seeds.values()]


def table(groups: layers.Groups) -> str:
    """A line for each network: deviation, mean over the layers."""
    lines = [['network', '3x3 layers', 'paper', 'mean deviation', 'least layer', 'greatest layer',
              'seeds']]
    for (depth, plain), seeds in groups.items():
        values = np.mean(list(seeds.values()), axis=0)
        lines.append([layers.name(depth, plain), str(len(values)), '-',
                      tables.mean_and_interval(estimate(means(seeds)), 3), f'{values.min():.3f}',
                      f'{values.max():.3f}', str(len(seeds))])
    return tables.with_notes(
        lines, max(map(len, groups.values())), tables.INTERVAL,
        'standard deviation of the responses, mean over the layers', 'the paper has curves only')


def findings(groups: layers.Groups) -> list[Finding]:
    """That residual networks respond less than plain ones, and the deeper the less."""
    found = []
    for depth in sorted({depth for depth, _ in groups}):
        if {(depth, True), (depth, False)} <= groups.keys():
            found.append(lower(
                f'the layers of ResNet-{depth} respond less than those of plain-{depth}, in mean',
                means(groups[depth, False]), means(groups[depth, True]), paper=paper.RESPONSES,
                digits=3))
    depths = sorted(depth for depth, plain in groups if not plain)
    for shallow, deep in itertools.pairwise(depths):
        found.append(lower(
            f'the layers of ResNet-{deep} respond less than those of ResNet-{shallow}, in mean',
            means(groups[deep, False]), means(groups[shallow, False]), paper=paper.RESPONSES,
            digits=3))
    return found


def chart(points: Sequence[Mapping[str, Any]], seeds: int) -> Any:
    """Figure 7, of at most that many seeds: above by the index of the layer, below sorted."""
    import altair as alt

    from experiments import charts

    y = alt.Y('std:Q', title='standard deviation (log scale)',
              scale=alt.Scale(type='log', nice=False), axis=alt.Axis(tickCount=5))
    panels = []
    for order, x, title in (('by layer', 'index of the layer', 'in the order of the layers'),
                            ('sorted', 'rank of the layer', 'sorted by size')):
        shown = alt.Data(values=[point for point in points if point['order'] == order])
        panels.append(alt.Chart(shown).mark_line().encode(
            alt.X('layer:Q', title=x), y, *charts.depth_and_kind()).properties(
                width=520, height=200, title=title))
    return alt.vconcat(*panels).properties(
        title=f'Responses of the 3x3 layers, {charts.over_seeds(seeds)}')


if __name__ == '__main__':
    cli.run(main)
