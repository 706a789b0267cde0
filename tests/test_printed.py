"""Every command that the documents print is run by a test, or it stands here why not.

What the project's own commands make of their flags, the configs that they name and the fields that
they set is checked for all of them, those in the docstrings of commands too.
"""

import configparser
import re

import pytest

from resnet_jax import cli
from resnet_jax.config import leaves
from tests import printed
from tests.printed import Printed
from tests.test_printed_runs import RUNS

ROOT = printed.ROOT
COMMANDS = printed.commands()
# Where the documents end, and the help of the commands begins.
IN_DOCUMENTS = [one for one in COMMANDS
                if not one.place.startswith(('resnet_jax/', 'experiments/'))]
CI = '.ci/run'
BENCHMARKS = 'tests/experiments/test_benchmarks.py::test_'
FIGURES = 'tests/experiments/test_figures.py::test_'
THREE_COMMANDS = ('tests/training/test_choices.py::'
                  'test_three_commands_lead_from_a_folder_of_five_classes_to_names')
# Normal form, or a regular expression for it: the test that runs the same on less.
RUN_ELSEWHERE = {
    r'python[\d.]* -m venv \.venv': CI,
    r'pip install -q -r requirements\.txt -e \.': CI,
    r'pip install -q -r requirements\.txt -r experiments/requirements\.txt -e \.\[test\]': CI,
    r'pip install -q -e \.\[docs\]': CI,
    r'python -m pytest -q -n 2( tests/models)?': CI,
    'python -m pytest -n 2 -m slow': CI,
    r'ruff check \.': CI,
    'mkdocs build --strict': CI,
    r'python -m resnet_jax.predict --checkpoint=hf:\S+ photo\.jpg':
        'tests/weights/test_hub.py::test_commands_take_names',
    r'python -m resnet_jax.main --config=configs/finetune.py --config.init.checkpoint=hf:\S+ .*':
        'tests/training/test_own_images.py::'
        'test_fine_tuning_takes_architecture_and_size_from_the_weights_and_says_so',
    'python -m resnet_jax.predict --checkpoint=runs/finetune photo.jpg': THREE_COMMANDS,
    'python -m resnet_jax.evaluate --workdir=runs/finetune .*': THREE_COMMANDS,
    'python -m experiments.tour': 'tests/experiments/test_tour.py::test_the_tour_runs_to_its_end',
    r'python -m experiments.scaling --output=scaling\.svg FILE\.json':
        'tests/experiments/test_scaling.py::test_a_chart_has_the_predictions_of_each_file',
    'python -m resnet_jax.data.check --benchmark( .*)?':
        'tests/data/test_workers.py::test_benchmark_says_how_many_chips_a_host_feeds',
    'python -m experiments.look .*': 'tests/experiments/test_look.py::'
                                     'test_the_command_looks_at_two_networks',
    'python -m experiments.degradation( --ledger=.*)?': FIGURES + 'the_command_draws_a_ledger',
    'python -m experiments.depth( --ledger=.*)?': FIGURES + 'table_6_stands_beside_the_paper',
    'python -m experiments.responses( --ledger=.*)?':
        FIGURES + 'responses_are_those_of_a_network_computed_layer_by_layer',
    'python -m experiments.shortcuts': FIGURES + 'table_3_compares_the_options',
    'python -m experiments.complexity( --ledger=.*)?': FIGURES + 'sizes_of_the_published_networks',
    'python -m experiments.detection': 'tests/experiments/test_detection.py::'
                                       'test_every_row_tests_its_networks_with_its_flags',
    'python -m experiments.sweep .*':
        'tests/experiments/test_sweep.py::test_the_real_thing_stopped_while_it_trains',
    r'python experiments/benchmarks/train_step\.py .*':
        BENCHMARKS + 'train_step_gives_every_contender_as_many_passes_as_asked',
    r'python experiments/benchmarks/startup\.py .*':
        BENCHMARKS + 'startup_reaches_the_first_step_after_the_compilation',
    r'python experiments/benchmarks/cifar\.py .*':
        BENCHMARKS + 'cifar_adds_up_the_pieces_of_a_run',
    r'python experiments/benchmarks/gpu_traffic\.py .*':
        BENCHMARKS + 'gpu_traffic_counts_kernels_or_says_what_is_missing',
    r'python experiments/benchmarks/inference\.py .*':
        BENCHMARKS + 'inference_times_every_runtime_and_onnxruntime_computes_what_pytorch_does',
    r'python experiments/benchmarks/detection\.py .*':
        BENCHMARKS + 'the_detector_and_torchvisions_compute_the_same',
    r'python experiments/benchmarks/regions\.py .*':
        'tests/regions/test_benchmark.py::'
        'test_the_contenders_agree_and_each_is_measured_or_says_why_not',
    'python -m resnet_jax.compile .*':
        'tests/xla/test_compile.py::test_a_tpu_slice_is_compiled_for_without_a_tpu',
    'python -m resnet_jax.main .*init.resume_from.*':
        'tests/training/test_fork.py::test_a_fork_may_have_another_recipe',
    r'python -m resnet_jax.main --config=configs/bccd_r18.py --config.data.path=(DIR|bccd)':
        'tests/test_printed_runs.py::'
        'test_the_commands_of_the_documents_run_one_after_the_other',
    'python -m resnet_jax.main --config=configs/voc_r50_c4.py .*':
        'tests/tasks/detection/test_commands.py::'
        'test_a_converted_classifier_is_the_start_of_a_detector',
    'python -m resnet_jax.main --config=configs/nuclei_r20.py .*':
        'tests/tasks/detection/test_mask_branch.py::'
        'test_it_is_trained_evaluated_and_its_masks_predicted',
    r'python -m resnet_jax.convert --input=fasterrcnn_\S+ .*':
        'tests/weights/test_fpn_names.py::test_a_detector_goes_in_and_out_bit_for_bit',
    r'python -m resnet_jax.convert --input=model_final_\S+ .*':
        'tests/weights/test_detectron2.py::'
        'test_a_detector_is_read_with_all_that_inference_needs',
    'python -m resnet_jax.(predict|export) --checkpoint=weights/(fpn|mask) .*':
        'tests/models/test_fpn_parity.py::'
        'test_it_detects_what_torchvision_detects_and_converts_both_ways_bit_for_bit',
    'python -m resnet_jax.data.prepare --source=voc .*--format=coco .*':
        'tests/data/test_prepare_objects.py::test_scenes_come_back_from_both_layouts_as_they_were',
    'python -m resnet_jax.data.check --source=voc --path=bccd .*':
        'tests/data/test_check_objects.py::test_check_reports_the_two_blood_cells_without_area',
    'python -m resnet_jax.main .*--num_processes=2 .*':
        'tests/distributed/test_processes.py::'
        'test_two_processes_of_four_devices_have_the_losses_of_one_of_eight',
}
SERVICE = 'it needs a service or a machine that tests do not have'
OF_OTHERS = ('minutes with weights and photographs of others; it was run as printed for '
             'docs/results/README.md')
NOT_RUN = {  # normal form, or a regular expression for it: the reason
    r'pip install .*\.\[(cuda|tpu)(,gcs)?\]': 'it installs gigabytes for devices that tests do not '
                                              'have',
    r'pip install .*\.\[(experiments|gcs|hub|test|torch)\]': 'a part of what .ci/run installs',
    'pip install torch torchvision onnx onnxscript': 'a part of what .ci/run installs',
    'pip install xpk': SERVICE,
    r'python -m resnet_jax.convert --input=resnet50_half_width_open_nsfw\.npz .*': OF_OTHERS,
    r'python -m resnet_jax.main --config=configs/imagenette_finetune\.py .*': OF_OTHERS,
    'python -m resnet_jax.predict --checkpoint=runs/imagenette_finetune photos/': OF_OTHERS,
    'python -m experiments.gallery .*photos_.*': OF_OTHERS,
    'tensorboard .*': 'a server of another project, which reads the event files',
    'mkdocs serve': 'a server; the build is tested',
    'hf .*': SERVICE,
    'tfds build .*': 'it downloads a data set; sources are tested on small ones in its format',
    r'python experiments/benchmarks/input_pipeline\.py .*': 'it measures minutes of decoding',
    r'python experiments/benchmarks/compile_time\.py .*': 'it compiles for many minutes',
    'python -m resnet_jax.main --config=configs/imagenet_.*': 'docs/recipes.md and the config: '
                                                              'more computing time than there was',
    '(gcloud|git archive|xpk|kubectl|srun|sbatch|scancel) .*': SERVICE,
}


def reasons(one: Printed) -> list[str]:
    """Why a command may be printed: what runs it, or why nothing does."""
    found = [f'{key}: {value}' for table in (RUN_ELSEWHERE, NOT_RUN)
             for key, value in table.items() if re.fullmatch(key, one.text)]
    if one.text in dict(RUNS):
        found.append('tests/test_printed_runs.py')
    if one.not_run:
        found.append(f'{one.place} says that it has not been run')
    return found


def test_every_printed_command_is_run_by_a_test_or_it_says_why_not():
    unknown = sorted({f'{one.place}: {one.text}' for one in IN_DOCUMENTS if not reasons(one)})
    assert unknown == []


def test_the_register_has_nothing_that_is_not_printed():
    texts = {one.text for one in IN_DOCUMENTS}
    assert [text for text, _ in RUNS if text not in texts] == []
    assert [key for key in (*RUN_ELSEWHERE, *NOT_RUN)
            if not any(re.fullmatch(key, text) for text in texts)] == []


@pytest.mark.parametrize('where', sorted({*RUN_ELSEWHERE.values()} - {CI}))
def test_the_tests_that_the_register_names_are_there(where):
    file, _, name = where.partition('::')
    found = re.findall(r'^def (test_\w+)', (ROOT / file).read_text(), re.MULTILINE)
    assert name in found


def test_what_ci_installs_and_runs_is_what_is_printed():
    script = (ROOT / '.ci' / 'run').read_text()
    for part in ('command_of_readme', 'pytest -q -n 2 -m slow', 'ruff check .',
                 'mkdocs build --strict', 'docs]'):
        assert part in script


def problem(commands, one: Printed) -> str | None:
    """What a command of the project, pip or pytest would not accept."""
    if one.module:
        files = one.module.endswith('.py')
        rest = [re.sub(r'\$\w+', '1', word) for word in one.words[2 if files else 3:]]
        done = commands.run('-c', printed.PARSE, str(ROOT / one.module) if files else one.module,
                            *rest)
        return None if done.status == 0 else done.errors.strip() or done.output.strip()
    if one.words[:2] == ('pip', 'install'):
        setup = configparser.ConfigParser()
        setup.read(ROOT / 'setup.cfg')
        wrong = {extra for word in one.words for extras in re.findall(r'^\.\[(.*)\]$', word)
                 for extra in extras.split(',')} - set(setup['options.extras_require'])
        wrong |= {word for word in one.words if word.endswith('.txt')
                  and not (ROOT / word).exists()}
        return f'there is no {", ".join(sorted(wrong))}' if wrong else None
    if one.words[:3] == ('python', '-m', 'pytest'):
        missing = [word for word in one.words if word.startswith('tests/')
                   and not (ROOT / word).exists()]
        return f'there is no {", ".join(missing)}' if missing else None
    return None


@pytest.mark.slow
@pytest.mark.parametrize('part', range(4))
def test_every_printed_command_accepts_its_flags_its_config_and_the_fields(commands, part):
    # One is PyTorch's side of a command of ours; the other takes no flags, and would run.
    without = ('experiments/benchmarks/torch_cifar.py', 'experiments.tour')
    first = {one.text: one for one in COMMANDS if one.module not in without}
    wrong = {f'{one.place}: {one.text}': found for one in list(first.values())[part::4]
             if (found := problem(commands, one))}
    assert wrong == {}


@pytest.mark.parametrize(('line', 'says'), [
    ('python -m resnet_jax.main --config=configs/digits_r20.py --workdri=runs/x', '--workdir'),
    ('python -m resnet_jax.main --config=configs/digits_r20.py --config.modle.depth=8', 'model'),
    ('python -m resnet_jax.main --config=configs/digits_r2.py', 'no config file'),
    ('python -m resnet_jax.main --config=configs/digits_r20.py --config.model.depth=x', 'invalid'),
    ('python -m resnet_jax.main --config=configs/digits_r20.py --config.batch_size=0', 'batch'),
    ('python -m resnet_jax.evaluate --workdir=runs/x --protocol=tencrop', 'protocol'),
    ('python -m resnet_jax.convert --input=x', 'give --output=DIR'),
    ('python -m resnet_jax.export runs/x --output=y', 'unexpected argument'),
    ('python -m experiments.lok runs/x', 'No module'),
    ('python experiments/benchmarks/regions.py --jsn=x', '--json'),
    ("pip install -r requirements.txt -e '.[everything]'", 'everything'),
    ('.venv/bin/python -m pytest tests/modles', 'tests/modles'),
])
def test_a_mistake_in_a_printed_command_is_found(commands, line, says):
    (words,) = printed.of_document(f'```\n{line}\n```\n')
    assert says in problem(commands, Printed(words, 'here'))
    assert reasons(Printed(('python', '-m', 'resnet_jax.predict', '--new'), 'here')) == []


def test_every_field_that_is_set_in_the_documents_is_one_of_the_config():
    known = set(leaves(cli.read_config([f'--config={ROOT}/configs/digits_r20.py'])))
    sections = '|'.join(sorted({name.partition('.')[0] for name in known if '.' in name}))
    field = re.compile(rf'(?:--config\.|`)((?:(?:{sections})\.[\w.]+|(?<=config\.)\w+))=')
    found = {path: set(field.findall(path.read_text()))
             for path in (*printed.documents(), *(ROOT / 'configs').glob('*.py'))}
    assert sum(map(len, found.values())) > 100
    assert {path.name: fields - known for path, fields in found.items() if fields - known} == {}


def test_commands_are_found_in_blocks_spans_loops_and_quotes():
    text = ('Run `python -m resnet_jax.main --config=a.py`, `python -m resnet_jax.main` or\n'
            '`resnet-jax train`, short for `resnet-jax train --config=a.py`.\n\n'
            '```bash\nfor name in a b; do\n  X=1 python3 -m experiments.$name --parallel=2 &\n'
            "done; wait\non_all 'cd x && .venv/bin/python -m resnet_jax.summary \\\n"
            "  --config=b.py > log'\nnew_tool --flag   # what it does\n```\n\n"
            '```\nworkdir: runs/digits\npip install -e .\n```\n')
    assert [' '.join(words) for words in printed.of_document(text)] == [
        'python -m experiments.a --parallel=2', 'python -m experiments.b --parallel=2',
        'python -m resnet_jax.summary --config=b.py', 'new_tool --flag', 'pip install -e .',
        'python -m resnet_jax.main --config=a.py', 'python -m resnet_jax train --config=a.py']
