"""The first five steps, as they were when this file was written: whatever is rearranged, they stay.

`python -m tests.test_golden` measures golden.json anew, which is due only where the mathematics is
changed on purpose. The bits depend on the processor and the version of jaxlib, and are compared
where golden.json has some of this kind; the metrics are compared everywhere.
"""

import hashlib
import itertools
import json
import pathlib
import platform
import sys
import tempfile

if __name__ == '__main__':
    from tests import conftest  # noqa: F401  (sets the number of devices before jax is imported)

import jaxlib
import numpy as np
import pytest

from resnet_jax.training import loop
from resnet_jax.weights import stored
from tests import tiny

FILE = pathlib.Path(__file__).parent / 'golden.json'
METRICS = ('train/loss', 'train/top1_error', 'train/gradient_norm', 'train/parameter_norm')
STEPS, RESUMED_AT = 5, 3

# Every pipeline, loop and number of devices.
CASES = {f'{pipeline}, {"unrolled" if unroll else "scanned"}, {devices} devices':
         {'data.pipeline': pipeline, 'model.unroll': unroll, 'mesh.data': devices}
         for pipeline, unroll, devices in itertools.product(
             ('resident', 'host'), (True, False), (1, 8))}
QUICK = ('resident, scanned, 1 devices',)


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


def kind_of_machine():
    """What the bits depend on."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        model = next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        model = platform.processor()
    return f'jaxlib {jaxlib.__version__}, {model}'


def measure(case, workdir):
    """Trains three steps and resumes for two: metrics by step, and a digest of all weights."""
    for num_steps in (RESUMED_AT, STEPS):
        loop.train(config(case, num_steps), workdir)
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


@pytest.mark.parametrize('case', [
    pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES])
def test_the_first_five_steps_are_those_of_old(case, tmp_path):
    golden = json.loads(FILE.read_text())[case]
    measured = measure(case, tmp_path)
    assert len(measured['train']) == STEPS
    np.testing.assert_allclose(measured['train'], golden['train'], rtol=1e-3)
    np.testing.assert_allclose(measured['eval/loss'], golden['eval/loss'], rtol=1e-3)
    if bits := golden['bits'].get(kind_of_machine()):
        assert measured['bits'] == bits


def main():
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            new = measure(case, pathlib.Path(folder))
        bits = golden.get(case, {}).get('bits', {}) if '--keep' in sys.argv else {}
        golden[case] = new | {'bits': bits | {kind_of_machine(): new['bits']}}
    FILE.write_text(json.dumps(golden, indent=1) + '\n')


if __name__ == '__main__':
    main()
