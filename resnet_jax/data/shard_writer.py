"""Writes a split of a dataset as ArrayRecord shards: in parallel, resumable and verified.

Every shard is written atomically, and a journal records the finished ones, so an interrupted run
resumes with the remaining ones.
"""

import functools
import io
import json
import multiprocessing
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tqdm import tqdm

from resnet_jax.data import crops, decode, records, shards
from resnet_jax.data.decode import Region, UnreadableImageError
from resnet_jax.data.sources import digest
from resnet_jax.data.types import Item, Source, Tree
from resnet_jax.errors import UserError

UNFINISHED = '.unfinished-'  # of shards that are being written
READ_AT_ONCE = 64  # records


def encoded(item: Item) -> Item:
    """The item with its image encoded: as it is, or pixels as PNG, which loses nothing."""
    if not isinstance(item.image, np.ndarray):
        return item
    file = io.BytesIO()
    Image.fromarray(item.image.squeeze()).save(file, 'PNG')
    return item._replace(image=file.getvalue())


def shrink(item: Item, shorter_side: int, quality: int) -> Item:
    """The item with its image resized, if its shorter side is longer than that.

    Boxes, points and areas follow the pixels. The image is decoded in any case, so that a damaged
    file is found.

    Args:
      item: with an encoded image.
      shorter_side: in pixels; 0: no limit.
      quality: of the JPEG, from 1 to 100.

    Raises:
      UnreadableImageError: the image is damaged.
    """
    height, width = decode.image_size(item.image, item.name)
    if not shorter_side or min(height, width) <= shorter_side:
        decode.decode(item.image, item.name)
        return item
    crop = crops.Crop(Region(0, 0, height, width, closed=True),
                      crops.resized(height, width, shorter_side))
    pixels = decode.decode_region(item.image, crop.region, crop.size, item.name, reduce=True)
    target = crop.target(item.target)
    if 'areas' in target:
        scale = crop.size[0] * crop.size[1] / (height * width)
        target['areas'] = (target['areas'] * scale).astype(np.float32)
    return Item(simplejpeg.encode_jpeg(pixels, quality, 'RGB', '420'), target, item.name)


def write_shard(path: pathlib.Path, source: Source, start: int, stop: int, shorter_side: int,
                quality: int, skip_unreadable: bool, record_format: int) -> dict[str, Any]:
    """Writes the items [start, stop) of a source; the file is there whole or not at all.

    Returns:
      The shard's description: name, num_images, bytes, checksum, class_counts (of images, or of
      objects where the target has `classes`; [] without classes), skipped.
    """
    temporary = path.with_name(UNFINISHED + path.name)
    writer = ArrayRecordWriter(str(temporary), shards.WRITER_OPTIONS)
    checksum, count, counts, skipped = 0, 0, _no_counts(source), []
    for i in range(start, stop):
        try:
            item = shrink(encoded(source[i]), shorter_side, quality)
        except UnreadableImageError as error:
            if not skip_unreadable:
                raise
            skipped.append(str(error))
            continue
        record = records.WRITERS[record_format](item)
        writer.write(record)
        checksum, count = zlib.crc32(record, checksum), count + 1
        _count(counts, item.target)
    writer.close()
    os.replace(temporary, path)
    return {'name': path.name, 'num_images': count, 'bytes': path.stat().st_size,
            'checksum': checksum, 'class_counts': counts.tolist(), 'skipped': skipped}


def verify_shard(folder: pathlib.Path, shard: dict[str, Any], record_format: int) -> str:
    """Reads a shard and compares it with its description: '' or what is wrong."""
    path, unpack = folder / shard['name'], records.READERS[record_format]
    checksum, count, counts = 0, 0, np.zeros(len(shard['class_counts']), int)
    try:
        if path.stat().st_size != shard['bytes']:
            return f'{path} has {path.stat().st_size} bytes instead of {shard["bytes"]}'
        reader = ArrayRecordReader(str(path))
        for start in range(0, reader.num_records(), READ_AT_ONCE):
            for record in reader.read(range(start, min(start + READ_AT_ONCE,
                                                       reader.num_records()))):
                checksum, count = zlib.crc32(record, checksum), count + 1
                _count(counts, unpack(record).target)
    except Exception as error:  # the reader raises whatever the damage leads to
        return f'{path} cannot be read: {error}'
    if (checksum, count, counts.tolist()) != (
            shard['checksum'], shard['num_images'], shard['class_counts']):
        return f'{path} does not hold what was written'
    return ''


def prepare(source: Source, split: str, output: pathlib.Path, *, shorter_side: int, quality: int,
            images_per_shard: int, processes: int, skip_unreadable: bool) -> dict[str, Any]:
    """Writes what is missing of a prepared split, verifies all of it, and describes it.

    Args:
      source: of encoded images.
      split: its name in the output, 'train' or 'test'.
      output: the folder.
      shorter_side, quality: see `shrink`.
      images_per_shard: of the source.
      processes: that write; as many threads verify.
      skip_unreadable: leave out damaged images instead of an error.

    Returns:
      The description that is written to `split.json`.

    Raises:
      UserError: an image is damaged, or a shard is not as it was written.
    """
    output.mkdir(parents=True, exist_ok=True)
    for leftover in output.glob(f'{UNFINISHED}{split}-*'):
        leftover.unlink()
    num_shards = -(-len(source) // images_per_shard)
    settings = (source.fingerprint, shorter_side, quality, images_per_shard, skip_unreadable)
    record_format, job = records.FORMAT, digest(*settings, records.FORMAT)
    if _begun_in_format_1(output, split, old_job := digest(*settings)):
        record_format, job = 1, old_job
    journal = _journal(output, split, job)
    done = _done(output, split, job, journal)
    tasks = {}
    for i in range(num_shards):
        name = shards.shard_name(split, i, num_shards)
        if name not in done:
            start = i * images_per_shard
            tasks[name] = functools.partial(
                write_shard, output / name, source, start,
                min(start + images_per_shard, len(source)), shorter_side, quality,
                skip_unreadable, record_format)
    with (tqdm(total=len(source), initial=len(source) - sum(
                   task.args[3] - task.args[2] for task in tasks.values()),
               desc=f'{split}: write', unit=' images') as bar,
          journal.open('a', encoding='utf-8') as file):
        for name, shard in _each(tasks, processes):
            done[name] = shard
            file.write(json.dumps(shard) + '\n')
            file.flush()
            bar.update(tasks[name].args[3] - tasks[name].args[2])
    ordered = [done[shards.shard_name(split, i, num_shards)] for i in range(num_shards)]
    counts = np.sum([shard['class_counts'] for shard in ordered], axis=0, dtype=int)
    info = {
        'format': record_format, 'job': job, 'source_fingerprint': source.fingerprint,
        'shorter_side': shorter_side, 'quality': quality,
        'num_images': sum(shard['num_images'] for shard in ordered),
        'num_classes': getattr(source, 'num_classes', None),
        'class_names': list(getattr(source, 'class_names', ())), 'class_counts': counts.tolist(),
        **_of_objects(source), 'shards': ordered,
    }
    verify(info, split, output, processes)
    if info['num_images'] + sum(len(x['skipped']) for x in ordered) != len(source):
        raise UserError(f'{output} holds {info["num_images"]} of {len(source)} images.')
    temporary = output / f'{UNFINISHED}{split}.json'
    temporary.write_text(json.dumps(info, indent=1))
    os.replace(temporary, output / f'{split}.json')
    journal.unlink()
    return info


def verify(info: dict[str, Any], split: str, output: pathlib.Path, threads: int) -> None:
    """Reads all shards of a split again.

    Raises:
      UserError: a shard is damaged; the message names it. It is deleted, to be written again.
    """
    tasks = {shard['name']: functools.partial(verify_shard, output, shard, info['format'])
             for shard in info['shards']}
    problems = {}
    with (tqdm(total=len(tasks), desc=f'{split}: verify', unit=' shards') as bar,
          ThreadPoolExecutor(threads) as pool):  # reading and checksums leave the interpreter
        futures = {pool.submit(task): name for name, task in tasks.items()}
        for future in as_completed(futures):
            if future.result():
                problems[futures[future]] = future.result()
            bar.update()
    for name in problems:
        (output / name).unlink(missing_ok=True)
    if problems:
        raise UserError(f'{"; ".join(problems.values())}. The damaged shards were deleted: run '
                        f'`{shards.PREPARE}` again as before, which writes only these.')


def _done(output: pathlib.Path, split: str, job: str,
          journal: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Descriptions of the shards of this very job that are there in full, by name."""
    described = []
    if (info := _description(output, split)).get('job') == job:
        described += info['shards']
    if journal.is_file():
        for line in journal.read_text(encoding='utf-8').splitlines():
            try:
                described.append(json.loads(line))
            except ValueError:  # cut off by the interruption
                continue
    return {shard['name']: shard for shard in described
            if (output / shard['name']).is_file()
            and (output / shard['name']).stat().st_size == shard['bytes']}


def _description(output: pathlib.Path, split: str) -> dict[str, Any]:
    path = output / f'{split}.json'
    return json.loads(path.read_text()) if path.is_file() else {}


def _journal(output: pathlib.Path, split: str, job: str) -> pathlib.Path:
    return output / f'.{split}-{job}.jsonl'


def _begun_in_format_1(output: pathlib.Path, split: str, job: str) -> bool:
    """Whether an earlier version has prepared this very split, in part or whole.

    It keeps its format: runs that started with these shards would not find others unchanged.
    """
    return (_journal(output, split, job).is_file()
            or _description(output, split).get('job') == job)


def _no_counts(source: Source) -> np.ndarray:
    """A zero for each class."""
    return np.zeros(getattr(source, 'num_classes', None) or 0, int)


def _count(counts: np.ndarray, target: Tree) -> None:
    """Adds an image's class, or the classes of its objects, to the counts of all classes."""
    if len(counts):
        np.add.at(counts, target['classes'] if 'classes' in target else target['label'], 1)


def _of_objects(source: Source) -> dict[str, Any]:
    """What a source with objects has besides its classes; see `resnet_jax.data.boxes`."""
    return {name: np.asarray(getattr(source, name)).tolist()
            for name in ('most_objects', 'category_ids') if hasattr(source, name)}


def _each(tasks: dict[str, Callable[[], Any]], processes: int) -> Iterator[tuple[str, Any]]:
    """(name, result) of every task, as they finish."""
    if processes == 1 or len(tasks) <= 1:
        for name, task in tasks.items():
            yield name, task()
        return
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(min(processes, len(tasks)), context) as pool:
        futures = {pool.submit(task): name for name, task in tasks.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)
