"""Pages in headless Chromium, through the scripts of tests/experiments/browser."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

FOLDER = pathlib.Path(__file__).parent / 'experiments' / 'browser'


def look(script: str, *arguments: str | os.PathLike, timeout: float) -> dict:
    """What a script finds, which is given Chromium, these arguments, and where screenshots go.

    Skips the test if Chromium, node or the packages of the scripts are not there. The environment
    may name CHROMIUM, and a folder as RESNET_JAX_SCREENSHOTS.
    """
    chromium = os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, (
        'chromium', 'chromium-browser', 'google-chrome'))), None)
    if chromium is None or shutil.which('node') is None:
        pytest.skip('Chromium or node is not installed')
    if not (FOLDER / 'node_modules' / 'axe-core').exists():
        pytest.skip(f'npm install --prefix {FOLDER} has not been run')
    result = subprocess.run(
        ['node', FOLDER / script, chromium, *arguments,
         *filter(None, [os.environ.get('RESNET_JAX_SCREENSHOTS')])],
        capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
