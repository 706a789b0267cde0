"""The notebook runs from its first cell to its last, and docs/tour.md shows what it does."""

import json
import re
import shutil

import nbformat
import pytest

from experiments import tour
from tests.printed import as_printed

MOST_BYTES = 100_000  # of a picture


@pytest.mark.slow
def test_the_tour_runs_to_its_end(tmp_path, commands):
    # In a copy of the project, since it writes the page.
    shutil.copytree(tour.NOTEBOOK.parent, tmp_path / 'experiments')
    (tmp_path / 'configs').symlink_to(tour.ROOT / 'configs')
    (tmp_path / 'docs').mkdir()
    done = commands.run(*as_printed('python -m experiments.tour'), cwd=tmp_path, env={
        'RESNET_JAX_TOUR_STEPS': '6', 'RESNET_JAX_TOUR_DEPTHS': '8'})
    assert done.status == 0, done.errors
    text = (tmp_path / 'docs' / 'tour.md').read_text()
    assert 'of 297 test images are wrong' in text
    assert 'residual-8: ' in text and 'plain-8: ' in text
    pictures = sorted((tmp_path / 'docs' / 'tour').iterdir())
    assert [path.name for path in pictures] == ['picture1.png', 'picture2.png', 'picture3.svg']
    assert pictures[0].read_bytes().startswith(b'\x89PNG')
    assert '<svg' in pictures[2].read_text()


def test_the_tour_is_kept_without_outputs():
    cells = json.loads(tour.NOTEBOOK.read_text())['cells']
    assert all(not cell['outputs'] and cell['execution_count'] is None
               for cell in cells if cell['cell_type'] == 'code')


def test_the_page_has_the_cells_of_the_notebook_and_their_pictures():
    page, cells = tour.PAGE.read_text(), nbformat.read(tour.NOTEBOOK, 4).cells
    assert tour.NOTE in page
    place = 0
    for cell in cells:
        place = page.index(tour.source(cell), place) + len(tour.source(cell))
    assert re.findall(r'```python\n(.*?)\n```\n', page, re.DOTALL) == [
        cell.source for cell in cells if cell.cell_type == 'code']
    shown = [tour.PAGE.parent / path for path in re.findall(r'!\[.+?\]\((.*?)\)', page)]
    assert sorted(shown) == sorted(tour.PAGE.with_suffix('').iterdir())
    assert len(shown) == 3 and all(path.stat().st_size < MOST_BYTES for path in shown)
