"""A run of an earlier version is resumed, evaluated and loaded, whatever fields come and go.

specimen/ holds the config.json and data.json that a run of tests/tiny.py left in November
2026, before checkpoints had digests. They are never to be changed.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import resnet_jax
from resnet_jax import config as config_lib
from resnet_jax import data
from resnet_jax.data.digits import digits
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import loop
from resnet_jax.training.program import build
from resnet_jax.weights import stored
from resnet_jax.weights.checkpoints import Checkpoints
from tests import tiny
from tests.weights import test_renames as renames

SPECIMEN = pathlib.Path(__file__).parent / 'specimen'
STORED = json.loads((SPECIMEN / 'config.json').read_text())


@pytest.fixture(scope='module')
def program():
    config = tiny.config()
    config.num_steps = 6
    return build(config, sharding.create_mesh(config))


@pytest.fixture
def workdir(tmp_path, program):
    """The specimen with a checkpoint of step 5, as such runs left them, with the names of then."""
    shutil.copytree(SPECIMEN, tmp_path, dirs_exist_ok=True)
    state = program.initial_state().replace(step=jax.device_put(np.int32(5), program.everywhere))
    checkpoints = Checkpoints(tmp_path / 'checkpoints', keep_last=2)
    checkpoints.save(renames.old(state), 5)
    checkpoints.close()
    for file in tmp_path.rglob('_CHECKPOINT_METADATA'):
        file.write_text(json.dumps(json.loads(file.read_text()) | {'custom_metadata': {}}))
    return tmp_path


def test_the_specimen_is_resumed_evaluated_and_loaded(workdir, program, capsys):
    config = json.loads((workdir / 'config.json').read_text())
    config['data']['bygone'], config['gone'] = 'x', {'a': 1, 'b': [2]}
    for section, field in (('data', 'holdout'), ('optimizer', 'nesterov'), ('init', 'freeze')):
        del config[section][field]
    del config['profile']
    (workdir / 'config.json').write_text(json.dumps(config))
    warning = (f'warning: {workdir}/config.json has fields that are unknown to this version and '
               'are ignored: data.bygone, gone.a, gone.b.\n')
    before = resnet_jax.load(workdir)
    assert capsys.readouterr().err == warning
    values = loop.train(program.config, workdir)
    told = capsys.readouterr()
    assert told.err == warning and 'resuming from step 5 ' in told.out
    network, test = resnet_jax.load(workdir), digits('test')
    assert capsys.readouterr().err == ''  # the config is that of today
    error = 100 * np.mean(network.predict(test.images).argmax(1) != test.labels)
    assert error == pytest.approx(values['eval/top1_error'], abs=1e-9)
    assert len(data.create_eval_source(before.config)) == values['eval/count'] == 297
    assert not np.array_equal(before.predict(test.images[:4]), network.predict(test.images[:4]))


def without(field):
    content = json.loads(json.dumps(STORED))
    *sections, name = field.split('.')
    section = content
    for key in sections:
        section = section[key]
    del section[name]
    return content


def test_a_field_that_is_new_has_the_value_that_computes_what_was_computed_before(monkeypatch):
    held = config_lib.leaves(ConfigDict(STORED))
    assert config_lib.differences(tiny.config(), held) == []
    defaults, mine = config_lib.leaves(config_lib.default()), config_lib.leaves(tiny.config())
    at_default = [field for field in mine if mine[field] == defaults[field]]
    assert len(at_default) >= 79
    for field in at_default:
        config, unknown = config_lib.from_stored(without(field) if field in held else STORED)
        before = config_lib.BEFORE.get(field, defaults[field])
        assert (config_lib.leaves(config)[field], unknown) == (before, []), field
    lacking = config_lib.leaves(ConfigDict(without('optimizer.nesterov')))
    assert config_lib.differences(tiny.config(), lacking) == []
    monkeypatch.setitem(config_lib.BEFORE, 'optimizer.nesterov', True)
    assert config_lib.differences(tiny.config(), lacking) == ['optimizer.nesterov: True -> False']
    monkeypatch.setitem(
        config_lib.MEANINGLESS_WITHOUT, 'optimizer.nesterov', 'optimizer.ema_decay')
    assert config_lib.differences(tiny.config(), lacking) == []


def test_a_renamed_field_keeps_its_value(monkeypatch):
    content = without('data.holdout')
    content['data']['held_out'] = 7
    monkeypatch.setitem(config_lib.RENAMED, 'data.held_out', 'data.holdout')
    config, unknown = config_lib.from_stored(content)
    assert (config.data.holdout, unknown) == (7, [])


def test_tables_of_other_times_name_fields_of_today():
    known = config_lib.leaves(config_lib.default())
    assert set(config_lib.RENAMED.values()) <= set(known)
    for field in config_lib.EXECUTION_FIELDS + config_lib.LOCAL_FIELDS:
        assert any(name == field or name.startswith(field + '.') for name in known), field


@pytest.mark.parametrize(('content', 'sentence'), [
    ('[]', 'not a JSON object'), ('null', 'not a JSON object'), ('{', 'line 1 column 2'),
    ('{"model": {"depth": "x"}}', 'model.depth cannot be "x"'), (b'\xff\xfe{}', 'decode')])
def test_a_config_that_cannot_be_read_is_one_short_sentence(tmp_path, content, sentence):
    file = tmp_path / 'config.json'
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence) as error:
        stored.read_config(tmp_path)
    assert len(str(error.value)) < 300 + len(str(tmp_path))
