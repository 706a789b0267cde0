"""Measures how many training images a host makes per second, beside what accelerators can take."""

import time
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnet_jax.data import fields
from resnet_jax.data.augment import augmentation
from resnet_jax.data.host import Host
from resnet_jax.data.pipelines import threads
from resnet_jax.data.registry import create_source
from resnet_jax.data.transforms import train_transform
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError
from resnet_jax.xla.topologies import CHIPS, GPUS

BATCH = 64
# A training step of ResNet-50 at 224 pixels in bfloat16, for one image, as XLA compiles it: for
# v5e:4x4 and 2,048 images (`resnet_jax.compile --config=configs/imagenet_pod.py:r50,v5e-16`), and
# for one H100 and 256 images (`experiments/benchmarks/gpu_traffic.py`).
FLOPS = 4.604e13 / 2048
TPU_BYTES, GPU_BYTES = 7.883e11 / 2048, 93.61e9 / 256
# Chips of a machine in a slice of many; Google Cloud's pages on each generation.
CHIPS_PER_HOST = {'v4': 4, 'v5e': 4, 'v5p': 4, 'v6e': 4}


def needs() -> dict[str, dict[str, float]]:
    """The most images per second of ResNet-50 that accelerators can train on: predictions.

    The time of a step is that of its FLOPs or of its bytes at the published peaks, whichever is
    longer. A real step takes longer.

    Returns:
      By the kind, such as 'v5e': 'per_chip' and 'per_host', images per second, and 'chips', the
      number of chips of a host.
    """
    made = {}
    for kind, chips in (*CHIPS_PER_HOST.items(), *((name, gpu.node) for name, gpu in GPUS.items())):
        chip, size = (GPUS[kind], GPU_BYTES) if kind in GPUS else (CHIPS[kind], TPU_BYTES)
        rate = 1 / max(FLOPS / chip.peak, size / chip.bandwidth)
        made[kind] = {'per_chip': rate, 'chips': chips, 'per_host': chips * rate}
    return made


def measure(config: ConfigDict, images: int) -> dict[str, Any]:
    """Times the host pipeline of a config on its training images.

    Args:
      config: of a classification run.
      images: how many are timed; the pipeline is filled before.

    Returns:
      'images_per_second', 'cores', 'threads', 'workers', and 'feeds': by the kind of accelerator,
      what `needs` returns and 'fed', how many chips this host keeps busy.

    Raises:
      UserError: a field of the config is wrong, data is missing or damaged, or the task has another
        pipeline.
    """
    if config.task != 'classification':
        raise UserError(f'--benchmark measures the pipeline of classification, not that of '
                        f'{config.task}.')
    fields.check(config)
    data = config.data
    pipeline = Host(
        create_source(config, 'train'), Mesh(jax.devices('cpu')[:1], 'data'), BATCH,
        train_transform(config), augmentation(config), seed=config.seed, threads=threads(config),
        workers=data.workers, chunk_size=data.chunk_size, batches_ahead=data.batches_ahead,
        skip_unreadable=data.on_unreadable == 'skip')
    batches = pipeline.inputs(0)
    try:
        for _ in range(2 * data.batches_ahead + 2):  # those that were made ahead
            next(batches)
        begin = time.perf_counter()
        count = -(-images // BATCH)
        for _ in range(count):
            next(batches)
        rate = count * BATCH / (time.perf_counter() - begin)
    finally:
        batches.close()
    return {
        'images_per_second': rate, 'cores': available_cores(), 'threads': threads(config),
        'workers': data.workers,
        'feeds': {kind: need | {'fed': rate / need['per_chip']} for kind, need in needs().items()}}


def lines(report: dict[str, Any]) -> list[str]:
    """A `measure` as text."""
    rate, cores = report['images_per_second'], report['cores']
    processes = report['workers'] or 1
    rows = [f'{kind:<6} {x["per_chip"]:>10,.0f} {x["fed"]:>8.2f} {x["chips"]:>10} '
            f'{x["per_host"]:>10,.0f} {x["per_host"] / (rate / cores):>8,.0f}'
            for kind, x in report['feeds'].items()]
    return [
        f'this host: {rate:,.0f} images/s on {cores} cores, {rate / cores:,.0f} per core, with '
        f'{processes} x {report["threads"]} threads (data.workers={report["workers"]})',
        '',
        f'{"chip":<6} {"images/s":>10} {"fed by":>8} {"chips per":>10} {"images/s":>10} '
        f'{"cores":>8}',
        f'{"":<6} {"per chip":>10} {"this one":>8} {"host":>10} {"per host":>10} {"needed":>8}',
        *rows, '',
        'Images/s per chip and per host are predictions: the most that ResNet-50 in bfloat16 can',
        'take by its FLOPs, its bytes and the published peaks. Cores needed: of this kind.']
