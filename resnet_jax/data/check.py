"""Reads every image of a dataset once and reports its contents and damaged images.

    python -m resnet_jax.data.check --path=IMAGENET

Exits with status 1 if an image cannot be decoded.
"""

import collections
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

from resnet_jax import cli
from resnet_jax.data import command, decode
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.types import Source
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError

JSON = cli.json_flag()
flags.adopt_module_key_flags(command)

CHUNK = 64  # images a thread takes at a time


class Found(NamedTuple):
    """One image: its label, or -1 without one, its size, its format; or what is wrong with it."""

    label: int
    height: int
    width: int
    kind: str
    error: str


def examine(source: Source, index: int) -> Found:
    """Decodes an image in full."""
    try:
        item = source[index]
    except UserError as error:
        return Found(-1, 0, 0, '', str(error))
    label = int(item.target.get('label', -1))
    if isinstance(item.image, np.ndarray):
        return Found(label, *item.image.shape[:2], 'pixels', '')
    try:
        pixels = decode.decode(item.image, item.name, strict=True)
    except UnreadableImageError as error:
        return Found(label, 0, 0, '', str(error))
    return Found(label, *pixels.shape[:2], decode.image_format(item.image), '')


def check(source: Source, threads: int) -> dict[str, Any]:
    """The report on a source: counts, classes, sizes, formats, damage, and images/s."""
    begin = time.perf_counter()
    found = list(tqdm(_examine_all(source, threads), total=len(source), unit=' images'))
    seconds = time.perf_counter() - begin
    good = [x for x in found if not x.error]
    report = {'images': len(found)}
    if classes := getattr(source, 'num_classes', None):
        counts = np.bincount([x.label for x in found if x.label >= 0], minlength=classes)
        report |= {'classes': classes, 'images_per_class': {
            'least': int(counts.min()), 'most': int(counts.max())}}
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


def main(argv: Sequence[str]) -> None:
    del argv
    reports = {split: check(command.source_from_flags(split), available_cores())
               for split in command.SPLITS.value}
    if JSON.value:
        print(json.dumps(reports))
    else:
        for split, report in reports.items():
            for name, value in report.items():
                if name == 'unreadable':
                    for error in value:
                        print(f'{split}: {error}')
                    value = len(value)
                elif isinstance(value, dict):
                    value = ', '.join(f'{key} {x}' for key, x in value.items())
                print(f'{split}: {name.replace("_", " ")}: {value}')
    if any(report['unreadable'] for report in reports.values()):
        sys.exit(1)


if __name__ == '__main__':
    cli.run(main)
