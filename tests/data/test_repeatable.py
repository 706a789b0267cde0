"""The batch of a step is the same bits, however the run is cut, spread or parallelised."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from tests.data.checksums import checksums

PROGRAM = pathlib.Path(__file__).with_name('checksums.py')
STEPS, RESUMED_AT = 51, 23


def start(config, process, port):
    """One of two processes with two devices each."""
    config = config.copy_and_resolve_references()
    folder = pathlib.Path(config.data.cache).parent
    config.data.cache = ''  # they add up the mean image of shares of the images
    file = folder / 'config.json'
    file.write_text(config.to_json_best_effort())
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(PROGRAM.parents[2]),
        'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=2'}
    arguments = [process, 2, port, 0, STEPS, file]
    return subprocess.Popen([sys.executable, str(PROGRAM), *map(str, arguments)],
                            env=environment, stdout=subprocess.PIPE, text=True)


def lines(process):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return [line for line in out.splitlines() if line.startswith('batch ')]


@pytest.mark.slow
def test_checksums_of_steps_0_to_50(config):
    """Straight through, resumed at 23, with 1 or 4 workers, with 8 devices, with 2 processes."""
    config.data.mixup_alpha, config.data.cutmix_alpha, config.data.color_noise = 0.2, 1.0, 0.1
    config.data.threads = 1
    one = jax.devices()[:1]
    straight = list(checksums(config, one, 0, STEPS))
    assert len(straight) == STEPS
    assert len({line.split()[2] for line in straight}) == STEPS
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    both = [start(config, process, port) for process in range(2)]
    config.data.workers = 1
    assert list(checksums(config, one, RESUMED_AT, STEPS)) == straight[RESUMED_AT:]
    config.data.update(workers=4, threads=3)
    assert list(checksums(config, jax.devices()[:8], 0, STEPS)) == straight
    for process in both:
        assert lines(process) == straight
