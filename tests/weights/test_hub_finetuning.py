"""Fine-tuning from weights by name, as printed: from an empty machine to predictions with names."""

import json

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save

from resnet_jax.training.writers import read_rows
from tests import xla_options
from tests.printed import ROOT, as_printed
from tests.weights import local_hub, random_weights

pytest.importorskip('huggingface_hub', reason="downloads need pip install -e '.[hub]'")

REPO = 'timm/resnet50.a1_in1k'
CONFIG = {
    'architecture': 'resnet18', 'num_classes': 7, 'label_names': [*'abcdefg'],
    'pretrained_cfg': {'input_size': [3, 32, 32], 'crop_pct': 1.0, 'interpolation': 'bicubic',
                       'mean': [.5, .4, .3], 'std': [.25, .2, .1]}}
COLOURS = {'blue': (20, 30, 230), 'green': (30, 220, 40), 'red': (230, 20, 30)}
FAST = ('--config.num_steps=200 --config.batch_size=8 --config.eval.batch_size=8 '
        '--config.schedule.learning_rate=0.02 --config.schedule.warmup=none '
        '--config.log.every_steps=10 --config.data.cache= --config.compilation_cache= '
        '--config.checkpoint.every_steps=none')


@pytest.fixture
def hub():
    with local_hub.serve() as found:
        found.add(REPO, 'a' * 40, config_json=json.dumps(CONFIG).encode(), model_safetensors=save(
            random_weights.tensors(random_weights.fields(width=4)), {'format': 'pt'}))
        yield found


def write_images(folder):
    """Twelve images of each class, of its colour and some noise; and a photo, which is red."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / 'DIR' / name).mkdir(parents=True)
        for i in range(12):
            noise = rng.integers(-20, 20, (32, 32, 3))
            image = np.clip(noise + colour, 0, 255).astype(np.uint8)
            PIL.Image.fromarray(image).save(folder / 'DIR' / name / f'{i:02}.png')
    PIL.Image.fromarray(image).save(folder / 'photo.jpg')


@pytest.mark.slow
def test_from_a_name_to_named_classes_and_a_resumed_run_needs_no_hub(commands, hub, tmp_path):
    write_images(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    options = {'cwd': tmp_path, 'env': {
        'HF_ENDPOINT': hub.url, 'HF_HOME': str(tmp_path / 'hf'), 'HF_HUB_CACHE': None,
        'HF_HUB_OFFLINE': None, 'XDG_CACHE_HOME': str(tmp_path / 'cache'),
        'XLA_FLAGS': xla_options.quick(devices=1)}}
    training = as_printed(
        'python -m resnet_jax.main --config=configs/finetune.py '
        '--config.init.checkpoint=hf:timm/resnet50.a1_in1k --config.data.path=DIR', FAST)
    predicting = as_printed('python -m resnet_jax.predict --checkpoint=runs/finetune photo.jpg')

    first = commands.start(*training, **options)
    metrics = tmp_path / 'runs' / 'finetune' / 'metrics.jsonl'
    first.until(lambda: len(read_rows(metrics)) > 1)
    first.send_signal(15)
    assert first.wait() == 143, first.errors
    assert f'arrays of ResNet-18 from hf:{REPO}; not loaded: head\n' in first.output
    assert 'data.image_size' in first.output
    requests = [path for _, path in hub.requests if path.endswith('/model.safetensors')]
    assert requests

    count = len(hub.requests)
    hub.repositories.clear()
    again = commands.run(*training, **options)
    assert again.status == 0, again.errors
    assert 'resuming from step ' in again.output
    assert read_rows(metrics)[-1]['eval/top1_error'] == 0

    named = commands.run(*predicting, '--json', **options)
    assert named.status == 0, named.errors
    found = json.loads(named.output)['classes']
    assert {one['name'] for one in found} == set(COLOURS) and found[0]['name'] == 'red'
    original = commands.run(*as_printed(
        'python -m resnet_jax.predict --checkpoint=hf:timm/resnet50.a1_in1k photo.jpg', '--json'),
        **options)
    assert original.status == 0, original.errors
    assert {one['name'] for one in json.loads(original.output)['classes']} <= {*'abcdefg'}
    assert len(hub.requests) == count
