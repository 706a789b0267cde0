"""Compares the throughput of this input pipeline and others on the same files.

    python experiments/benchmarks/input_pipeline.py --path=FOLDER --json=result.json

Every pipeline reads the encoded images of an image folder, takes a random resized crop of 224
pixels, flips half of them, and yields uint8 batches. Each runs in its own process, bound to a fixed
number of cores. Passes are interleaved, and the median over the passes is reported. Batches that
were prefetched while others ran are discarded before a pass is timed. The table also has images per
second of processor time, workers included, on one core, which depends less on other load.

TensorFlow's and PyTorch's pipelines are included if these packages are installed.
"""

import glob
import importlib.util
import os
import pathlib
import statistics
import tempfile

import turns
from absl import flags

from resnet_jax import cli
from resnet_jax.distributed.cores import core_numbers
from resnet_jax.errors import UserError

PATH = flags.DEFINE_string('path', None, 'Image folder with a split called test or val.')
JSON = flags.DEFINE_string('json', '', 'File for the result.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed passes of each pipeline.', 1)
IMAGES = flags.DEFINE_integer('images', 1000, 'Images per pass.', 1)

SIZE = 224
BATCH = 50
SHORTER_SIDE, QUALITY = 256, 92  # of the prepared shards
DISCARDED = 24  # batches: more than any of the pipelines keeps ahead


def ours(source: str, path: str, processes: bool, cores: int):
    """This project's host pipeline, on the CPU as its device: a thread or a process per core."""
    import jax
    from jax.sharding import Mesh

    from resnet_jax import config as config_lib
    from resnet_jax import data as data_lib
    from resnet_jax.data.augment import augmentation
    from resnet_jax.data.host import Host
    from resnet_jax.data.transforms import train_transform

    config = config_lib.default()
    data = config.data
    data.source, data.path, data.image_size = source, path, SIZE
    data.train_crop, data.flip = 'random_resized', True
    pipeline = Host(
        data_lib.create_source(config, 'test'), Mesh(jax.devices(), 'data'), BATCH,
        train_transform(config), augmentation(config), seed=0,
        threads=1 if processes else cores, workers=cores if processes else 0,
        chunk_size=data.chunk_size, batches_ahead=data.batches_ahead, skip_unreadable=False)
    return (inputs['image'] for inputs in pipeline.inputs(0))


def tf_data(path: str, antialias: bool, cores: int):
    """tf.data with the fused decode-and-crop of the reference ResNet pipelines.

    These resample without antialiasing, unlike the pipelines of PyTorch and of this project.

    Args:
      path: of the images.
      antialias: whether to do it all the same.
      cores: to compute on.
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)

    def example(file):
        encoded = tf.io.read_file(file)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded), tf.zeros([0, 0, 4]), min_object_covered=0.0,
            area_range=(0.08, 1), aspect_ratio_range=(3 / 4, 4 / 3), max_attempts=10,
            use_image_if_no_bounding_boxes=True)
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, [SIZE, SIZE], antialias=antialias)
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    dataset = tf.data.Dataset.from_tensor_slices(_files(path)).repeat()
    dataset = dataset.map(example, num_parallel_calls=cores).batch(BATCH).prefetch(2)
    return dataset.with_options(options).as_numpy_iterator()


class PillowImages:
    """What a PyTorch DataLoader reads: the files again and again, decoded by Pillow."""

    def __init__(self, files: list[str]):
        self.files = files

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int):
        import numpy as np
        import torch
        from PIL import Image

        from resnet_jax.data import crops

        rng = crops.generator(0, index)
        with Image.open(self.files[index % len(self.files)]) as file:
            image = file.convert('RGB')
        region = crops.random_resized_crop(image.height, image.width, rng, (0.08, 1),
                                           (3 / 4, 4 / 3))
        image = image.crop((region.left, region.top, region.left + region.width,
                            region.top + region.height))
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if rng.integers(2):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image))


def data_loader(path: str, cores: int):
    """PyTorch's DataLoader with a worker process a core, around Pillow."""
    import torch

    torch.set_num_threads(1)
    return iter(torch.utils.data.DataLoader(
        PillowImages(_files(path)), BATCH, num_workers=cores))


def _files(path: str) -> list[str]:
    return sorted(file for split in ('test', 'val')
                  for file in glob.glob(os.path.join(path, split, '*', '*')))


def contender(pipeline, *arguments):
    """A pipeline that makes this many images per pass; see `turns.take_turns`."""
    os.environ |= {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
    batches = pipeline(*arguments)

    def run(images: int) -> dict[str, float]:
        for _ in range(DISCARDED):
            next(batches)
        return turns.timed(lambda: [next(batches) for _ in range(images // BATCH)])

    return {}, run


def measure(pipelines: dict, cores: list[int], repeats: int, images: int) -> dict:
    """Name: (images/s, images per second of processor time) of every pass, taking turns."""
    outcomes = turns.take_turns(
        {name: (contender, *arguments, len(cores)) for name, arguments in pipelines.items()},
        repeats, images, cores)
    images = images // BATCH * BATCH
    return {name: [(images / one['seconds'], images / one['processor_seconds'])
                   for one in outcome.passes] for name, outcome in outcomes.items()}


def columns(results: dict) -> dict[str, dict[str, list[float]]]:
    """Column of the table: pipeline: rates of the passes."""
    made = {'per core-second': {
        name: [cpu for _, cpu in passes] for name, passes in results[1].items()}}
    for n, by_name in results.items():
        made[f'{n} core{"s" * (n > 1)}'] = {
            name: [rate for rate, _ in passes] for name, passes in by_name.items()}
    return made


def table(made: dict[str, dict[str, list[float]]]) -> str:
    """Medians in images/s and their ratio to the first row, a row a pipeline."""
    first = next(iter(made.values()))
    rows = []
    for name in first:
        cells = [name]
        for rates in made.values():
            own, reference = (statistics.median(rates[x]) for x in (name, next(iter(first))))
            cells += [f'{own:.0f}', f'{own / reference:.2f}']
        rows.append(cells)
    return turns.table(['images/s', *(cell for name in made for cell in (name, 'ratio'))], rows)


def main(argv) -> None:
    del argv
    if not _files(PATH.value):
        raise UserError('--path must name an image folder with a split called test or val.')
    with tempfile.TemporaryDirectory() as folder:
        from resnet_jax.data.folder import open_folder
        from resnet_jax.data.shard_writer import prepare

        available = core_numbers()
        prepare(open_folder(PATH.value, 'test'), 'test', pathlib.Path(folder),
                shorter_side=SHORTER_SIDE, quality=QUALITY, images_per_shard=1000,
                processes=1, skip_unreadable=False)
        pipelines = {'this pipeline': (ours, 'folder', PATH.value, False),
                     'this pipeline, processes': (ours, 'folder', PATH.value, True),
                     'this pipeline, prepared shards': (ours, 'shards', folder, False)}
        if importlib.util.find_spec('tensorflow'):
            pipelines['tf.data, fused decode and crop'] = (tf_data, PATH.value, False)
            pipelines['tf.data, antialiased'] = (tf_data, PATH.value, True)
        if importlib.util.find_spec('torch'):
            pipelines['PyTorch DataLoader, Pillow'] = (data_loader, PATH.value)
        results = {n: measure(pipelines, available[:n], REPEATS.value, IMAGES.value)
                   for n in sorted({1, min(2, len(available)), len(available)})}
    made = columns(results)
    print(table(made))
    turns.write_json(JSON.value, {
        'unit': 'images/s',
        'repeats': REPEATS.value, 'images_a_pass': IMAGES.value,
        'rates': {column: {name: {'median': round(statistics.median(rates), 1),
                                  'passes': [round(rate, 1) for rate in rates]}
                           for name, rates in by_name.items()}
                  for column, by_name in made.items()}})


if __name__ == '__main__':
    cli.run(main, needs=['--path=FOLDER'])
