"""The lines of docs/deploy.md that write an ONNX file."""

import pathlib
import re

import numpy as np
import pytest

import resnet_jax
from tests.weights.torch_networks import randomize, torch

pytestmark = pytest.mark.slow
DOCUMENT = pathlib.Path(__file__).parents[2] / 'docs' / 'deploy.md'


def test_onnxruntime_gives_our_logits_for_any_number_of_images(tmp_path, monkeypatch, commands):
    torchvision = pytest.importorskip('torchvision')
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    monkeypatch.chdir(tmp_path)
    theirs = randomize(torchvision.models.resnet18(num_classes=7), 0)
    torch.save(theirs.state_dict(), 'theirs.pth')
    for name, *flags in (
            ('convert', f'--input={tmp_path}/theirs.pth', f'--output={tmp_path}/weights/r50'),
            ('export', f'--checkpoint={tmp_path}/weights/r50',
             f'--output={tmp_path}/r50.safetensors')):
        result = commands.run(f'resnet_jax.{name}', *flags)
        assert result.status == 0, result.errors
    lines, = re.findall(r'```python\n(.*?)```', DOCUMENT.read_text(), re.DOTALL)
    exec(compile(lines.replace('resnet50', 'resnet18'), str(DOCUMENT), 'exec'), {})

    session = runtime.InferenceSession('r50.onnx')
    assert session.get_inputs()[0].shape == ['N', 224, 224, 3]
    for n in (1, 3):
        images = np.random.default_rng(n).integers(0, 256, (n, 224, 224, 3)).astype(np.uint8)
        logits, = session.run(['logits'], {'images': images})
        ours = resnet_jax.load('weights/r50').outputs(images)
        assert logits.shape == ours.shape == (n, 7)
        np.testing.assert_allclose(logits, ours, rtol=0, atol=1e-5 * np.abs(ours).max())
