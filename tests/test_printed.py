"""Every command that the documents print is run by a test as printed, or they say why it is not.

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
BY_TESTS = {text for text, _ in RUNS} | printed.run_by_tests()


def problems(commands: list[Printed], run: set[str]) -> set[str]:
    """The commands of which the documents say something else than what the tests do."""
    found = set()
    for one in commands:
        if one.text not in run and not one.not_run:
            found.add(f'{one.place}: no test runs {one.text}')
        if one.text in run and one.not_run and not re.search(r'\bother\b', one.not_run):
            found.add(f'{one.place}: a test runs {one.text}')
    return found


def test_every_printed_command_is_run_by_a_test_or_the_document_says_why_not():
    run = BY_TESTS | printed.run_by_ci()
    assert problems(IN_DOCUMENTS, run) == set()


def test_what_is_run_is_printed():
    assert BY_TESTS - {one.text for one in IN_DOCUMENTS} == set()


def test_every_reason_in_the_documents_is_that_of_a_command_which_no_test_runs():
    run = BY_TESTS | printed.run_by_ci()
    for path in printed.documents():
        marks = {one.not_run for one in IN_DOCUMENTS
                 if one.place == str(path.relative_to(ROOT)) and one.text not in run}
        used = {reason for mark in marks for reason in printed.NOT_RUN.findall(mark)}
        assert set(printed.NOT_RUN.findall(' '.join(path.read_text().split()))) == used, path


def problem_of(commands, one: Printed) -> str | None:
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
             if (found := problem_of(commands, one))}
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
    (one,) = printed.of_document(f'```\n{line}\n```\n')
    assert says in problem_of(commands, one)


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
            "  --config=b.py > log'\nnew_tool --flag   # what it does\n"
            'RUN="python -m resnet_jax.main \\\n  --config=c.py"\nssh "x/$RUN > log"\n```\n\n'
            '```\nworkdir: runs/digits\npip install -e .\n```\n')
    assert [one.text for one in printed.of_document(text)] == [
        'python -m resnet_jax.main --config=a.py', 'python -m resnet_jax train --config=a.py',
        'python -m experiments.a --parallel=2', 'python -m experiments.b --parallel=2',
        'python -m resnet_jax.summary --config=b.py', 'new_tool --flag',
        'python -m resnet_jax.main --config=c.py', 'ssh x/$RUN > log', 'pip install -e .']


def test_a_document_says_of_a_command_a_block_a_section_or_a_page_why_no_test_runs_it():
    why = 'not run by a test: it needs a cloud'
    block = f'```\ncat x  # none\n\n# {why}\npip a\npip b\n\npip c   # {why}\npip d\n```\n'
    text = (f'# Page\n\n`pip e`\n\n{block}\n## One\n\nThe next, `pip f`, is {why},\nof course.\n\n'
            '```bash\npip g\n```\n\n`pip h`\n\n'
            f'## Two\n\n`pip i`\n\nThe commands of this section are {why}.\n\n### Three\n\n'
            '`pip j`\n\n## Four\n\n`pip k`\n\n- `pip l`\n- `pip m` is ' + why + '\n')
    assert {one.text[-1] for one in printed.of_document(text) if one.not_run} == set('abcfgijm')
    page = text + f'\nThe other commands of this page are {why}.\n'
    assert all(one.not_run for one in printed.of_document(page))
    assert problems([*printed.of_document(text)], {'pip a', 'pip d'}) == {
        ': a test runs pip a', *(f': no test runs pip {x}' for x in 'ehkl')}
    assert len(problems([*printed.of_document(page)], {'pip d'})) == 0
