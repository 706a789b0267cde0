"""Decoding processes: the same bits as without, also resumed; and one that dies ends the run."""

import multiprocessing
import os
import re
import signal
import time

import jax
import pytest

from resnet_jax.data import benchmark, create_pipelines
from resnet_jax.errors import UserError
from resnet_jax.xla.topologies import CHIPS
from tests.data.checksums import checksums
from tests.data.data_helpers import encoded, photograph
from tests.data.test_pipelines import mesh


@pytest.mark.slow
def test_two_processes_give_the_bits_of_none_also_resumed_and_with_an_unreadable_image(
        config, folder):
    (folder / 'train' / 'a' / '0001.jpg').write_bytes(b'hello')
    (folder / 'train' / 'b' / '0001.jpg').write_bytes(
        encoded(photograph(150, 170, 7), progressive=True))
    config.data.on_unreadable, config.data.normalization = 'skip', 'none'
    alone = list(checksums(config, jax.devices()[:1], 0, 9))
    assert len(set(line.split()[2] for line in alone)) == 9
    config.data.workers = 2
    assert list(checksums(config, jax.devices()[:1], 0, 9)) == alone
    assert list(checksums(config, jax.devices()[:1], 5, 9)) == alone[5:]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_one_sentence(config):
    config.data.workers, config.data.normalization = 2, 'none'
    train, _, _ = create_pipelines(config, mesh())
    before = set(multiprocessing.active_children())
    inputs = train.inputs(0)
    next(inputs)
    workers = [x for x in multiprocessing.active_children()
               if x not in before and 'prefetch' in x.name]
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(UserError, match=r'a decoding process was killed.*lower data\.workers '
                                        r'\(2\).*same command again to resume\.$'):
        for _ in inputs:  # those that were made before come first
            assert time.monotonic() - begin < 60


def test_benchmark_says_how_many_chips_a_host_feeds(config):
    report = benchmark.measure(config, images=100)
    rate = report['images_per_second']
    assert rate > 0
    assert set(report['feeds']) == {'v4', 'v5e', 'v5p', 'v6e', 'h100'}
    v5e = report['feeds']['v5e']
    # docs/performance.md: 60.16 ms for 2,048 images on 16 chips, bound by memory.
    assert v5e['per_chip'] == pytest.approx(2048 / 16 / 60.16e-3, rel=1e-3)
    assert v5e['fed'] == rate / v5e['per_chip']
    assert report['feeds']['v5p']['per_chip'] / v5e['per_chip'] == pytest.approx(
        CHIPS['v5p'].bandwidth / CHIPS['v5e'].bandwidth)
    text = benchmark.lines(report)
    assert re.match(rf'this host: {rate:,.0f} images/s on \d+ cores, [\d,]+ per core, with '
                    r'1 x \d+ threads \(data\.workers=0\)$', text[0])
    [row] = [line.split() for line in text if line.startswith('v5e')]
    assert row[:5] == ['v5e', '2,128', f'{rate / v5e["per_chip"]:.2f}', '4', '8,511']


def test_benchmark_refuses_another_task(config):
    config.task = 'detection'
    with pytest.raises(UserError, match='classification, not that of detection'):
        benchmark.measure(config, images=8)
