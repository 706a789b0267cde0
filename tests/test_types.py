"""A type checker finds a wrong use of the package in somebody else's code."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip('mypy', reason='mypy is not installed; it comes with the extra `test`')
ROOT = pathlib.Path(__file__).parent.parent
RIGHT = '''
import numpy as np

import resnet_jax

network = resnet_jax.load('runs/digits')
images = np.zeros((2, 8, 8, 1), np.uint8)
size: int = network.features(images, 'stage1').size + network.features(images)['pool'].size
names: list[str] = list(network.features(images))
trained = resnet_jax.train('configs/digits_r20.py', fields={'num_steps': 20})
error: float = trained.metrics['eval/top1_error']
stages: tuple[int, ...] = resnet_jax.create('resnet50', num_classes=10).stages  # WRONG
'''
WRONG = {
    'network.predict()': 'call-arg',
    'network.features(images, stage=1.5)': 'call-overload',
    "network.features(images)['pool'].sizes": 'attr-defined',
    "resnet_jax.train('configs/digits_r20.py', 'runs/digits', ['num_steps'])": 'arg-type',
    'trained.metrics + 1': 'operator',
    'resnet_jax.create(50)': 'arg-type',
    'resnet_jax.laod': 'attr-defined',
}


@pytest.mark.slow
def test_mypy_finds_what_is_wrong_and_nothing_else(tmp_path):
    file = tmp_path / 'use.py'
    file.write_text(RIGHT + '\n'.join(WRONG) + '\n')
    process = subprocess.run(
        [sys.executable, '-m', 'mypy', '--config-file', ROOT / 'pyproject.toml',
         '--cache-dir', tmp_path / 'cache', file],
        env={**os.environ, 'MYPYPATH': str(ROOT)}, text=True, capture_output=True)
    found = dict(re.findall(r'use\.py:(\d+): error: .*\[([a-z-]+)\]$', process.stdout,
                            re.MULTILINE))
    lines = file.read_text().splitlines()
    assert {lines[int(number) - 1].partition('  #')[0]: code for number, code in found.items()} == {
        **WRONG, RIGHT.splitlines()[-1].partition('  #')[0]: 'assignment'}, process.stdout
