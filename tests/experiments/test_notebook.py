"""Training in a cell of a notebook, whose kernel is interrupted."""

import os
import re
import time

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.training.writers import read_rows
from tests import xla_options
from tests.printed import ROOT

manager = pytest.importorskip('jupyter_client.manager', reason='jupyter_client is not installed')
pytest.importorskip('ipykernel', reason='ipykernel is not installed')

CELL = '''
import resnet_jax
fields = {'model.depth': 8, 'model.width': 8, 'num_steps': 400, 'batch_size': 64,
          'schedule.warmup': 'none', 'log.every_steps': 20, 'checkpoint.every_steps': None,
          'eval.every_steps': 400, 'mesh.data': 1, 'compilation_cache': ''}
trained = resnet_jax.train('configs/digits_r20.py', %r, fields)
print(trained.metrics['eval/count'])
'''
ESCAPES = re.compile(r'\x1b\[[\d;]*m')


class Kernel:
    """A kernel in the project's folder."""

    def __init__(self):
        self.manager, self.client = manager.start_new_kernel(
            kernel_name='python3', cwd=str(ROOT), env=os.environ | {
                'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla_options.quick(devices=1),
                'PYTHONPATH': str(ROOT)})

    def run(self, code, interrupt_when=None):
        """Runs a cell.

        Args:
          code: of the cell.
          interrupt_when: the kernel is interrupted when this returns true.

        Returns:
          The text below the cell, and 'ok' or 'error'.
        """
        message = self.client.execute(code)
        end = time.monotonic() + 300
        while interrupt_when and not interrupt_when():
            assert time.monotonic() < end
            time.sleep(0.01)
        if interrupt_when:
            self.manager.interrupt_kernel()
        shown = []
        while True:
            found = self.client.get_iopub_msg(timeout=600)
            if found['parent_header'].get('msg_id') != message:
                continue
            content = found['content']
            if found['msg_type'] == 'status' and content['execution_state'] == 'idle':
                return ESCAPES.sub('', ''.join(shown)), self._answer(message)
            shown.append(content.get('text', '') + '\n'.join(content.get('traceback', ())))

    def _answer(self, message):
        while True:
            found = self.client.get_shell_msg(timeout=60)
            if found['parent_header'].get('msg_id') == message:
                return found['content']['status']

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.close()


def losses(workdir):
    return {row['step']: row['train/loss'] for row in read_rows(workdir / 'metrics.jsonl')
            if 'train/loss' in row}


@pytest.mark.slow
def test_an_interrupted_cell_has_saved_its_run_and_the_same_cell_resumes(kernel, tmp_path):
    whole, workdir = tmp_path / 'whole', tmp_path / 'interrupted'
    shown, _ = kernel.run(CELL % str(whole))
    assert shown.endswith('297\n')

    cell = CELL % str(workdir)
    shown, answer = kernel.run(cell, lambda: len(losses(workdir)) > 1)
    step, = (int(path.name) for path in (workdir / 'checkpoints').iterdir())
    assert 20 < step < 400
    said = (f'stopped by SIGINT; checkpoint saved at step {step}. '
            'Run the same cell again to resume.')
    assert shown.splitlines()[-1] == said and 'Traceback' not in shown
    assert answer == 'error'  # so that no later cell runs

    shown, _ = kernel.run('print(resnet_jax.create("resnet18").stages[0])')
    assert shown == 'stem\n'
    shown, _ = kernel.run(cell)
    assert f'resuming from step {step} ' in shown and shown.endswith('297\n')
    assert losses(workdir)[400] == losses(whole)[400]
    ours, theirs = (resnet_jax.load(folder).variables for folder in (workdir, whole))
    for one, other in zip(*(jax.tree.leaves(x) for x in (ours, theirs)), strict=True):
        np.testing.assert_array_equal(one, other)
