"""Shows what a trained network has learnt, block by block, in one page that opens offline.

  python -m experiments.look runs/digits
  python -m experiments.look runs/digits --plain=runs/digits_plain --output=runs/look
  python -m experiments.look weights/resnet20 --config=configs/cifar10_r20.py \\
      --config.data.source=folder --config.data.path=DATA
  python -m experiments.look runs/imagenette_finetune --only=maximisation --images=100 \\
      --side=112 --ascent_steps=64 --starts=1 --channels=6

The folder is the workdir of a run, or a folder of converted weights, for which --config must name
the data. Writes report.html, numbers.json, and every chart and picture as a file in figures/.
docs/seeing.md explains how to read them.
"""

import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments import packages
from experiments.seeing.effort import DEFAULT, Effort
from resnet_jax import cli
from resnet_jax.errors import UserError

CONFIG = cli.config_flag()
PLAIN = cli.flag(
    flags.DEFINE_string, 'plain', None,
    'Folder of a network of the same depth to compare with, such as the plain twin.')
OUTPUT = cli.flag(
    flags.DEFINE_string, 'output', None,
    'Folder to write to. Default: look/ in the folder of the network.')
IMAGES = cli.flag(
    flags.DEFINE_integer, 'images', 300, 'Number of held-out images to use.', lower_bound=20)
TRAIN_IMAGES = cli.flag(
    flags.DEFINE_integer, 'train_images', 1000,
    'Number of training images for fitting the linear probes.', lower_bound=20)
BLOCKS = 'blocks'
PICTURES = ('filters', 'maximisation', 'gradcam', 'attributions', 'loss_surface')
ONLY = cli.flag(
    flags.DEFINE_list, 'only', [BLOCKS, *PICTURES],
    'Parts of the report, separated by commas: blocks is everything that is measured block by '
    f'block, and {", ".join(PICTURES)} are one section each.')
SIDE = cli.flag(
    flags.DEFINE_integer, 'side', None,
    'Pixels per side of the images that maximise a channel. Default: those of the network\'s '
    'images.', lower_bound=8)
STEPS = cli.flag(
    flags.DEFINE_integer, 'ascent_steps', DEFAULT.steps, 'Steps of their optimisation.',
    lower_bound=1)
STARTS = cli.flag(
    flags.DEFINE_integer, 'starts', DEFAULT.starts,
    'Images of noise to optimise each from; the best is shown.', lower_bound=1)
CHANNELS = cli.flag(
    flags.DEFINE_integer, 'channels', DEFAULT.channels, 'Channels of each stage to show them for.',
    lower_bound=1)
GRADIENTS = cli.flag(
    flags.DEFINE_integer, 'gradients', DEFAULT.gradients,
    'Gradients per image for the integrated ones, at most. They are added up until the '
    'contributions are complete within 1.5 %.', lower_bound=64)

WEIGHT = 8  # each takes about as long as this many blocks


class Found(NamedTuple):
    """What the report holds.

    Attributes:
      sections: `Section`s, in order.
      facts: what was looked at, and how, by name.
      paragraphs: of the summary.
      highlights: heads and rows of the summary's table.
    """

    sections: list[Any]
    facts: dict[str, str]
    paragraphs: list[str]
    highlights: tuple[list[str], list[list]]


def main(argv) -> None:
    import resnet_jax
    from resnet_jax.output import say
    from resnet_jax.training.evaluation import data_config
    from resnet_jax.xla import compilation_cache

    if len(argv) != 2:
        raise UserError(cli.give('one folder, a workdir or converted weights', __name__))
    packages.check(*packages.CHARTS, 'umap')
    if not ONLY.value or set(ONLY.value) - {BLOCKS, *PICTURES}:
        raise UserError(f'--only must name some of {BLOCKS}, {", ".join(PICTURES)}; '
                        f'got {",".join(ONLY.value)!r}.')
    start = time.monotonic()
    paths = [argv[1], *([PLAIN.value] if PLAIN.value else [])]
    networks = named([resnet_jax.load(path) for path in paths], paths)
    first = next(iter(networks.values()))
    config = data_config(CONFIG.value, list(networks.values()), paths)
    compilation_cache.use(config.compilation_cache)
    output = pathlib.Path(OUTPUT.value or pathlib.Path(argv[1]) / 'look').expanduser()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{output} cannot be written to: {error.strerror}.') from error
    found = look(networks, config, IMAGES.value, TRAIN_IMAGES.value, ONLY.value, Effort(
        SIDE.value, STEPS.value, STARTS.value, CHANNELS.value, GRADIENTS.value))
    found.facts['time'] = f'{time.monotonic() - start:.0f} s on {device()}'
    write(output, title(first), found)
    for paragraph in found.paragraphs:
        say(f'{paragraph}\n')
    size = (output / 'report.html').stat().st_size / 1e6
    say(f'wrote {output / "report.html"} ({size:.1f} MB) in {time.monotonic() - start:.0f} s')


def write(output: pathlib.Path, heading: str, found: Found) -> None:
    """Writes report.html, numbers.json and figures/ into a folder that is there.

    What is not finite reads null.
    """
    from experiments import report
    from experiments.seeing.answer import QUESTION
    from resnet_jax.output import write_whole

    (output / 'figures').mkdir(exist_ok=True)
    report.write_figures(output / 'figures', found.sections)
    numbers = {'facts': found.facts, 'summary': found.paragraphs,
               **{section.title: {name: _finite(value) for name, value in section.numbers.items()}
                  for section in found.sections},
               'tables': {name: [heads, *([_finite(cell) for cell in row] for row in rows)]
                          for section in found.sections
                          for name, (heads, rows) in section.tables.items()}}
    write_whole(output / 'numbers.json', json.dumps(numbers, indent=1, ensure_ascii=False) + '\n')
    report.write(output / 'report.html', title=heading, facts=found.facts, question=QUESTION,
                 paragraphs=found.paragraphs, highlights=found.highlights,
                 sections=found.sections)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def named(networks: list[Any], paths: list[str]) -> dict[str, Any]:
    """The networks by what the report calls them.

    Raises:
      UserError: they cannot be compared.
    """
    from experiments.seeing.blocks import blocks

    kinds = ['plain' if network.config.model.plain else 'residual' for network in networks]
    names = kinds if len(set(kinds)) == len(kinds) else ['first', 'second']
    steps = [[block.name for block in blocks(network)] for network in networks]
    for network, path, own in zip(networks, paths, steps, strict=True):
        for section, field in (('model', 'num_classes'), ('data', 'channels')):
            values = network.config[section][field], networks[0].config[section][field]
            if values[0] != values[1]:
                raise UserError(f'{path} and {paths[0]} cannot be compared: {section}.{field} is '
                                f'{values[0]} and {values[1]}.')
        if own != steps[0]:
            raise UserError(f'{path} and {paths[0]} cannot be compared block by block: they have '
                            f'{len(own)} and {len(steps[0])} blocks.')
    return dict(zip(names, networks, strict=True))


def look(networks: dict[str, Any], config: Any, count: int, train_count: int,
         only: Sequence[str] = (BLOCKS, *PICTURES), effort: Effort = DEFAULT) -> Found:
    """Everything that is measured.

    Args:
      networks: `Classifier`s of the same depth, by name.
      config: its `data` says where the images come from.
      count: held-out images.
      train_count: training images for the probes.
      only: parts of the report, see `ONLY`; without the blocks there is no summary.
      effort: for the pictures.
    """
    import jax

    from experiments.seeing import answer, images

    first = next(iter(networks.values()))
    test = images.choose(first, config, count, held_out=True)
    train = images.choose(first, config, train_count, held_out=False)
    parts = [part for part in PICTURES if part in only]
    steps = block_steps(first) * len(networks) if BLOCKS in only else 0
    bar = progress(steps + WEIGHT * len(parts))
    sections, paragraphs, highlights = [], [], ([], [])
    if BLOCKS in only:
        seen, lesions, sections = block_by_block(networks, test, train, bar)
        paragraphs = answer.answer(seen, lesions)
        highlights = answer.highlights(seen, lesions)
    makers = pictures(networks, test, train, effort)
    for part in parts:
        bar.set_description_str(part.replace('_', ' '))
        sections.append(makers[part]())
        bar.update(WEIGHT)
    bar.close()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(first.variables['params']))
    facts = {'network': ' and '.join(f'{name} {network.config.model.depth}'
                                     for name, network in networks.items())
             + f' ({parameters:,} parameters)',
             'data': str(config.data.path or config.data.source),
             'images': f'{len(test.labels)} held out; {len(train.labels)} for the probes',
             'top-1 error on them': ', '.join(
                 f'{name} {error(network, test):.2f} %' for name, network in networks.items())}
    return Found(sections, facts, paragraphs, highlights)


def error(network, test) -> float:
    """The top-1 error on some images, in percent."""
    return 100 * float((network.predict(test.pixels).argmax(1) != test.labels).mean())


def block_steps(network) -> int:
    """How often `block_by_block` moves the bar for one network."""
    from experiments.seeing import lesion
    from experiments.seeing.blocks import blocks

    found = blocks(network)
    return 3 * len(found) + 4 + len(lesion.pairs(found))


def block_by_block(networks, test, train, bar) -> tuple[dict, dict, list]:
    """What is measured at every block: representations, lesions, and their sections."""
    from experiments.seeing import (
        journey,
        lesion,
        movement,
        projection,
        representation,
        separability,
        similarity,
    )

    seen, lesions, projections = {}, {}, {}
    for name, network in networks.items():
        bar.set_description_str(f'{name}: block by block')
        seen[name] = representation.measure(network, test, train, bar.update)
        bar.set_description_str(f'{name}: deleting and swapping')
        lesions[name] = lesion.compute(network, test, bar.update)
        bar.set_description_str(f'{name}: projections')
        projections[name] = projection.compute(seen[name], bar.update)
    sections = [journey.section(test, seen, projections), movement.section(seen),
                similarity.section(seen), separability.section(seen), lesion.section(lesions)]
    return seen, lesions, sections


def pictures(networks, test, train, effort: Effort) -> dict[str, Callable[[], Any]]:
    """Makers of the sections that show the first network itself, see `PICTURES`."""
    from experiments.seeing import (
        filters,
        gradcam,
        integrated_gradients,
        loss_surface,
        maximisation,
    )

    first = next(iter(networks.values()))
    seen = first, test.pixels, test.labels
    return {
        'filters': lambda: filters.section(first),
        'maximisation': lambda: maximisation.section(
            first, test.pixels, steps=effort.steps, starts=effort.starts,
            channels=effort.channels, side=effort.side),
        'gradcam': lambda: gradcam.section(*seen),
        'attributions': lambda: integrated_gradients.section(*seen, effort.gradients),
        'loss_surface': lambda: loss_surface.section(networks, train.pixels, train.labels)}


def progress(total: int):
    """A bar that shows how far the work is and the time that is left."""
    from tqdm import tqdm

    return tqdm(total=total, bar_format='{desc:32s} {percentage:3.0f} % |{bar:24}| {elapsed} gone, '
                '{remaining} left', dynamic_ncols=True)


def title(network) -> str:
    """Of the page."""
    from resnet_jax import models

    return f'What {models.title(network.config.model)} has learnt'


def device() -> str:
    """What computes, in words."""
    import os

    import jax

    kind = jax.devices()[0].device_kind
    return f'{os.cpu_count()} CPU cores' if kind == 'cpu' else f'{jax.device_count()} x {kind}'


if __name__ == '__main__':
    cli.run(main, takes_files=True)
