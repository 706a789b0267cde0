"""The batch of a step is the same bits, however the run is cut, spread or parallelised."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name('checksums.py')
STEPS = 51


def start(config, *, first=0, devices=1, workers=0, threads=1, process=0, processes=1, port=0):
    config = config.copy_and_resolve_references()
    config.data.workers, config.data.threads = workers, threads
    file = pathlib.Path(config.data.cache).parent / f'config-{first}-{workers}-{processes}.json'
    if processes > 1:
        config.data.cache = ''  # they add up the mean image of shares of the images
    file.write_text(config.to_json_best_effort())
    root = str(PROGRAM.parents[2])
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': root,
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
    arguments = [process, processes, port, first, STEPS, file]
    return subprocess.Popen([sys.executable, str(PROGRAM), *map(str, arguments)],
                            env=environment, stdout=subprocess.PIPE, text=True)


def lines(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return [line for line in out.splitlines() if line.startswith('batch ')]


@pytest.mark.slow
def test_checksums_of_steps_0_to_50(config):
    """Straight through, resumed at 23, with 1 or 4 workers, with 8 devices, with 2 processes."""
    config.data.mixup_alpha, config.data.cutmix_alpha, config.data.color_noise = 0.2, 1.0, 0.1
    straight = lines(start(config))
    assert len(straight) == STEPS
    assert len({line.split()[2] for line in straight}) == STEPS
    assert lines(start(config, first=23, workers=1)) == straight[23:]
    assert lines(start(config, workers=4, devices=8, threads=3)) == straight
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    both = [start(config, devices=2, process=i, processes=2, port=port) for i in range(2)]
    for process in both:
        assert lines(process) == straight
