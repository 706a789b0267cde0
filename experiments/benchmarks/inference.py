"""Times the inference of a ResNet on a CPU, beside PyTorch and onnxruntime, in turns in one run.

  python experiments/benchmarks/inference.py --batch_size=16

Contenders are this program, torchvision's network in PyTorch's usual layout and in channels-last,
and onnxruntime with the file that PyTorch's exporter makes of that network. Weights and images are
made up; an image has 224 x 224 pixels and is normalised already.
"""

import pathlib
import tempfile

import numpy as np
import turns
from absl import flags

from resnet_jax import cli
from resnet_jax.distributed.cores import available_cores

DEPTH = flags.DEFINE_enum('depth', '50', ['18', '34', '50', '101', '152'], 'Layers.')
SIZE = flags.DEFINE_integer('image_size', 224, 'Height and width of an image.', 32)
BATCH = flags.DEFINE_integer('batch_size', 1, 'Images that a network is given at once.', 1)
REPEATS = flags.DEFINE_integer('repeats', 7, 'Passes of each contender.', 1)
UNITS = flags.DEFINE_integer('units', 2, 'Batches in a pass.', 1)
JSON = flags.DEFINE_string('json', '', 'File for the result.')

OURS, TORCH, ONNX = 'this program', 'PyTorch', 'onnxruntime'
CHANNELS_LAST = f'{TORCH}, channels-last'


def images(batch: int, size: int) -> np.ndarray:
    """Made-up images, float32 [N, H, W, 3]."""
    return np.random.default_rng(0).standard_normal((batch, size, size, 3), np.float32)


def ours(depth: str, batch: int, size: int):
    """This program; a contender of `turns.take_turns`."""
    import jax

    import resnet_jax
    from resnet_jax.xla import cpu

    cpu.compute_in_main_thread()
    cpu.keep_memory()
    network, x = resnet_jax.create(f'resnet{depth}'), jax.device_put(images(batch, size))
    variables = jax.jit(lambda key: network.init(key, x[:1], train=False))(jax.random.key(0))
    run = jax.jit(lambda variables, x: network.apply(variables, x, train=False))
    return turns.passes(lambda: float(run(variables, x).sum()))


def pytorch(depth: str, batch: int, size: int, layout: str, threads: int):
    """torchvision's network; a contender of `turns.take_turns`."""
    torch, network = _network(depth)
    torch.set_num_threads(threads)
    layout = getattr(torch, layout)
    network = network.to(memory_format=layout)
    x = torch.from_numpy(images(batch, size).transpose(0, 3, 1, 2)).contiguous(memory_format=layout)

    @torch.inference_mode()
    def work() -> float:
        return float(network(x).sum())

    return turns.passes(work)


def onnx(depth: str, batch: int, size: int, threads: int):
    """onnxruntime; a contender of `turns.take_turns`."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise turns.NotRun('onnxruntime and onnxscript are not installed') from error
    torch, network = _network(depth)
    x = np.ascontiguousarray(images(batch, size).transpose(0, 3, 1, 2))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'network.onnx'
        torch.onnx.export(network, (torch.from_numpy(x),), path, input_names=['images'],
                          external_data=False, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options)
    return turns.passes(lambda: float(session.run(None, {'images': x})[0].sum()))


def _network(depth: str):
    try:
        import torch
        import torchvision
    except ImportError as error:
        raise turns.NotRun('torchvision is not installed') from error
    torch.manual_seed(0)
    return torch, getattr(torchvision.models, f'resnet{depth}')().eval()


def main(_) -> None:
    cores, shape = available_cores(), (DEPTH.value, BATCH.value, SIZE.value)
    outcomes = turns.take_turns({
        OURS: (ours, *shape),
        TORCH: (pytorch, *shape, 'contiguous_format', cores),
        CHANNELS_LAST: (pytorch, *shape, 'channels_last', cores),
        ONNX: (onnx, *shape, cores),
    }, REPEATS.value, UNITS.value)
    rows, lines = {}, []
    for name, outcome in outcomes.items():
        if outcome.not_run:
            rows[name] = {'not_run': outcome.not_run}
            lines.append([name, 'not run', '', ''])
            continue
        milliseconds = [1e3 * outcome.median(key) / BATCH.value
                        for key in ('seconds', 'processor_seconds')]
        speed = turns.ratio(outcome, outcomes[OURS], 'seconds')
        rows[name] = {'milliseconds': milliseconds[0], 'processor_milliseconds': milliseconds[1],
                      'speed_of_ours': speed, 'result': outcome.facts['result']}
        lines.append([name, *(f'{value:.1f}' for value in milliseconds), f'{speed:.2f}'])
    print(f'ResNet-{DEPTH.value}, {BATCH.value} images of {SIZE.value} x {SIZE.value} at once, '
          f'{cores} cores\n')
    print(turns.table(['', 'ms per image', 'processor ms', 'time over ours'], lines))
    turns.write_json(JSON.value, {'depth': int(DEPTH.value), 'batch_size': BATCH.value,
                                  'image_size': SIZE.value, 'rows': rows})


if __name__ == '__main__':
    cli.run(main)
