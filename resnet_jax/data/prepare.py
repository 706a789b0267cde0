"""Writes a dataset to ArrayRecord shards, optionally resized, and verifies them.

    python -m resnet_jax.data.prepare --path=IMAGENET --output=DIR --shorter_side=256
    python -m resnet_jax.data.prepare --source=scenes --format=voc --output=DIR

Run the same command again after an interruption; shards that are finished are
not written again. Train on the result with `data.source=shards`;
`resnet_jax.data.shards` describes the format. Datasets with boxes can also be
written in the layout of Pascal VOC or COCO.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from resnet_jax import cli, storage
from resnet_jax.data import command, object_writer
from resnet_jax.data.shard_writer import prepare, verify
from resnet_jax.data.shards import Shards
from resnet_jax.data.types import Source
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError

OUTPUT = cli.flag(flags.DEFINE_string, 'output', None, 'Folder to write the shards to.')
FORMAT = cli.flag(
    flags.DEFINE_enum, 'format', 'shards', ('shards', *object_writer.FORMATS),
    'What to write: shards, or, of datasets with boxes, the folders and annotations of Pascal VOC '
    'or COCO.')
SHORTER_SIDE = cli.flag(
    flags.DEFINE_integer, 'shorter_side', 0,
    'Resize images whose shorter side is longer than this, and save them as JPEG; 0: keep every '
    'file as it is.')
QUALITY = cli.flag(
    flags.DEFINE_integer, 'quality', 92, 'JPEG quality of resized images.', 1, 100)
IMAGES_PER_SHARD = cli.flag(
    flags.DEFINE_integer, 'images_per_shard', 1000, 'Images per shard.', 1)
PROCESSES = cli.flag(
    flags.DEFINE_integer, 'processes', 0, 'Number of processes; 0: one per core.', 0)
SKIP_UNREADABLE = cli.flag(
    flags.DEFINE_bool, 'skip_unreadable', False,
    'Leave out images that cannot be decoded, and list them.')
VERIFY = cli.flag(flags.DEFINE_bool, 'verify', False, 'Only verify the shards in --output.')
flags.adopt_module_key_flags(command)


def main(argv: Sequence[str]) -> None:
    del argv
    if storage.in_bucket(OUTPUT.value):
        raise UserError(f'--output={OUTPUT.value} is in a bucket: write to a local folder, and '
                        'copy it with `gcloud storage cp -r` or `aws s3 sync`.')
    output = pathlib.Path(OUTPUT.value).expanduser()
    processes = PROCESSES.value or available_cores()
    if FORMAT.value != 'shards':
        write_objects(output, processes)
        return
    sources: dict[str, Source] = {} if VERIFY.value else sources_from_flags()
    for split in command.SPLITS.value:
        if VERIFY.value:
            info = Shards(OUTPUT.value, split).info
            verify(info, split, output, processes)
        else:
            info = prepare(
                sources[split], split, output,
                shorter_side=SHORTER_SIDE.value, quality=QUALITY.value,
                images_per_shard=IMAGES_PER_SHARD.value, processes=processes,
                skip_unreadable=SKIP_UNREADABLE.value)
        counts, skipped = info['class_counts'], [x for s in info['shards'] for x in s['skipped']]
        counted = 'objects' if 'most_objects' in info else 'images'
        classes = counts and (f'{len(counts)} classes of {min(counts)} to {max(counts)} '
                              f'{counted}, ')
        for error in skipped:
            print(f'skipped: {error}')
        print(f'{split}: {info["num_images"]} images in {len(info["shards"])} shards, '
              f'{sum(s["bytes"] for s in info["shards"]) / 1e6:.1f} MB, {classes or ""}'
              f'{len(skipped)} skipped; verified.')


def sources_from_flags() -> dict[str, Source]:
    """All splits that the flags name, before time is spent on the first."""
    return {split: command.source_from_flags(split) for split in command.SPLITS.value}


def write_objects(output: pathlib.Path, threads: int) -> None:
    """Writes all splits in the layout of Pascal VOC or COCO."""
    if VERIFY.value:
        raise UserError('--verify is for shards; use `python -m resnet_jax.data.check '
                        f'--source={FORMAT.value} --path={OUTPUT.value}`.')
    sources = sources_from_flags()
    for split, source in sources.items():
        object_writer.check(source, split, output, FORMAT.value)
    found = {split: object_writer.write_images(
        source, split, output, FORMAT.value, shorter_side=SHORTER_SIDE.value,
        quality=QUALITY.value, threads=threads, skip_unreadable=SKIP_UNREADABLE.value)
        for split, source in sources.items()}
    for split, written in found.items():
        object_writer.write_list(written, sources[split], split, output, FORMAT.value)
        skipped = [x.error for x in written if x.error]
        for error in skipped:
            print(f'skipped: {error}')
        objects = sum(len(x.target['boxes']) for x in written if not x.error)
        print(f'{split}: {len(written) - len(skipped)} images with {objects} objects, '
              f'{len(skipped)} skipped.')


if __name__ == '__main__':
    cli.run(main, needs=['--output=DIR'])
