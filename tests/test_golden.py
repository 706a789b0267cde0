"""The first five steps, as they were when this file was written: whatever is rearranged, they stay.

The runs start from weights that NumPy draws in the order of the tree's leaves, since those that
Flax draws depend on the names of the parameters. What was measured from Flax's, before that, stays
in golden.json as "from Flax's initial weights", and can be compared with commits of that time only.

`python -m tests.test_golden` measures the rest of golden.json anew, which is due only where the
mathematics is changed on purpose. The bits depend on the processor, the version of jaxlib and the
options of XLA; they are compared where golden.json has some of this kind, the metrics everywhere.
"""

import hashlib
import itertools
import json
import os
import pathlib
import platform
import sys
import tempfile

import jax
import jaxlib
import numpy as np
import pytest

from resnet_jax import models
from resnet_jax.training import loop
from resnet_jax.weights import Weights, stored
from tests import tiny

SECTION = "from NumPy's initial weights"
FILE = pathlib.Path(__file__).parent / 'golden.json'
METRICS = ('train/loss', 'train/top1_error', 'train/gradient_norm', 'train/parameter_norm')
STEPS, RESUMED_AT = 5, 3
# Of XLA, for the bits.
FLAGS = ('--xla_force_host_platform_device_count=8 --xla_llvm_disable_expensive_passes=true '
         '--xla_backend_optimization_level=1')

# Every pipeline, loop and number of devices.
CASES = {f'{pipeline}, {"unrolled" if unroll else "scanned"}, {devices} devices':
         {'data.pipeline': pipeline, 'model.unroll': unroll, 'mesh.data': devices}
         for pipeline, unroll, devices in itertools.product(
             ('resident', 'host'), (True, False), (1, 8))}


def config(case, num_steps):
    """The tiny config, deep enough that each stage repeats a block."""
    new = tiny.config()
    new.model.depth = 14
    new.model.width = 4
    new.schedule.warmup = 'linear'
    new.schedule.warmup_steps = 4
    new.data.crop_padding = 1
    new.data.flip = True
    new.num_steps = num_steps
    new.log.every_steps = 1
    new.eval.every_steps = None
    new.checkpoint.every_steps = None
    for field, value in CASES[case].items():
        new.update_from_flattened_dict({field: value})
    return new


def write_initial_weights(folder):
    """What the runs start from, whatever the parameters are called."""
    new, rng = config(next(iter(CASES)), STEPS), np.random.default_rng(0)
    model = models.create(new.model)
    images = np.zeros((1, new.data.image_size, new.data.image_size, new.data.channels), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def draw(path, leaf):
        mean, deviation = {'scale': (1, 0.2), 'bias': (0, 0.1), 'mean': (0, 0), 'var': (1, 0)}.get(
            path[-1].key, (0, np.sqrt(2 / np.prod(leaf.shape[-4:-1]))))
        return rng.normal(mean, deviation, leaf.shape).astype(np.float32)

    normalization = {'mean': np.float32([0.3]), 'std': np.float32([0.4])}
    stored.write(folder, Weights(
        new, jax.tree.map_with_path(draw, shapes), normalization, 'NumPy'))


def kind_of_machine():
    """What the bits depend on. Processors of one name may differ in their instructions."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        cpu = dict(map(str.strip, line.split(':', 1)) for line in lines if ':' in line)
        flags = hashlib.sha256(' '.join(sorted(cpu['flags'].split())).encode()).hexdigest()[:8]
        model = f'{cpu["model name"]} {cpu["cpu family"]}.{cpu["model"]} {flags}'
    except (OSError, KeyError):
        model = platform.processor()
    return f'jaxlib {jaxlib.__version__}, {model}'


def measure(case, workdir):
    """Trains three steps and resumes for two: metrics by step, and a digest of all weights."""
    write_initial_weights(workdir / 'initial')
    for num_steps in (RESUMED_AT, STEPS):
        new = config(case, num_steps)
        new.init.checkpoint, new.init.new_head = str(workdir / 'initial'), False
        loop.train(new, workdir)
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    steps = [[row[name] for name in METRICS] for row in rows if 'train/loss' in row]
    evaluation = [row['eval/loss'] for row in rows if 'eval/loss' in row]
    return {'train': steps, 'eval/loss': evaluation, 'bits': digest(stored.read(workdir).variables)}


def digest(variables):
    """Of the arrays, whatever they are called."""
    def leaves(tree):
        return [tree] if not hasattr(tree, 'values') else [
            leaf for child in tree.values() for leaf in leaves(child)]

    return hashlib.sha256(b''.join(sorted(
        hashlib.sha256(str(leaf.shape).encode() + np.asarray(leaf).tobytes()).digest()
        for leaf in leaves(variables)))).hexdigest()[:16]


def assert_same_metrics(measured, golden):
    assert len(measured['train']) == STEPS
    np.testing.assert_allclose(measured['train'], golden['train'], rtol=1e-3)
    np.testing.assert_allclose(measured['eval/loss'], golden['eval/loss'], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_the_first_five_steps_are_those_of_old(case, tmp_path, commands):
    golden = json.loads(FILE.read_text())[SECTION][case]
    result = commands.run('tests.test_golden', case, tmp_path, env={'XLA_FLAGS': FLAGS})
    assert result.status == 0, result.errors
    measured = json.loads(result.output.splitlines()[-1])
    assert_same_metrics(measured, golden)
    if bits := golden['bits'].get(kind_of_machine()):
        assert measured['bits'] == bits


def main(*arguments):
    """Prints what is measured of a case in a folder; or writes golden.json."""
    os.environ['XLA_FLAGS'] = FLAGS  # JAX reads it as it starts
    if arguments and arguments[0] in CASES:
        print(json.dumps(measure(arguments[0], pathlib.Path(arguments[1]))))
        return
    file = json.loads(FILE.read_text())
    golden = file.setdefault(SECTION, {})
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            new = measure(case, pathlib.Path(folder))
        bits = golden.get(case, {}).get('bits', {}) if '--keep' in arguments else {}
        golden[case] = new | {'bits': bits | {kind_of_machine(): new['bits']}}
    FILE.write_text(json.dumps(file, indent=1) + '\n')


if __name__ == '__main__':
    main(*sys.argv[1:])
