"""The README tells the truth about sizes and files."""

import pathlib
import re
import runpy

import pytest

from resnet_jax.summary import summarize

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
VALUES = {'false': False, '34': 34, '19': 19}
ROWS = re.findall(r'^\| (.+?) \| `(configs/\w+\.py)`(.*?) \| ([\d,]+) \| ([\d,]+) \|$', README,
                  re.MULTILINE)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[0])
def test_the_table_is_what_summary_prints(row):
    _, path, overrides, parameters, multiply_adds = row
    config = runpy.run_path(str(ROOT / path))['get_config']()
    for field, value in re.findall(r'`([\w.]+)=([\w.]+)`', overrides):
        config.update_from_flattened_dict({field: VALUES.get(value, value)})
    config.model.unroll = False  # the same numbers, sooner
    summary = summarize(config)
    assert f'{summary["parameters"]:,}' == parameters
    assert f'{summary["multiply_adds"]:,}' == multiply_adds


def test_the_table_has_every_network_of_the_paper():
    names = {row[0] for row in ROWS}
    assert {f'ResNet-{d}' for d in (18, 34, 50, 101, 152, 20, 32, 44, 56, 110, 1202)} <= names


def test_every_file_that_the_layout_names_is_there():
    layout = README.split('## Layout')[1].split('```')[1]
    for line in layout.strip().splitlines():
        name = line.split()[0]
        assert (ROOT / ('resnet_jax' if line.startswith(' ') else '') / name).exists(), name
