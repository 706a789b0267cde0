"""The README tells the truth about sizes and files."""

import doctest
import os
import pathlib
import re

import pytest

from experiments import packages
from resnet_jax.training import loop

ROOT = pathlib.Path(__file__).parent.parent
MADE = ('runs', 'node_modules', 'build', 'dist')  # folders that are no part of the project
README = (ROOT / 'README.md').read_text()
ROWS = re.findall(r'^\| (.+?) \| `(configs/\w+\.py)`(.*?) \| ([\d,]+) \| ([\d,]+) \|$', README,
                  re.MULTILINE)


def test_the_table_has_every_network_of_the_paper():
    names = {row[0] for row in ROWS}
    assert {f'ResNet-{d}' for d in (18, 34, 50, 101, 152, 20, 32, 44, 56, 110, 1202)} <= names


def test_every_file_that_the_layout_names_is_there():
    layout = README.split('## Layout')[1].split('```')[1]
    for line in layout.strip().splitlines():
        name = line.split()[0]
        assert (ROOT / ('resnet_jax' if line.startswith(' ') else '') / name).exists(), name


def test_no_file_sends_people_to_the_package_that_only_looks_like_this_one():
    # On the package index resnet-jax is somebody else's.
    wrong = re.compile(r'resnet[-_]jax\[|pip install( -\S+)* *[\'"]?resnet[-_]jax')
    found, read = {}, 0
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith('.') and name not in MADE
                      and not name.endswith('.egg-info')]
        for path in (pathlib.Path(folder) / name for name in names):
            if path.suffix in ('.py', '.md', '.cfg', '.toml', '.txt', '.ipynb', '') and (
                    path.is_file() and path != pathlib.Path(__file__)):
                # As one line, without what separates the pieces of a string.
                text = re.sub(r'[\'"]\s*\n\s*f?[\'"]', '',
                              path.read_bytes().decode(errors='replace'))
                found |= {path.relative_to(ROOT): one[0] for one in wrong.finditer(text)}
                read += 1
    assert found == {} and read > 300
    name = re.search(r'^name = (.*)$', (ROOT / 'setup.cfg').read_text(), re.MULTILINE)[1]
    assert re.sub('[-_.]+', '-', name) not in ('resnet-jax', 'jax-resnet')


def test_the_readme_has_the_command_that_the_experiments_ask_for():
    assert packages.INSTALL in README.splitlines()


def test_the_readme_shows_what_the_first_command_prints(tmp_path, tiny_config, capsys):
    loop.train(tiny_config, tmp_path)

    def shapes(text):
        text = re.sub(r'\S*(tmp|runs)/\S*', 'FOLDER', text)
        return [re.sub(r' +', ' ', re.sub(r'\d[\d,.:e+-]*', '#', line))
                for line in text.strip().splitlines()]

    sample = README.split('What the first one prints:')[1].split('```')[1]
    printed = shapes(capsys.readouterr().out)
    first, *shown = [line for line in shapes(sample) if line != '…']
    assert first == 'workdir: FOLDER'
    assert set(shown) <= set(printed)
    assert [shown[0], shown[-1]] == [printed[0], printed[-1]]


class Numbers(doctest.OutputChecker):
    """Compares outputs but for the digits of what is not a whole number."""

    def check_output(self, want, got, optionflags):
        want, got = (re.sub(r'\d+\.\d+', '#', text) for text in (want, got))
        return super().check_output(want, got, optionflags)


@pytest.mark.slow
def test_the_lines_of_python_run_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    lines = README.split('```pycon\n')[1].split('```')[0]
    test = doctest.DocTestParser().get_doctest(lines, {}, 'README.md', 'README.md', 0)
    assert len(test.examples) == 9
    runner = doctest.DocTestRunner(Numbers(), optionflags=doctest.ELLIPSIS)
    assert runner.run(test).failed == 0
