"""Reads every image of a dataset once and reports its contents and damaged images.

  python -m resnet_jax.data.check --path=IMAGENET
  python -m resnet_jax.data.check --source=voc --path=VOCdevkit/VOC2007
  python -m resnet_jax.data.check --benchmark --config=configs/imagenet_r50.py \\
      --config.data.source=shards --config.data.path=imagenet256

Exits with status 1 if an image cannot be decoded, or a box leaves its image or
has no area; with --bad_boxes=skip, boxes of no area are left out.

--benchmark measures the images per second of a config's training pipeline on this
host instead, and prints how many accelerators of each kind that feeds.
"""

import collections
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from resnet_jax import cli
from resnet_jax.data import benchmark, command, decode
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.object_report import ObjectReport, class_table
from resnet_jax.data.types import Source, Tree
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError

flags.adopt_module_key_flags(command)
CONFIG = cli.config_flag()
BENCHMARK = flags.DEFINE_bool(
    'benchmark', False, 'Measure the pipeline of --config instead of checking a dataset.')
IMAGES = flags.DEFINE_integer('images', 2000, 'Images that --benchmark times.', 1)
JSON = cli.json_flag()

CHUNK = 64  # images a thread takes at a time
MOST_NAMED = 20  # mistakes of a kind that a table names
WRONG = ('unreadable', 'outside', 'no_area')  # what training would stop at


class Found(NamedTuple):
    """One image: its name, target, size and format; or what is wrong with it."""

    name: str
    target: Tree
    height: int
    width: int
    kind: str
    error: str


def examine(source: Source, index: int) -> Found:
    """Decodes an image in full."""
    try:
        item = source[index]
    except UserError as error:
        return Found('', {}, 0, 0, '', str(error))
    if isinstance(item.image, np.ndarray):
        return Found(item.name, item.target, *item.image.shape[:2], 'pixels', '')
    try:
        pixels = decode.decode(item.image, item.name, strict=True)
    except UnreadableImageError as error:
        return Found(item.name, item.target, 0, 0, '', str(error))
    return Found(item.name, item.target, *pixels.shape[:2], decode.image_format(item.image), '')


def check(source: Source, threads: int) -> dict[str, Any]:
    """The report on a source: counts, classes, sizes, formats, damage, and images/s.

    Of a source with objects also what `ObjectReport.report` says.
    """
    begin = time.perf_counter()
    found = list(tqdm(_examine_all(source, threads), total=len(source), unit=' images'))
    seconds = time.perf_counter() - begin
    good = [x for x in found if not x.error]
    report = {'images': len(found)}
    if classes := getattr(source, 'num_classes', None):
        report['classes'] = classes
        if hasattr(source, 'most_objects'):
            objects = ObjectReport(source)
            for x in good:
                objects.add(x.target, (x.height, x.width), x.name)
            report |= objects.report()
        else:
            labels = [x.target['label'] for x in found if 'label' in x.target]
            counts = np.bincount(np.array(labels, int), minlength=classes)
            report['images_per_class'] = {'least': int(counts.min()), 'most': int(counts.max())}
    report |= {
        'formats': dict(collections.Counter(x.kind for x in good)),
        'unreadable': [x.error for x in found if x.error],
        'images_per_second': round(len(found) / seconds, 1), 'fingerprint': source.fingerprint,
    }
    for side in ('height', 'width'):
        values = [getattr(x, side) for x in good] or [0]
        report[side] = {'least': min(values), 'median': float(np.median(values)),
                        'most': max(values)}
    return report


def _examine_all(source: Source, threads: int) -> Iterator[Found]:
    def chunk(start: int) -> list[Found]:
        return [examine(source, i) for i in range(start, min(start + CHUNK, len(source)))]

    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(chunk, range(0, len(source), CHUNK)):
            yield from found


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as text; of a kind of mistake, the first ones are named."""
    for name, value in report.items():
        if name == 'objects_per_class':
            yield from class_table(value)
            continue
        if isinstance(value, list):
            shown = value if name == 'unreadable' else value[:MOST_NAMED]
            yield from (error if name == 'unreadable' else f'{name.replace("_", " ")}: {error}'
                        for error in shown)
            if len(shown) < len(value):
                yield f'{name.replace("_", " ")}: …'
            value = len(value)
        elif isinstance(value, dict):
            value = ', '.join(f'{key} {x}' for key, x in value.items())
        yield f'{name.replace("_", " ")}: {value}'


def main(argv: Sequence[str]) -> None:
    del argv
    if BENCHMARK.value:
        if CONFIG.value is None:
            raise UserError('--benchmark needs --config=FILE, whose pipeline it measures.')
        jax.config.update('jax_platforms', 'cpu')  # leaves accelerators to others
        report = benchmark.measure(CONFIG.value, IMAGES.value)
        print(json.dumps(report) if JSON.value else '\n'.join(benchmark.lines(report)))
        return
    sources = {split: command.source_from_flags(split, report=True)
               for split in command.SPLITS.value}  # before time is spent on the first
    reports = {split: check(source, available_cores()) for split, source in sources.items()}
    if JSON.value:
        print(json.dumps(reports))
    else:
        for split, report in reports.items():
            for line in lines(report):
                print(f'{split}: {line}')
    if any(report.get(name) for report in reports.values() for name in WRONG):
        sys.exit(1)


if __name__ == '__main__':
    cli.run(main)
