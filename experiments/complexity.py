"""Plots the error of every network of the paper over its multiply-adds and parameters.

  python -m experiments.complexity
  python -m experiments.complexity --ledger=runs/cifar10_sweep

Sizes are counted from the networks of this project (for GoogLeNet, they are the published ones);
errors are the paper's. With --ledger, the networks of a sweep are added with their measured errors.
Nothing is trained. Writes complexity.svg, .png, .json and .txt to --workdir, by default the folder
of the ledger, or runs/complexity.
"""

import pathlib
import types
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from experiments import grid, options, packages, paper, study, tables
from experiments import ledger as ledger_lib
from experiments.claims import Finding, Verdict, estimate
from resnet_jax import cli

LEDGER = cli.flag(
    flags.DEFINE_string, 'ledger', None,
    'Ledger of a sweep, or its folder: its networks are added, with their measured errors.')
cli.flag(flags.DEFINE_string, 'workdir', None,
         'Folder to write to. Default: that of the ledger, or runs/complexity.')

TEN_CROP = 'ImageNet, 10-crop'
BEST = 'ImageNet, best single model'
CIFAR10 = 'CIFAR-10 test'
PLAIN, RESNET, OTHER = 'plain', 'ResNet', 'VGG, GoogLeNet'
SIZES = (1e6, 10e6, 50e6, 150e6)  # parameters of the legend's circles

# Of the paper: name, config file, overrides.
NETWORKS = (
    *((f'plain-{depth}', 'imagenet_plain', {'model.depth': depth}) for depth in (18, 34)),
    ('ResNet-18-A', 'imagenet', {'model.depth': 18, 'model.shortcut': 'A'}),
    *((f'ResNet-34-{option}', 'imagenet', {'model.depth': 34, 'model.shortcut': option})
      for option in 'ABC'),
    *((f'ResNet-{depth}', 'imagenet', {'model.depth': depth}) for depth in (50, 101, 152)),
    *((f'VGG-{depth}', 'imagenet_vgg16', {'model.depth': depth, 'model.batch_norm': False})
      for depth in (16, 19)),
)


def main(_) -> None:
    packages.check(*packages.CHARTS)
    options.check_workdir()
    points = [*published(), *measured()]
    folder = cli.workdir(LEDGER.value or 'runs/complexity')
    folder = folder.parent if folder.is_file() else folder
    study.publish('complexity', folder, {'': chart(points)}, table(points), findings(points),
                  {'networks': points})


def published() -> Iterator[dict[str, Any]]:
    """A point for each network and kind of error that the paper has a number for."""
    for name, file, overrides in NETWORKS:
        size = _size(file, overrides)
        errors = paper.IMAGENET_ERROR[name]
        kind = PLAIN if 'plain' in name else RESNET if 'ResNet' in name else OTHER
        yield from _imagenet(name, kind, size, errors)
    size = {'parameters': paper.GOOGLENET_PARAMETERS,
            'multiply_adds': paper.GOOGLENET_MULTIPLY_ADDS}
    yield from _imagenet('GoogLeNet', OTHER, size, paper.IMAGENET_ERROR['GoogLeNet'])
    for depth, error in paper.CIFAR10_ERROR.items():
        yield {'network': f'ResNet-{depth}', 'kind': RESNET, 'of': CIFAR10, 'source': 'paper',
               **_size('cifar10', {'model.depth': depth}), 'top1': error, 'top5': None,
               'error': error, 'seeds': None}


def _imagenet(name: str, kind: str, size: dict[str, int],
              errors: paper.Published) -> Iterator[dict[str, Any]]:
    for of, top1, top5 in ((TEN_CROP, errors.top1, errors.top5),
                           (BEST, errors.best_top1, errors.best_top5)):
        if top1 is not None or top5 is not None:
            yield {'network': name, 'kind': kind, 'of': of, 'source': 'paper', **size,
                   'top1': top1, 'top5': top5, 'error': top5, 'seeds': None}


def _size(file: str, overrides: dict[str, Any]) -> dict[str, int]:
    from resnet_jax.config import leaves

    config = cli.read_config([f'--config={pathlib.Path(__file__).parent.parent}/configs/{file}.py'])
    return _count(leaves(config) | overrides)


def _count(fields: dict[str, Any]) -> dict[str, int]:
    from resnet_jax.training.costs import summarize

    summary = summarize(grid.rebuild(fields | {'model.unroll': False}))  # the same, sooner
    return {'parameters': summary['parameters'], 'multiply_adds': summary['multiply_adds']}


def measured() -> Iterator[dict[str, Any]]:
    """A point for each network of --ledger, its error being the mean over seeds."""
    if LEDGER.value is None:
        return
    rows = ledger_lib.select(ledger_lib.read(pathlib.Path(LEDGER.value)), {})
    fields = ('model.depth', 'model.plain', 'model.shortcut')
    for group in study.by(rows, *fields).values():
        config = next(iter(group.values()))['config']
        error = estimate(study.values(group, 'final_error'))
        yield {'network': paper.name(config), 'kind': PLAIN if config['model.plain'] else RESNET,
               'of': f'{paper.dataset(config)}, measured', 'source': 'measured', **_count(config),
               'top1': error.mean, 'top5': None, 'error': error.mean, 'seeds': error.n}


def table(points: Sequence[dict[str, Any]]) -> str:
    """A line for each network: sizes and errors."""
    lines = [['network', 'error of', 'parameters', 'multiply-adds', 'top-1 %', 'top-5 %', 'from']]
    for point in points:
        seeds = point['seeds']
        source = point['source'] if seeds is None else f'{seeds} seed{"s" * (seeds > 1)}'
        lines.append([point['network'], point['of'], f'{point["parameters"]:,}',
                      f'{point["multiply_adds"]:,}', paper.text(point['top1']),
                      paper.text(point['top5']), source])
    return tables.text(lines)


def findings(points: Sequence[dict[str, Any]]) -> list[Finding]:
    """What section 4.1 says of the cost, in counted multiply-adds and the paper's errors."""
    sizes = {point['network']: types.SimpleNamespace(**point) for point in points
             if point['source'] == 'paper' and point['of'] in (TEN_CROP, BEST)}
    deep, vgg = sizes['ResNet-152'].multiply_adds, sizes['VGG-16'].multiply_adds
    share = sizes['plain-34'].multiply_adds / sizes['VGG-19'].multiply_adds
    return [
        Finding('ResNet-152 has fewer multiply-adds than VGG-16 and VGG-19',
                '11.3 against 15.3 and 19.6 billion (section 4.1)',
                f'{deep / 1e9:.2f} against {vgg / 1e9:.2f} and '
                f'{sizes["VGG-19"].multiply_adds / 1e9:.2f} billion',
                Verdict.HELD if deep < vgg else Verdict.FAILED),
        Finding('plain-34 has 18 % of the multiply-adds of VGG-19, within 1 point',
                '3.6 of 19.6 billion, 18 % (section 3.3)', f'{100 * share:.1f} %',
                Verdict.HELD if abs(share - 0.18) < 0.01 else Verdict.FAILED),
    ]


def chart(points: Sequence[dict[str, Any]]) -> Any:
    """Error against multiply-adds, one panel for each kind of error; the area is the parameters."""
    import altair as alt

    panels = []
    for of in dict.fromkeys(point['of'] for point in points):
        shown = sorted((point for point in points if point['of'] == of
                        and point['error'] is not None), key=lambda point: point['error'])
        # Names to the left and to the right in turn, since many networks lie above one another.
        shown = [{**point, 'side': i % 2} for i, point in enumerate(shown)]
        top5 = shown[0]['top5'] is not None
        # Measured errors may differ by a factor of a hundred, those of a paper's panel do not.
        logarithmic = shown[0]['source'] == 'measured'
        base = alt.Chart(alt.Data(values=shown)).encode(
            alt.X('multiply_adds:Q', title='multiply-adds of one image',
                  scale=alt.Scale(type='log', nice=False, padding=80),
                  axis=alt.Axis(format='~s', labelOverlap='greedy', labelSeparation=8)),
            alt.Y('error:Q', title=f'top-{5 if top5 else 1} error, %'
                  + ' (log scale)' * logarithmic,
                  scale=alt.Scale(type='log' if logarithmic else 'linear', zero=False, nice=False,
                                  padding=20)))
        dots = base.mark_circle(opacity=0.6).encode(
            alt.Size('parameters:Q', title='parameters', scale=alt.Scale(range=[30, 900]),
                     legend=alt.Legend(format='~s', values=SIZES)),
            alt.Color('kind:N', title='network', scale=alt.Scale(
                domain=[PLAIN, RESNET, OTHER], range=['#e45756', '#4c78a8', '#888888'])))
        names = [base.mark_text(align=align, dx=dx, fontSize=9).transform_filter(
            f'datum.side == {side}').encode(alt.Text('network:N'))
            for side, align, dx in ((0, 'left', 16), (1, 'right', -16))]
        panels.append(alt.layer(dots, *names).properties(width=420, height=260, title=of))
    return alt.concat(*panels, columns=2).properties(title='Multiply-adds against error')


if __name__ == '__main__':
    cli.run(main)
