"""What every command does with --help, without flags, and with wrong ones."""

import configparser
import os
import pathlib
import re
import subprocess
import sys

import pytest

from experiments import complexity, look, packages, scaling, study
from resnet_jax import cli
from resnet_jax.__main__ import COMMANDS
from resnet_jax.data import scene_digits, scenes
from resnet_jax.distributed.sharding import create_mesh
from resnet_jax.errors import UserError
from resnet_jax.training import loop
from resnet_jax.training.program import build
from tests.data.data_helpers import write_folder
from tests.training.test_train import rows

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
PROCESSES = 'coordinator num_processes process_id '
DATA = ('bad_boxes class_list eval_list label_file path source splits tfds_name '
        'train_list ')
FIGURE = 'config ledger parallel seeds workdir '
BENCHMARKS = 'experiments/benchmarks/'
FLAGS = {  # of every command, but for --traceback, which all have
    'resnet_jax.main': PROCESSES + 'config workdir',
    'resnet_jax.evaluate': PROCESSES + 'batch_size checkpoint config confusion detections json '
                           'protocol recalibrate_batches refine resize scales workdir',
    'resnet_jax.predict': 'checkpoint draw json min_score top',
    'resnet_jax.summary': 'config json parameters',
    'resnet_jax.compile': 'config json sweep topology',
    'resnet_jax.convert': 'bn_epsilon classes family input mean output std stride_in',
    'resnet_jax.export': 'checkpoint image_size output',
    'resnet_jax.data.prepare': DATA + 'format images_per_shard output processes quality '
                               'shorter_side skip_unreadable verify',
    'resnet_jax.data.check': DATA + 'benchmark config images json',
    'experiments.sweep': 'config dry_run parallel sweep workdir',
    'experiments.degradation': FIGURE + 'depths',
    'experiments.depth': FIGURE + 'depths',
    'experiments.responses': FIGURE + 'batches depths',
    'experiments.first_step': 'config depths seeds workdir',
    'experiments.shortcuts': FIGURE + 'depth',
    'experiments.complexity': 'ledger workdir',
    'experiments.detection': FIGURE + 'scales',
    'experiments.detection_errors': 'checkpoint config least_score output',
    'experiments.gallery': 'columns output width',
    'experiments.examples': 'checkpoint columns config images min_score output width',
    'experiments.scaling': 'output',
    'experiments.look': 'ascent_steps channels config gradients images only output plain side '
                        'starts train_images',
    BENCHMARKS + 'cifar.py': 'config json limit programs workdir workers',
    BENCHMARKS + 'compile_time.py': 'config depths json limit repeats',
    BENCHMARKS + 'detection.py': 'classes depth height json kind parts proposals regions repeats '
                                 'stride_in train units width',
    BENCHMARKS + 'gpu_traffic.py': 'config json rows',
    BENCHMARKS + 'inference.py': 'batch_size depth image_size json repeats units',
    BENCHMARKS + 'input_pipeline.py': 'images json path repeats',
    BENCHMARKS + 'regions.py': 'json regions repeats units',
    BENCHMARKS + 'startup.py': 'config json repeats',
    BENCHMARKS + 'train_step.py': 'config json pytorch repeats steps variant',
}
# What comes first in --help, of commands that most people use.
FIRST = {'resnet_jax.main': 'config workdir', 'resnet_jax.evaluate': 'workdir checkpoint config',
         'resnet_jax.predict': 'checkpoint top', 'resnet_jax.convert': 'input output',
         'resnet_jax.export': 'output checkpoint', 'resnet_jax.data.check': 'config source path',
         'resnet_jax.data.prepare': 'output format', 'resnet_jax.summary': 'config parameters'}
RUN_BY_THEMSELVES = ('degradation', 'depth', 'responses', 'first_step', 'shortcuts', 'complexity',
                     'detection', 'detection.py', 'inference.py', 'regions.py')
NEEDY = [name for name in FLAGS if not name.endswith(RUN_BY_THEMSELVES)]
DIGITS = f'--config={ROOT}/configs/digits_r20.py'
SCRIPTS = {
    'bug': 'from resnet_jax import cli\n'
           'def main(_): raise ValueError("a bug")\n'
           'cli.run(main)\n',
    'mistake': 'from resnet_jax import cli\n'
               'from resnet_jax.errors import UserError\n'
               'def main(_): raise UserError("a mistake.")\n'
               'cli.run(main)\n',
    'folder': 'from absl import flags\n'
              'from resnet_jax import cli\n'
              'cli.config_flag()\n'
              'cli.flag(flags.DEFINE_string, "workdir", None, "")\n'
              'def main(_): print(cli.workdir())\n'
              'cli.run(main)\n'}
MORE = {  # script or module, arguments, environment
    'a bug': ('bug', [], {}),
    'a mistake': ('mistake', [], {}),
    'with --traceback': ('mistake', ['--traceback'], {}),
    'with the variable': ('mistake', [], {'RESNET_JAX_TRACEBACK': '1'}),
    'default workdir': ('folder', [DIGITS], {}),
    'given workdir': ('folder', [DIGITS, '--workdir=runs/mine'], {}),
    'empty workdir': ('folder', [DIGITS, '--workdir='], {}),
    'blank workdir': ('folder', [DIGITS, '--workdir= '], {}),
    'blank output': ('resnet_jax.convert', ['--input=x', '--output= '], {}),
    'input in a bucket': ('resnet_jax.convert', ['--input=gs://runs/a.npz', '--output=x'], {}),
    'two topologies': ('resnet_jax.compile', [DIGITS, '--sweep=cpu:4', '--topology=cpu:8'], {}),
    'damaged image': ('resnet_jax.main', [f'--config={ROOT}/configs/folder.py',
                                          '--config.data.path=images', '--config.mesh.data=1'], {}),
    'sweep': ('experiments.sweep', [DIGITS, '--sweep=seed=0,1', '--dry_run'], {}),
    'no sweep': ('experiments.degradation', ['--dry_run'], {}),
    'no runs': ('experiments.first_step', ['--parallel=2'], {}),
    'no such command': ('resnet_jax', ['trian'], {}),
    'train --help': ('resnet_jax', ['train', '--help'], {}),
    'ResNet-152': ('resnet_jax.main', [f'--config={ROOT}/configs/imagenet_r152.py'], {}),
}
MISTAKES = {  # arguments of resnet_jax.main: what the sentence says
    '--config.model.dept=20': r'the config has no field model\.dept; did you mean model\.depth\?',
    '--config.model.depth=21 --config.mesh.data=1': r'got 21; the nearest is 20\.',
    '--config.mesh.data=3 --config.batch_size=192 --config.eval.batch_size=100':
        r'eval\.batch_size.*multiple of 3',
    '--workdr=x': r'there is no flag --workdr; did you mean --workdir\?',
    '--config.model.depth=deep': r"invalid literal for int\(\) with base 10: 'deep'",
    '--config.xla_preset=fast': r'xla_preset must be one of none, cpu, gpu, tpu',
    '--config.model=8': r'model is a section of the config',
    'runs/digits': r"unexpected argument 'runs/digits'; options have the form --name=value",
}
# Of three devices, none of which is needed.
DEVICES = {'XLA_FLAGS': '--xla_force_host_platform_device_count=3'}
MORE |= {args: ('resnet_jax.main', [DIGITS, '--workdir=run', '--config.batch_size=192',
                                    *args.split()], DEVICES) for args in MISTAKES}


# The flags that a command and what it imports define, whether --help lists them or not.
DEFINED = '''
import os, runpy, sys
from absl import flags
sys.path.insert(0, os.path.dirname(sys.argv[1]))
(runpy.run_path if sys.argv[1].endswith('.py') else runpy.run_module)(sys.argv[1])
print(*{flag.name for module, found in flags.FLAGS.flags_by_module_dict().items()
        if module.split('.')[0] not in ('absl', 'orbax') for flag in found})
'''


@pytest.fixture(scope='module')
def results(tmp_path_factory, commands):
    """Exit status, stdout and stderr: (command, '--help'), (command, '') and the keys of MORE."""
    folder = tmp_path_factory.mktemp('commands')
    for name, text in SCRIPTS.items():
        (folder / f'{name}.py').write_text(text)
    (write_folder(folder / 'images') / 'train' / 'a' / '0001.jpg').write_bytes(b'')
    listings = {('resnet_jax', args): ('resnet_jax', args.split(), {}) for args in ('', '--help')}
    defined = {
        (name, 'defined'): ('-c', [DEFINED, ROOT / name if name.endswith('.py') else name], {})
        for name in FLAGS}
    calls = listings | defined | {(name, args): (name, args.split(), {}) for args in ('--help', '')
             for name in (FLAGS if args else NEEDY)} | MORE
    found = {}
    for call, (name, args, environment) in calls.items():
        path = (folder / f'{name}.py' if name in SCRIPTS else
                ROOT / name if name.endswith('.py') else name)
        done = commands.run(path, *args, cwd=folder,
                            env={'TFDS_DATA_DIR': str(folder / 'tfds'), **environment})
        found[call] = [done.status, done.output, done.errors]
    assert not (folder / 'run').exists()  # no mistake leaves anything behind
    return found


def test_every_command_is_tested_here():
    found = {path.relative_to(ROOT) for folder in ('resnet_jax', 'experiments')
             for path in (ROOT / folder).rglob('*.py') if 'cli.run(main' in path.read_text()}
    assert found == {pathlib.Path(name if name.endswith('.py') else name.replace('.', '/') + '.py')
                     for name in FLAGS}


@pytest.mark.parametrize('name', FLAGS)
def test_help_says_what_the_command_does_and_lists_all_its_flags(results, name):
    status, output, errors = results[name, '--help']
    assert (status, errors) == (0, '')
    assert re.match(r'[A-Z].*[.:]\n\n +python (-m )?' + re.escape(name), output), output
    listed = re.findall(r'^  --(?:\[no\])?(\w+)', output.split('\nFlags:\n')[1], re.MULTILINE)
    assert sorted(listed) == sorted([*FLAGS[name].split(), 'traceback'])
    assert ' '.join(listed).startswith(FIRST.get(name, '')) and listed[-1] == 'traceback'
    assert 'absl' not in output and 'repeat this option' not in output


@pytest.mark.parametrize('name', FLAGS)
def test_a_command_has_no_flags_but_those_that_it_lists(results, name):
    status, output, errors = results[name, 'defined']
    assert (status, sorted(output.split())) == (0, sorted(FLAGS[name].split())), errors


def test_without_a_command_all_of_them_are_listed(results):
    status, output, errors = results['resnet_jax', '']
    assert (status, errors) == (0, '')
    assert results['resnet_jax', '--help'] == [status, output, errors]
    listed = re.findall(r'^  ([a-z]+)  +[A-Z]', output, re.MULTILINE)
    assert listed == [*COMMANDS]
    assert {f'resnet_jax.{module}' for module in COMMANDS.values()} == {
        name for name in FLAGS if name.startswith('resnet_jax.')}
    assert results['no such command'] == [
        1, '', 'error: there is no command trian; did you mean train?\n']


@pytest.mark.parametrize('args', [[], ['summary', '--config=configs/digits_r20.py']])
def test_output_may_be_cut_off_by_a_pipe(args):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run([sys.executable, '-m', 'resnet_jax', *args], stdout=write, cwd=ROOT,
                             stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (process.returncode, process.stderr) == (0, b'')


def test_a_command_by_its_short_name_is_the_module(results):
    assert results['train --help'] == results['resnet_jax.main', '--help']
    script = configparser.ConfigParser()
    script.read(ROOT / 'setup.cfg')
    assert script['options.entry_points']['console_scripts'].split() == [
        'resnet-jax', '=', 'resnet_jax.__main__:main']


@pytest.mark.parametrize('name', NEEDY)
def test_without_flags_one_sentence_says_what_to_give_with_an_example(results, name):
    status, output, errors = results[name, '']
    assert (status, output) == (1, '')
    assert re.fullmatch(r'error: give .*, for example: python (-m )?' + re.escape(name)
                        + r' [^\n]+\n', errors), errors


def test_the_first_mistake_is_answered_by_the_command_to_type(results):
    assert results['resnet_jax.main', ''][2] == (
        'error: give --config=FILE, for example: '
        'python -m resnet_jax.main --config=configs/digits_r20.py\n')


def test_a_bug_keeps_its_traceback_and_a_mistake_has_one_on_request(results):
    assert results['a mistake'] == [1, '', 'error: a mistake.\n']
    for name in ('a bug', 'with --traceback', 'with the variable'):
        status, _, errors = results[name]
        assert status == 1 and errors.startswith('Traceback (most recent call last)')
        assert errors.endswith('a bug\n' if name == 'a bug' else 'UserError: a mistake.\n')


def test_the_workdir_is_named_after_the_config_file_and_never_empty(results):
    assert results['default workdir'] == [0, 'runs/digits_r20\n', '']
    assert results['given workdir'] == [0, 'runs/mine\n', '']
    for name in ('empty workdir', 'blank workdir'):
        status, _, errors = results[name]
        assert status == 1 and errors.startswith('error: --workdir is empty; '), errors


def test_a_blank_output_is_a_missing_one(results):
    status, _, errors = results['blank output']
    assert status == 1 and errors.startswith('error: give --output=DIR, for example: '), errors


def test_an_input_that_is_a_url_is_to_be_downloaded(results):
    status, _, errors = results['input in a bucket']
    assert status == 1 and errors == (
        'error: --input=gs://runs/a.npz is not on this machine: download it first, and give the '
        'file or folder.\n')


def test_a_sweep_of_topologies_takes_no_further_one(results):
    assert results['two topologies'] == [
        1, '', 'error: --sweep names the topologies itself: leave out --topology.\n']


def test_a_damaged_image_comes_with_the_field_that_leaves_it_out(results):
    status, _, errors = results['damaged image']
    assert status == 1
    assert errors == (
        'error: images/train/a/0001.jpg cannot be read: it is empty. To leave out images that '
        'cannot be read, pass --config.data.on_unreadable=skip.\n')


def test_sweeps_and_figures_of_a_config_share_a_folder(results):
    status, output, _ = results['sweep']
    assert status == 0
    assert [line.split('--workdir=')[1] for line in output.splitlines()] == [
        'runs/digits_r20_sweep/seed=0', 'runs/digits_r20_sweep/seed=1']


@pytest.mark.parametrize(('call', 'flag'), [('no sweep', 'dry_run'), ('no runs', 'parallel')])
def test_flags_of_other_commands_are_refused(results, call, flag):
    status, output, errors = results[call]
    assert (status, output) == (1, '')
    assert re.fullmatch(rf'error: there is no flag --{flag}\b[^\n]*\n', errors), errors


@pytest.mark.parametrize('args', MISTAKES)
def test_a_mistake_ends_in_one_sentence(results, args):
    status, _, errors = results[args]
    assert status == 1
    assert re.fullmatch(rf'error: [^\n]*{MISTAKES[args]}[^\n]*\n', errors), errors


def test_resnet_152_lacks_nothing_but_the_data(results):
    status, output, errors = results['ResNet-152']
    assert (status, output) == (1, 'workdir: runs/imagenet_r152\n')
    assert re.fullmatch(r'error: [^\n]*(data set|dataset|data\.source)[^\n]*\n', errors), errors


@pytest.fixture(scope='module')
def few_scenes():
    """Of each data set that is made up, as many images as the largest batch has."""
    made = scenes.scenes, scene_digits.scene_digits
    with pytest.MonkeyPatch.context() as patch:
        for numbers in (scenes.SCENES, scene_digits.IMAGES):
            patch.setitem(numbers, 'train', 64)
            patch.setitem(numbers, 'test', 64)
        for function in made:
            function.cache_clear()
        yield
    for function in made:
        function.cache_clear()


@pytest.mark.usefixtures('few_scenes')
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_reaches_training_or_the_sentence_about_missing_data(
        path, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    config = cli.read_config([f'--config={path}'])
    try:
        program = build(config, create_mesh(config))
    except UserError as error:
        assert config.data.source != 'digits'
        assert re.search(r'TFDS dataset|data\.source|data\.path|init\.checkpoint', str(error))
    else:
        assert program.train_data.num_images >= config.batch_size


@pytest.mark.slow
def test_the_largest_recipe_runs_to_its_end_on_a_few_small_images(tmp_path):
    config = cli.read_config([
        f'--config={ROOT}/configs/imagenet_r152.py', '--config.data.source=synthetic',
        '--config.num_steps=2', '--config.batch_size=8', '--config.data.image_size=32',
        # The same recipe with a network that compiles in seconds.
        '--config.model.depth=18', '--config.model.width=4', '--config.mesh.data=1',
        '--config.model.num_classes=10', '--config.compilation_cache='])
    assert build(config, create_mesh(config)).config.eval.recalibrate_batches == 1024 // 8
    assert loop.train(config, tmp_path)['eval/count'] == 250
    assert [row['step'] for row in rows(tmp_path)] == [2, 2]


@pytest.mark.parametrize(('name', 'meant'), [
    ('imagenet_r151.py', 'imagenet_r152.py'), ('digits_r20', 'digits_r20.py'),
    ('digits_r20.py', 'digits_r20.py'), ('nothing_like_it', None)])
def test_from_another_folder_the_configs_are_found(name, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        cli.read_config([f'--config=configs/{name}'])
    sentence = str(caught.value)
    assert sentence.startswith(f'there is no config file configs/{name}')
    assert sentence.endswith(f'The configs of the project are in {ROOT}/configs.')
    assert (f'did you mean {ROOT}/configs/{meant}' in sentence) == (meant is not None)


def test_a_bug_in_a_config_file_keeps_its_traceback(tmp_path):
    file = tmp_path / 'mine.py'
    for code, error in (('config.modle.depth = 8', AttributeError), ("{}['x']", KeyError)):
        file.write_text('from configs import digits_r20\n'
                        f'def get_config():\n    config = digits_r20.get_config()\n    {code}\n')
        with pytest.raises(error):
            cli.read_config([f'--config={file}'])
    for text in ('x = = 1', 'import nowhere', 'x = 1'):
        file.write_text(text)
        with pytest.raises(UserError, match=r'mine\.py is not a config file'):
            cli.read_config([f'--config={file}'])


@pytest.mark.parametrize(('command', 'missing'), [
    (lambda folder: study.rows([]), 'altair'),
    (lambda folder: study.rows([]), 'vl_convert'),
    (lambda folder: complexity.main([]), 'altair'),
    (lambda folder: scaling.main([]), 'vl_convert'),
    (lambda folder: look.main(['look', f'{folder}/none']), 'umap')])
def test_packages_are_looked_for_before_time_is_spent(command, missing, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, 'find_spec', lambda name: None if name == missing else True)
    with pytest.raises(UserError, match=missing.replace('_', '-')) as caught:
        command(tmp_path)
    assert str(caught.value).endswith(packages.INSTALL)
