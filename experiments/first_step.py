"""How far the first training step moves each layer of plain and residual networks.

  python -m experiments.first_step
  python -m experiments.first_step --config=configs/cifar10_short.py --config.data.path=DIR

Section 4.1 of the paper finds the gradients of plain networks healthy thanks to batch
normalisation; G. Yang et al., "A Mean Field Theory of Batch Normalization", 2019, that they grow
exponentially towards the first layers. This measures it at the initial weights W: the norm of what
one step of the config adds to the weights of a 3x3 layer, over the norm of W. Far above 1, the step
replaces the weights, and as batch normalisation ignores their scale, later steps hardly turn what
has become so large. Where the learning rate is warmed up, as for the digits, the first step is
small. As the changes vary by orders of magnitude, means over the seeds are geometric. One device is
used, whatever the mesh of the config, and nothing else is trained. Without --config it takes
scikit-learn's digits.
Writes first_step.svg, .png, .json and .txt to --workdir.
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from scipy import stats

from experiments import grid, layers, options, packages, runs, study, tables
from experiments.claims import Finding, geometric_estimate, lower_by_factor
from resnet_jax import cli
from resnet_jax.errors import UserError

DEPTHS = cli.flag(flags.DEFINE_list, 'depths', ['20', '56'], 'Depths to compare.')
cli.config_flag()
options.seeds_flag()
cli.flag(flags.DEFINE_string, 'workdir', None,
         'Folder to write to. Default: runs/NAME_sweep, for a config file NAME.py.')

PAPER = 'section 4.1: the gradients of plain networks have healthy norms'


def main(_) -> None:
    packages.check(*packages.CHARTS)
    folder = options.folder(options.DIGITS)
    groups = collections.defaultdict(dict)
    cells = study.cells([{'model.depth': DEPTHS.value, 'model.plain': ['true', 'false']}], extra=[
        f'--config.{field}={value}' for field, value in grid.ONE_DEVICE.items()])
    for cell in cells:
        layers.network(cell.config)  # refuses what has no plain twin
    grid.check(cells, num_devices=1)
    for cell in cells:
        runs.say(f'{cell.name} …')
        model = cell.config.model
        groups[model.depth, model.plain][cell.config.seed] = of_network(cell.config)
    points = average(groups)
    drawn = chart(points, max(map(len, groups.values())))
    study.publish('first_step', folder, {'': drawn}, table(groups), findings(groups),
                  {'layers': points, 'seeds': layers.by_seed(groups, 'change')})


def of_network(config: ConfigDict) -> list[float]:
    """The relative change of the weights of each 3x3 layer, in the order of the layers.

    Args:
      config: of a run; its seed decides the initial weights and the batch.

    Raises:
      UserError: the data is not there, or does not fit the config; or no layer is changed.
    """
    import jax

    from resnet_jax.distributed import sharding
    from resnet_jax.training import program as programs

    config = grid.looped(config)
    program = programs.build(config, sharding.create_mesh(config, jax.local_devices()[:1]))
    state = program.initial_state()
    after, _ = jax.jit(program.train_step)(state, next(program.train_data.inputs(0)))
    found = changes(jax.device_get(state.params), jax.device_get(after.params))
    if not any(found):
        raise UserError('the first step changes none of the 3x3 layers: the learning rate is 0, or '
                        'init.freeze holds all of them; choose a config that trains them.')
    return found


def changes(before: Any, after: Any) -> list[float]:
    """The norm of the difference over that of the first, for each 3x3 layer in their order.

    Args:
      before, after: parameters of a `ResNet`, arrays of the host.
    """
    import jax

    found = {}
    for (path, old), new in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after),
                                strict=True):
        keys = [key.key for key in path]
        if (re.fullmatch(r'conv\d?', keys[-2]) and keys[-1] == 'kernel'
                and old.shape[-4:-2] == (3, 3)):
            axes = (-4, -3, -2, -1)
            old, new = (np.asarray(x, np.float64) for x in (old, new))
            ratio = np.sqrt(((new - old)**2).sum(axes) / (old**2).sum(axes))
            found['/'.join(keys[:-1])] = ratio
    return layers.in_order(found)


def mean_changes(seeds: Mapping[int, Sequence[float]]) -> np.ndarray:
    """The geometric mean over the seeds, layer by layer: 0 where a layer does not change.

    Args:
      seeds: the changes of each seed; those of a single one are returned as they are.
    """
    values = np.array(list(seeds.values()))  # [seeds, layers]
    return values[0] if len(values) == 1 else stats.gmean(values, axis=0)


def average(groups: layers.Groups) -> list[dict[str, Any]]:
    """The geometric mean over the seeds.

    Returns:
      'network', 'depth', 'kind' ('plain' or 'residual'), 'layer' (from 1) and 'change'.
    """
    return [{'network': layers.name(depth, plain), 'depth': depth,
             'kind': 'plain' if plain else 'residual', 'layer': i + 1, 'change': float(change)}
            for (depth, plain), seeds in groups.items()
            for i, change in enumerate(mean_changes(seeds))]


def table(groups: layers.Groups) -> str:
    """A line for each network: the greatest change of a layer, and the median one."""
    lines = [['network', '3x3 layers', 'greatest change', 'median layer', 'last layer', 'seeds']]
    for (depth, plain), seeds in groups.items():
        mean = mean_changes(seeds)
        greatest = geometric_estimate(_greatest(seeds))
        lines.append([layers.name(depth, plain), str(len(mean)),
                      tables.geometric_mean_and_interval(greatest, _decimals(greatest.mean)),
                      *(f'{value:.{_decimals(value)}f}' for value in (np.median(mean), mean[-1])),
                      str(len(seeds))])
    return tables.with_notes(
        lines, max(map(len, groups.values())),
        'geometric mean over the seeds (a mean of logarithms), its 95 % t-interval in brackets',
        'norm of the change of a layer\'s weights in the first step over the norm of the weights')


def _decimals(*values: float) -> int:
    """Digits behind the point that show the least of positive values by three digits."""
    positive = [value for value in values if value > 0]
    return max(0, 2 - math.floor(math.log10(min(positive)))) if positive else 0


def _greatest(seeds: Mapping[int, Sequence[float]]) -> list[float]:
    return [max(values) for values in seeds.values()]


def findings(groups: layers.Groups) -> list[Finding]:
    """That no layer of a residual network moves as far as one of its plain twin does."""
    found = []
    for depth in sorted({depth for depth, _ in groups}):
        if {(depth, True), (depth, False)} <= groups.keys():
            residual, plain = (_greatest(groups[depth, plain]) for plain in (False, True))
            found.append(lower_by_factor(
                f'the layer that the first step moves most moves less in ResNet-{depth} than in '
                f'plain-{depth}', residual, plain, paper=PAPER,
                digits=_decimals(*(geometric_estimate(x).mean for x in (residual, plain)))))
    return found


def chart(points: Sequence[Mapping[str, Any]], seeds: int) -> Any:
    """The change by the index of the layer, of at most that many seeds.

    Layers that do not change, such as those of `init.freeze`, are left out: a log scale has no 0.
    """
    import altair as alt

    from experiments import charts

    moved = [point for point in points if point['change'] > 0]
    return alt.Chart(alt.Data(values=moved)).mark_line().encode(
        alt.X('layer:Q', title='index of the layer', axis=alt.Axis(tickMinStep=1)),
        alt.Y('change:Q', title='change / weights (log scale)',
              scale=alt.Scale(type='log', nice=False), axis=alt.Axis(tickCount=5)),
        *charts.depth_and_kind()).properties(
            width=520, height=240,
            title='Change of the 3x3 layers in the first step, '
                  + charts.over_seeds(seeds, mean='geometric mean'))


if __name__ == '__main__':
    cli.run(main)
