"""An architecture costs one file and a config; every command then knows it."""

import json
import pathlib

import jax
import numpy as np
import PIL.Image
import pytest

import resnet_jax
from resnet_jax.data.digits import digits
from resnet_jax.weights import stored
from tests.models import se_resnet

CONFIG = pathlib.Path(__file__).parent / 'se_config.py'
FAMILY = f'--family={se_resnet.NAME}'


@pytest.mark.slow
def test_an_architecture_of_one_file_goes_through_the_ordinary_commands(commands, tmp_path):
    def run(name, *arguments):
        result = commands.run(f'resnet_jax.{name}', *arguments)
        assert result.status == 0, result.errors
        return result.output

    runs = [tmp_path / name for name in ('stopped', 'whole')]
    run('main', f'--config={CONFIG}', f'--workdir={runs[0]}', '--config.num_steps=10')
    assert 'SE-ResNet-20: ' in run('main', f'--config={CONFIG}', f'--workdir={runs[0]}')
    rows = [json.loads(line) for line in (runs[0] / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows if 'train/loss' in row] == [5, 10, 15, 20]
    # Resuming gives the same bits as never stopping.
    run('main', f'--config={CONFIG}', f'--workdir={runs[1]}')
    trained, whole = (stored.read(path).variables for path in runs)
    jax.tree.map(np.testing.assert_array_equal, trained, whole)
    assert trained['params']['stage2']['blocks']['squeeze']['kernel'].shape == (2, 8, 4)

    file, converted = tmp_path / 'se.safetensors', tmp_path / 'converted'
    run('export', f'--checkpoint={runs[0]}', f'--output={file}')
    assert 'SE-ResNet-20, 10 classes' in run(
        'convert', FAMILY, f'--input={file}', f'--output={converted}')
    jax.tree.map(np.testing.assert_array_equal, trained, stored.read(converted).variables)

    image = digits('test').images[0]
    PIL.Image.fromarray(image[..., 0]).save(tmp_path / 'digit.png')
    expected = resnet_jax.load(runs[0]).predict(image)
    for path in (runs[0], converted):
        (line,) = run('predict', f'--checkpoint={path}', '--json', '--top=1',
                      tmp_path / 'digit.png').splitlines()
        (best,) = json.loads(line)['classes']
        assert abs(best['probability'] - expected.max()) < 1e-5
    run('export', f'--checkpoint={converted}', f'--output={tmp_path / "se.stablehlo"}')
    assert 'top-1 error' in run('evaluate', f'--workdir={runs[0]}')


def test_a_family_that_is_no_module_is_one_sentence(commands, tmp_path):
    result = commands.run('resnet_jax.convert', '--family=no_such.network', '--input=a.npz',
                          f'--output={tmp_path / "out"}')
    assert result.status == 1 and result.output == ''
    assert '--family: model.family must be one of' in result.errors.splitlines()[-1]
