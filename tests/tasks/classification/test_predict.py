"""Files, folders and standard input are predicted; what cannot be read is told."""

import functools
import json
import os
import types

import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

import resnet_jax
from resnet_jax.data import classes
from resnet_jax.errors import UserError, readable
from resnet_jax.tasks.classification import prediction
from resnet_jax.tasks.classification.stablehlo import stablehlo
from resnet_jax.tasks.prediction import find_files, predictions
from tests.weights.networks import images, store


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Weights in `weights`, three images in `images`, and one that is damaged."""
    folder = tmp_path_factory.mktemp('predict')
    store(folder / 'weights', [f'class {i}' for i in range(10)])
    (folder / 'images' / 'more').mkdir(parents=True)
    for i, name in enumerate(('a.png', 'b.jpg', 'more/c.png')):
        Image.fromarray(images(40, 50, 3, seed=i)).save(folder / 'images' / name)
    (folder / 'bad.jpg').write_bytes((folder / 'images' / 'b.jpg').read_bytes()[:300])
    return folder


@pytest.fixture
def run(commands, folder):
    """Predicts with the weights of `folder`."""
    return functools.partial(
        commands.run, 'resnet_jax.predict', f'--checkpoint={folder}/weights')


def test_bad_files_are_told_and_the_rest_goes_on(folder, run):
    bad, missing = folder / 'bad.jpg', folder / 'missing.jpg'
    result = run('--json', '--top=3', bad, folder / 'images', missing)
    assert result.status == 1
    told = [json.loads(line) for line in result.output.splitlines()]
    assert [os.path.basename(row['file']) for row in told] == ['a.png', 'b.jpg', 'c.png']
    lines = result.errors.splitlines()
    assert len(lines) == 2 and str(bad) in lines[0] and str(missing) in lines[1]

    network = resnet_jax.load(folder / 'weights')
    x = np.asarray(Image.open(folder / 'images' / 'a.png'))
    from resnet_jax.data import Item
    from resnet_jax.data.transforms import EvalTransform
    expected = network.predict(EvalTransform(32, 32).pixels(Item(x, {}, 'a')))
    best = told[0]['classes']
    assert [guess['index'] for guess in best] == list(expected.argsort()[::-1][:3])
    assert best[0]['name'] == f'class {best[0]["index"]}'
    np.testing.assert_allclose(best[0]['probability'], expected.max(), rtol=1e-4)


def test_images_of_other_formats_in_a_folder_are_counted(tmp_path):
    (tmp_path / 'more').mkdir()
    for name in ('a.png', 'more/b.bmp', 'more/c.HEIC', 'd.json', '.e.bmp'):
        (tmp_path / name).write_bytes(b'x')
    files, failures, [warning] = find_files([str(tmp_path)])
    assert (files, failures) == ([(f'{tmp_path}/a.png', None)], [])
    assert '(1 .bmp, 1 .heic); convert them to JPEG, PNG or WebP' in warning
    (tmp_path / 'a.png').unlink()
    _, [failure], warnings = find_files([str(tmp_path)])
    assert str(failure) == f'{tmp_path} contains no JPEG, PNG or WebP images.'
    assert warnings == [warning]


def test_hidden_files_and_folders_in_a_folder_are_not_looked_at(tmp_path):
    folder = tmp_path / '.photos'  # which is named, and therefore meant
    for name in ('a.jpg', '._a.jpg', '._b.bmp', '.trash/c.jpg', 'more/d.png', 'more/._d.png'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'x')
    files, failures, warnings = find_files([str(folder)])
    assert files == [(f'{folder}/a.jpg', None), (f'{folder}/more/d.png', None)]
    assert (failures, warnings) == ([], [])


def test_standard_input_is_an_image_or_a_list(folder, run):
    image = (folder / 'images' / 'b.jpg').read_bytes()
    latin1 = folder / os.fsdecode(b'caf\xe9.jpg')
    latin1.write_bytes(image)
    result = run('-', latin1, stdin=image)
    assert result.status == 0 and 'class' in result.output
    assert result.output.startswith('standard input\n') and 'caf\\xe9.jpg\n' in result.output
    names = f'{folder}/images/a.png\n'.encode() + os.fsencode(latin1)
    result = run('-', '--json', stdin=names)
    assert result.status == 0
    told = [json.loads(line)['file'].encode() for line in result.output.splitlines()]
    assert told == [f'{folder}/images/a.png'.encode(), f'{folder}/caf'.encode() + b'\\xe9.jpg']


def test_names_that_are_not_utf8_are_written_with_escapes():
    name = os.fsdecode(b'\xc3\xa4\xff.jpg')
    with pytest.raises(UnicodeEncodeError):
        name.encode()
    assert readable(name) == 'ä\\xff.jpg'
    assert json.loads(json.dumps(readable(name))).encode() == b'\xc3\xa4\\xff.jpg'


def test_an_ensemble_has_the_names_of_the_network_that_knows_them():
    def network(*classes):
        return types.SimpleNamespace(classes=classes)

    assert prediction.class_names([network('0', '1'), network('cat', 'dog')]) == ('cat', 'dog')
    assert prediction.class_names([network('0', '1')]) == ('0', '1')
    for other in (network('dog', 'cat'), network('0', '1', '2')):
        with pytest.raises(UserError, match='are not an ensemble'):
            prediction.class_names([network('cat', 'dog'), other])


def test_mistakes_end_in_one_sentence(folder, run):
    for arguments, told in (([], 'pass image files'), ([folder / 'none.jpg'], 'cannot be read')):
        result = run(*arguments)
        assert result.status == 1 and told in result.errors
        assert result.errors.count('\n') == 1


def test_many_images_are_computed_in_batches_of_one_size(folder):
    network = resnet_jax.load(folder / 'weights')
    data = (folder / 'images' / 'a.png').read_bytes()
    files = [(f'{i}', b'bad' if i == 5 else data) for i in range(37)]
    results = list(predictions(prediction.predictor([network], {'top': 10}), files))
    assert [file for file, _ in results] == files
    assert isinstance(results[5][1], Exception)
    for i in (0, 17, 36):
        assert results[i][1] == results[1][1]
    assert network._probabilities._cache_size() == 1


def test_grey_networks_see_grey_images(tmp_path, folder):
    store(tmp_path, channels=1)
    predictor = prediction.predictor([resnet_jax.load(tmp_path)], {'top': 10})
    (_, answer), = predictions(predictor, [(str(folder / 'images' / 'a.png'), None)])
    assert len(answer.fields['classes']) == 10


def test_the_names_of_imagenet_come_with_the_package():
    names = classes.imagenet_classes()
    assert len(names) == 1000
    assert (names[0], names[281], names[999][:13]) == (
        'tench, Tinca tinca', 'tabby, tabby cat', 'toilet tissue')


@pytest.mark.parametrize('changes', [{}, pytest.param({
    'family': 'imagenet', 'depth': 50, 'shortcut': 'B', 'width': 4, 'unroll': False},
    marks=pytest.mark.slow)])
def test_stablehlo_takes_any_number_of_images(changes, tmp_path):
    store(tmp_path, **changes)
    network = resnet_jax.load(tmp_path)
    data = bytes(stablehlo(network, {'image_size': 32}))
    program = jax_export.deserialize(bytearray(data))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    for count in (1, 3):
        x = images(count, 32, 32, 3)
        np.testing.assert_allclose(
            program.call(x), network.logits(x), rtol=1e-4, atol=1e-4)


def test_a_size_that_the_network_does_not_take_is_one_sentence(tmp_path):
    store(tmp_path, family='vgg', depth=16, width=1, batch_norm=False)
    with pytest.raises(UserError, match=r'--image_size=100: VGG needs images of at least 224'):
        stablehlo(resnet_jax.load(tmp_path), {'image_size': 100})


def test_the_export_command_writes_what_convert_reads(folder, tmp_path, commands):
    export = functools.partial(
        commands.run, 'resnet_jax.export', f'--checkpoint={folder}/weights')
    out = tmp_path / 'out.safetensors'
    assert export(f'--output={out}').status == 0
    result = commands.run('resnet_jax.convert', f'--input={out}', f'--output={tmp_path}/again')
    assert result.status == 0
    assert 'ResNet-8, 10 classes, shortcut A: ' in result.output
    assert 'assumed' not in result.output  # the file says it all
    first, again = resnet_jax.load(folder / 'weights'), resnet_jax.load(tmp_path / 'again')
    x = images(3, 32, 32, 3)
    np.testing.assert_array_equal(first.predict(x), again.predict(x))
    result = export(f'--output={tmp_path}/out.onnx')
    assert result.status == 1 and 'must end in' in result.errors
