"""The notebook runs from its first cell to its last."""

import json
import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOK = pathlib.Path(__file__).parents[2] / 'experiments' / 'tour.ipynb'


@pytest.mark.slow
def test_the_tour_runs_to_its_end(monkeypatch):
    monkeypatch.setenv('RESNET_JAX_TOUR_STEPS', '6')
    monkeypatch.setenv('RESNET_JAX_TOUR_DEPTHS', '8')
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name='python3',
                            resources={'metadata': {'path': NOTEBOOK.parent}}).execute()
    printed = ''.join(output['text'] for cell in notebook.cells if cell.cell_type == 'code'
                      for output in cell.outputs if output.output_type == 'stream')
    assert 'of 297 test images are wrong' in printed
    assert 'residual-8: ' in printed and 'plain-8: ' in printed
    shown = [kind for cell in notebook.cells if cell.cell_type == 'code'
             for output in cell.outputs if output.output_type in ('execute_result', 'display_data')
             for kind in output['data']]
    assert shown.count('image/png') == 2
    assert shown.count('image/svg+xml') == 1


def test_the_tour_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())['cells']
    assert all(not cell['outputs'] and cell['execution_count'] is None
               for cell in cells if cell['cell_type'] == 'code')
