"""How JAX is started: what the environment asks for, and what it must not change."""

import jax
import pytest

from resnet_jax.errors import UserError
from resnet_jax.training import loop
from resnet_jax.training.writers import read_rows
from resnet_jax.xla import backend
from tests.training.test_train import arrays, assert_same_bits

STARTS = '''
import jax
from resnet_jax.xla import backend
from resnet_jax.errors import UserError

for platform in ('cuda', 'nonsense'):
    jax.config.update('jax_platforms', platform)  # as JAX_PLATFORMS does
    try:
        backend.devices()
    except UserError as error:
        print(error)
'''


def test_a_platform_that_is_missing_is_named(commands):
    process = commands.run('-c', STARTS)
    lines = process.output.splitlines()
    assert lines[-1].startswith('JAX_PLATFORMS=nonsense, but JAX finds no nonsense device')
    assert len(lines) == 1 or lines[0].startswith('JAX_PLATFORMS=cuda, but')  # on a GPU, one line
    assert process.status == 0


def test_without_jit_nothing_is_trained(tiny_config, tmp_path):
    with jax.disable_jit(), pytest.raises(UserError, match='unset JAX_DISABLE_JIT'):
        backend.devices()
    with jax.disable_jit(), pytest.raises(UserError, match='unset JAX_DISABLE_JIT'):
        loop.train(tiny_config, tmp_path)


@pytest.mark.slow
def test_a_run_has_the_same_bits_with_and_without_64_bit_types(tiny_config, tmp_path):
    tiny_config.num_steps = 3
    tiny_config.log.every_steps = 1
    tiny_config.data.update(crop_padding=1, flip=True, mixup_alpha=0.2, cutmix_alpha=1.0)
    tiny_config.optimizer.ema_decay = 0.9
    tiny_config.schedule.update(name='cosine', warmup='linear', warmup_steps=2)
    rows = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            loop.train(tiny_config, tmp_path / str(x64))
        rows.append([{name: value for name, value in row.items() if name not in (
            'train/images_per_second', 'train/data_wait_fraction')}
            for row in read_rows(tmp_path / str(x64) / 'metrics.jsonl')])
    assert rows[0] == rows[1] and len(rows[0]) == 4
    assert_same_bits(*(arrays(tmp_path / str(x64), 3) for x64 in (False, True)))
