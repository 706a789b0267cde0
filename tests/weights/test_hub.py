"""Weights by name: downloaded and converted once, and nothing half-written is used later."""

import json
import logging
import pathlib
import sys

import jax
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save

import resnet_jax
from resnet_jax import weights
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import program
from resnet_jax.training.workdir import check_origin
from resnet_jax.weights import hub as hub_lib
from resnet_jax.weights import names, stored
from tests.weights import local_hub, networks, random_weights

library = pytest.importorskip('huggingface_hub', reason="downloads need pip install -e '.[hub]'")
from huggingface_hub import constants, file_download  # noqa: E402

COMMIT, LATER = 'a' * 40, 'b' * 40
NAME = 'hf:timm/resnet18.narrow_in7'
REPO = NAME.removeprefix('hf:')
CLASSES = [f'fruit {index}' for index in range(7)]
CONFIG = {
    'architecture': 'resnet18', 'num_classes': 7, 'label_names': CLASSES, 'pretrained_cfg': {
        'input_size': [3, 64, 64], 'test_input_size': [3, 80, 80], 'crop_pct': 0.875,
        'test_crop_pct': 0.95, 'interpolation': 'bicubic', 'mean': [.5, .4, .3],
        'std': [.25, .2, .1]}}
TENSORS = random_weights.tensors(random_weights.fields(width=2))
FILE = save(TENSORS, {'format': 'pt'})


def blocks():
    """24 images of random colours: uint8 [24, 64, 64, 3]."""
    small = np.random.default_rng(0).integers(0, 256, (24, 2, 2, 3), np.uint8)
    return small.repeat(32, 1).repeat(32, 2)


IMAGES = blocks()


@pytest.fixture
def hub():
    with local_hub.serve() as found:
        found.add(REPO, COMMIT, config_json=json.dumps(CONFIG).encode(), model_safetensors=FILE)
        yield found


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """An empty machine, whose hub is the local one; its folder."""
    for name, value in {
            'ENDPOINT': hub.url, 'HF_HUB_CACHE': str(tmp_path / 'hub'), 'HF_HUB_OFFLINE': False,
            'HUGGINGFACE_CO_URL_TEMPLATE': hub.url + '/{repo_id}/resolve/{revision}/{filename}',
            }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    # It waits between tries.
    monkeypatch.setattr(file_download.time, 'sleep', lambda seconds: None)
    return tmp_path


@pytest.fixture(scope='module')
def torch_network():
    """A ResNet-18 of few filters in PyTorch, whose classes the images below spread over."""
    torch_networks = pytest.importorskip('tests.weights.torch_networks')
    network = torch_networks.hugging_face(18, 'v1.5', width=8, classes=7)
    head = network.classifier[1]
    head.bias.data -= logits_of(network, IMAGES).mean(0)
    return network


def logits_of(network, images):
    """In PyTorch, with the mean and standard deviation that the processor has."""
    torch = pytest.importorskip('torch')
    with torch.no_grad():
        return network((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - .5) / .25).logits


def add_torch_network(hub, network):
    config = network.config.to_dict() | {
        'architectures': ['ResNetForImageClassification'],
        'id2label': {str(index): name for index, name in enumerate(CLASSES)}}
    processor = {'image_processor_type': 'ConvNextImageProcessor', 'crop_pct': 1.0, 'resample': 3,
                 'image_mean': [.5, .5, .5], 'image_std': [.25, .25, .25],
                 'size': {'shortest_edge': 64}}
    hub.add('microsoft/resnet-18', COMMIT, config_json=json.dumps(config).encode(),
            preprocessor_config_json=json.dumps(processor).encode(), model_safetensors=save(
                {name: tensor.numpy() for name, tensor in network.state_dict().items()}))


def refuse(told, name=NAME):
    with pytest.raises(UserError, match=told) as error:
        resnet_jax.load(name)
    message = str(error.value)
    assert '\n' not in message and len(message) < 500
    return message


def assert_nothing_is_kept(here):
    assert list(here.glob('cache/resnet_jax/hub/*/*')) == []
    assert list(here.rglob('*.incomplete')) == []
    for blob in here.glob('hub/models--*/blobs/*'):
        assert len(blob.read_bytes()) in (len(FILE), len(json.dumps(CONFIG)))


def assert_loads(name=NAME):
    network = resnet_jax.load(name)
    for path, array in names.to_torch(network.variables, network.config.model).items():
        np.testing.assert_array_equal(array, TENSORS[path])
    return network


def test_a_name_brings_all_that_its_repository_says(hub, here):
    network = assert_loads()
    assert network.classes == tuple(CLASSES)
    data = network.config.data
    assert (data.image_size, data.eval_size, data.eval_resize) == (64, 80, None)
    assert (data.eval_crop_share, data.eval_filter) == (0.95, 'bicubic')
    np.testing.assert_array_equal(network.normalization['mean'], np.float32([.5, .4, .3]))
    np.testing.assert_array_equal(network.normalization['std'], np.float32([.25, .2, .1]))
    assert len(network.predict(networks.images(80, 80, 3))) == 7
    (folder,) = (here / 'cache/resnet_jax/hub/timm--resnet18.narrow_in7').iterdir()
    assert folder.name == f'{COMMIT}-v{hub_lib.VERSION}'
    assert stored.locate(pathlib.Path(NAME)) == folder / 'checkpoints' / '0'


def test_the_second_start_makes_no_request(hub, here):
    assert_loads()
    count = len(hub.requests)
    # Whether the hub answers; then of both files, what it is and its content.
    assert [method for method, path in hub.requests if path.startswith(f'/{REPO}/')] == [
        'HEAD', *['HEAD', 'GET'] * 2]
    hub.add(REPO, LATER, config_json=b'{}', model_safetensors=b'')
    assert_loads()
    assert_loads(f'{NAME}@main')
    assert_loads(f'{NAME}@{COMMIT}')
    assert len(hub.requests) == count
    # `hf download` follows the repository, and so do we.
    hub.add(REPO, LATER, config_json=json.dumps(CONFIG | {'label_names': [*'abcdefg']}).encode(),
            model_safetensors=FILE)
    library.hf_hub_download(REPO, 'config.json')
    assert assert_loads().classes == tuple('abcdefg')
    assert assert_loads(f'{NAME}@{COMMIT}').classes == tuple(CLASSES)


def test_offline_mode_takes_what_is_there(hub, here, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    refuse(r'config\.json has not been downloaded yet, and HF_HUB_OFFLINE is set\.$')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    hub_lib.download(NAME)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    count = len(hub.requests)
    assert_loads()
    assert len(hub.requests) == count


def test_a_cut_transfer_is_told_and_the_next_start_completes_it(hub, here):
    hub.cut = len(FILE) // 2
    refuse(r'model\.safetensors could not be downloaded from http.*run the same command again')
    assert_nothing_is_kept(here)
    hub.cut = None
    assert_loads()


def test_a_wrong_size_is_told(hub, here):
    for size in (len(FILE) + 1, len(FILE) - 1):
        hub.declared = size
        refuse(r'model\.safetensors could not be downloaded')
        assert_nothing_is_kept(here)
    hub.declared = None
    assert_loads()


def test_wrong_bytes_are_told_and_are_not_kept(hub, here):
    hub.damaged = True
    refuse(r'model\.safetensors was damaged on its way or on the disk, and has been deleted')
    assert_nothing_is_kept(here)
    hub.damaged = False
    assert_loads()


def test_a_conversion_that_is_killed_leaves_nothing_that_is_used(hub, here, monkeypatch):
    with monkeypatch.context() as patch:
        def stop(path, content):
            raise KeyboardInterrupt
        patch.setattr(stored, 'write_whole', stop)
        with pytest.raises(KeyboardInterrupt):
            resnet_jax.load(NAME)
    assert_nothing_is_kept(here)
    assert_loads()


def test_a_job_of_several_processes_takes_only_what_is_converted(hub, here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jax, 'process_count', lambda: 2)
        refuse(r'not been converted on this machine yet, .*run `python -m resnet_jax\.convert')
    assert hub.requests == []
    assert weights.read(pathlib.Path(NAME)).classes == tuple(CLASSES)  # as convert does
    assert_loads()
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    assert stored.config_of(pathlib.Path(NAME)).model.depth == 18


def test_no_network_is_told_without_waiting_or_lines_of_the_library(hub, here, monkeypatch):
    nowhere = 'http://127.0.0.1:9'  # the port that discards
    monkeypatch.setattr(constants, 'ENDPOINT', nowhere)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                        nowhere + '/{repo_id}/resolve/{revision}/{filename}')
    told = []
    for name in (None, 'huggingface_hub'):  # the loggers that print; the first one as absl's does
        handler = logging.Handler()
        monkeypatch.setattr(handler, 'emit', lambda record: told.append(record.getMessage()))
        monkeypatch.setattr(logging.getLogger(name), 'handlers', [handler])
    monkeypatch.setattr(file_download.time, 'sleep', lambda seconds: told.append(seconds))
    refuse(rf'has not been downloaded yet, and {nowhere} cannot be reached \(ConnectError: .* '
           r'Connection refused\)')
    assert told == []
    assert_nothing_is_kept(here)


def test_files_that_other_programs_have_left_are_completed_or_the_network_is_told_missing(
        hub, here, monkeypatch):
    name = 'facebook/convnext'
    config = {key: value for key, value in CONFIG.items() if key != 'pretrained_cfg'}
    hub.add(name, COMMIT, config_json=json.dumps(config).encode(), model_safetensors=FILE)
    for file in ('config.json', 'model.safetensors'):  # as transformers does
        library.hf_hub_download(name, file)
    nowhere = 'http://127.0.0.1:9'
    waits = []
    monkeypatch.setattr(file_download.time, 'sleep', waits.append)
    with monkeypatch.context() as patch:
        patch.setattr(constants, 'ENDPOINT', nowhere)
        patch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                      nowhere + '/{repo_id}/resolve/{revision}/{filename}')
        with pytest.raises(UserError, match=r'preprocessor_config\.json has not been downloaded '
                                            rf'yet, and {nowhere} cannot be reached'):
            hub_lib.download(f'hf:{name}')
    assert waits == []
    hub_lib.download(f'hf:{name}')
    count = len(hub.requests)
    hub_lib.download(f'hf:{name}')  # that there is no such file is known now
    assert not any('preprocessor' in path for _, path in hub.requests[count:])


def test_what_is_not_at_the_hub_is_told(hub, here):
    refuse(r'there is no repository timm/resnet at http', 'hf:timm/resnet')
    refuse(r'the repository timm/resnet18\.narrow_in7 has no revision v2\.$', f'{NAME}@v2')
    for name in ('hf:', 'hf:resnet50', 'hf:a/b/c', 'hf:a/..', 'hf:a/b@../c', 'hf:a/b@', 'hf:a b/c'):
        refuse('is not a name of weights; it must have the form hf:OWNER/NAME', name)


def test_only_safetensors_are_taken_from_the_network(hub, here):
    hub.add('a/b', COMMIT, config_json=json.dumps(CONFIG).encode(), pytorch_model_bin=b'cos\n')
    refuse(r'has no file model\.safetensors; weights are downloaded only from .* can run code',
           'hf:a/b')
    assert not any('pytorch_model' in path for _, path in hub.requests)


def test_other_networks_are_refused_before_their_weights_are_downloaded(hub, here):
    for config, told in (
            ({'architectures': ['BertModel'], 'model_type': 'bert'}, 'architecture is BertModel'),
            ({'architecture': 'resnetblur50'}, 'blurs where it down-samples'),
            ({'architecture': 'vit_base_patch16_224'}, 'is not known')):
        hub.requests.clear()
        hub.add('a/b', COMMIT, config_json=json.dumps(config).encode(), model_safetensors=FILE)
        refuse(f'hf:a/b cannot be used: .*{told}', 'hf:a/b')
        assert not any('safetensors' in path for _, path in hub.requests)
        library.scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(COMMIT).execute()
    for config, file, told in (
            ({}, save({'x': np.ones(3, np.float32)}), 'names of the tensors are not those'),
            (CONFIG | {'label_names': ['a', 'b']}, FILE, 'names for 2 classes, but .* has 7'),
            (CONFIG | {'pretrained_cfg': {'input_size': 'x'}}, FILE, 'is damaged: a size of'),
            ([1], FILE, 'does not hold a JSON object'), (CONFIG, b'x', 'damaged or truncated')):
        hub.add('a/b', COMMIT, config_json=json.dumps(config).encode(), model_safetensors=file)
        assert refuse(told, 'hf:a/b').startswith('hf:a/b')
        library.scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(COMMIT).execute()
    assert list(here.glob('cache/resnet_jax/hub/*/*')) == []


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    refuse(r"needs huggingface_hub to be downloaded: pip install -e '\.\[hub\]'")


def test_hugging_faces_own_networks_bring_their_processor(hub, here, torch_network):
    add_torch_network(hub, torch_network)
    found = resnet_jax.load('hf:microsoft/resnet-18')
    data = found.config.data
    assert (data.image_size, data.eval_size, data.eval_crop_share) == (64, None, 1)
    assert data.eval_filter == 'bicubic' and found.classes == tuple(CLASSES)
    np.testing.assert_array_equal(found.normalization['std'], np.float32([.25, .25, .25]))
    expected = logits_of(torch_network, IMAGES).numpy()
    np.testing.assert_allclose(found.logits(IMAGES), expected, atol=1e-4)


@pytest.mark.parametrize(('processor', 'fields'), [
    ({'image_processor_type': 'ConvNextImageProcessor', 'size': {'shortest_edge': 288},
      'resample': 2}, (288, 224 / 256, 'bilinear')),
    ({'image_processor_type': 'ViTImageProcessor', 'size': {'height': 300, 'width': 300}},
     (224, None, 'bilinear')),
])
def test_processors_are_understood(processor, fields, tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(FILE)
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(processor))
    labels = {str(index): f'LABEL_{index}' for index in range(7)}
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'resnet', 'id2label': labels}))
    found = weights.read(tmp_path)
    data = found.config.data
    assert (data.image_size, data.eval_crop_share, data.eval_filter) == fields
    assert found.classes is None


def test_commands_take_names(commands, hub, torch_network, tmp_path):
    add_torch_network(hub, torch_network)
    for index, image in enumerate(IMAGES):
        folder = tmp_path / 'images' / 'val' / CLASSES[index % 7]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(folder / f'{index:02}.png')
    expected = logits_of(torch_network, IMAGES).argmax(1).tolist()
    assert len(set(expected)) >= 3
    env = {'HF_ENDPOINT': hub.url, 'HF_HOME': str(tmp_path / 'hf'), 'HF_HUB_CACHE': None,
           'HF_HUB_OFFLINE': None, 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    name = 'hf:microsoft/resnet-18'

    def predicted():
        done = commands.run('resnet_jax.predict', f'--checkpoint={name}', '--json', '--top=1',
                            tmp_path / 'images', env=env)
        assert done.status == 0, done.errors
        answers = map(json.loads, done.output.splitlines())
        return {pathlib.Path(answer['file']).stem: answer['classes'][0]['name']
                for answer in answers}

    names = {f'{index:02}': CLASSES[label] for index, label in enumerate(expected)}
    assert predicted() == names
    count = len(hub.requests)
    assert predicted() == names
    folder = tmp_path / 'images'
    done = commands.run(
        'resnet_jax.evaluate', f'--checkpoint={name}', '--config=configs/imagenet_r50.py',
        f'--config.data.path={folder}', '--config.data.source=folder',
        '--config.data.eval_split=test', '--json', env=env)
    assert done.status == 0, done.errors
    wrong = sum(label != index % 7 for index, label in enumerate(expected))
    assert json.loads(done.output)['eval/top1_error'] == pytest.approx(100 * wrong / 24)
    assert 'central crop of 64 from 64, bicubic' in done.output + done.errors
    assert len(hub.requests) == count


def test_training_starts_from_a_name(hub, here, tiny_config, capsys):
    grey = random_weights.tensors(random_weights.fields(width=2), channels=1)
    hub.add(REPO, COMMIT, config_json=json.dumps(CONFIG).encode(), model_safetensors=save(grey))
    tiny_config.init.checkpoint = NAME
    tiny_config.model.depth = None
    completed = program.completed(tiny_config)
    assert (completed.model.depth, completed.model.width) == (18, 2)
    built = program.build(tiny_config, sharding.create_mesh(tiny_config, jax.devices()[:1]))
    state = built.initial_state()
    assert 'not loaded: head' in capsys.readouterr().out
    np.testing.assert_array_equal(
        np.asarray(state.params['stem']['conv']['kernel']).transpose(3, 2, 0, 1),
        grey['conv1.weight'])
    with pytest.raises(UserError, match=r'^hf:a/b: there is no repository a/b at http'):
        tiny_config.init.checkpoint = 'hf:a/b'
        check_origin(tiny_config, here / 'run')
