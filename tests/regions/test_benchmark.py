"""The benchmark of operations on regions."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.printed import as_printed

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_contenders_agree_and_each_is_measured_or_says_why_not(tmp_path):
    path = tmp_path / 'result.json'
    process = subprocess.run(
        [sys.executable, *as_printed(
            'python experiments/benchmarks/regions.py --json=result.json',
            f'--repeats=1 --units=1 --regions=16 --json={path}')],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(
            [str(ROOT), os.environ.get('PYTHONPATH', '')])})
    assert process.returncode == 0, process.stderr
    rows = json.loads(path.read_text())['rows']
    assert len(rows) == 7
    for row in rows.values():
        assert list(row) == ['this program', 'the obvious JAX', 'torchvision']
        assert all('result' in row[name] for name in ('this program', 'the obvious JAX'))
        assert 'result' in row['torchvision'] or 'not installed' in row['torchvision']['not_run']
