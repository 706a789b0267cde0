"""Table 9 from numbers that are known, the ledger of detectors, and the picture of their errors."""

import json
import types

import numpy as np
import pytest

from configs import scenes_r20
from experiments import detection, detection_errors, ledger, pictures, study, tables
from experiments.claims import Verdict
from experiments.grid import Cell
from resnet_jax.config import leaves
from resnet_jax.errors import UserError
from resnet_jax.tasks.detection.truth import Found, Objects
from resnet_jax.training import evaluation

AP = {'baseline': (70, 72, 74), '+ box refinement': (71, 73.1, 75),
      '+ global context': (70, 74, 75.5), '+ multi-scale testing': (69, 73.2, 74.6),
      'ensemble': (76,)}
RESULTS = {name: {seed: {'ap': value, 'ap50': value + 20} for seed, value in enumerate(values)}
           for name, values in AP.items()}


def test_rows_are_compared_seed_by_seed():
    found = {finding.claim: finding for finding in detection.findings(RESULTS)}
    assert {claim: finding.verdict for claim, finding in found.items()} == {
        'box refinement raises AP': Verdict.HELD,
        'global context raises AP': Verdict.WITHIN_SPREAD,
        'multi-scale testing raises AP': Verdict.FAILED,
        'ensemble raises AP': Verdict.UNDECIDED}
    assert 'difference +1.03 ± ' in found['box refinement raises AP'].measured
    assert found['box refinement raises AP'].paper == '29.9 against 27.2 on COCO'
    assert found['ensemble raises AP'].paper == '37.4 against 34.9 on COCO'
    assert '76.00 (1 seed) against 72.27 (1 seed)' in found['ensemble raises AP'].measured


def test_the_table_has_the_papers_numbers_beside_the_measured_ones():
    lines = detection.table(RESULTS, leaves(scenes_r20.get_config())).splitlines()
    assert lines[0] == 'scenes, ResNet-20, 400 steps'
    lines = [' '.join(line.split()) for line in lines]
    assert lines[3] == 'baseline 92.00 ± 4.97 72.00 ± 4.97 3 48.4 / 27.2 -'
    assert lines[7] == 'ensemble 96.00 76.00 all together - 59.0 / 37.4'
    row = detection.numbers(RESULTS)[-1]
    assert row['row'] == 'ensemble' and row['paper_test_dev'] == 37.4 and row['paper_val'] is None
    title = detection.chart(RESULTS).to_dict()['title']
    assert title['text'].startswith('What appendix B adds')
    assert title['subtitle'] == 'mean over the seeds and 95 % t-interval'
    first = {name: {0: seeds[0]} for name, seeds in RESULTS.items()}
    assert detection.chart(first).to_dict()['title']['subtitle'] == 'one seed'


def test_every_row_tests_its_networks_with_its_flags(monkeypatch, tmp_path):
    calls = []

    def evaluate(paths, config, batches, options, given):
        calls.append(([path.split('/')[-1] for path in paths], options))
        return types.SimpleNamespace(values={'eval/ap': 50.0, 'eval/ap50': 70.0})

    monkeypatch.setattr(evaluation, 'evaluate', evaluate)
    monkeypatch.setattr(detection, 'SCALES', types.SimpleNamespace(value=None))
    rows = [{'run': f'{context} {seed}', 'config': {
        detection.CONTEXT: context, 'seed': seed, 'data.source': 'scenes'}}
        for context in (False, True) for seed in (0, 1)]
    found = detection.test(study.by(rows, detection.CONTEXT), tmp_path)
    assert {name: list(seeds) for name, seeds in found.items()} == {
        **{name: [0, 1] for name in list(AP)[:4]}, 'ensemble': [0]}
    multi = {'refine': True, 'protocol': 'multi_scale', 'scales': ['48', '64', '80']}
    assert calls == [
        (['False 0'], {}), (['False 1'], {}), (['False 0'], {'refine': True}),
        (['False 1'], {'refine': True}), (['True 0'], {'refine': True}),
        (['True 1'], {'refine': True}), (['True 0'], multi), (['True 1'], multi),
        (['True 0', 'True 1'], multi)]


def test_the_ledger_has_the_average_precision_of_detectors(tmp_path):
    cell = Cell({'seed': 0}, (), scenes_r20.get_config())
    lines = [{'step': 200, 'eval/ap': 60.0}, {'step': 300, 'eval/ap': 75.0},
             {'step': 400, 'train/loss': 0.5, 'train/images_per_second': 80.0},
             {'step': 400, 'eval/ap': 74.0}]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert not ledger.is_finished(cell, tmp_path)
    (tmp_path / 'checkpoints' / '400').mkdir(parents=True)
    row = ledger.row(cell, tmp_path)
    assert (row['status'], row['final_ap'], row['best_ap']) == ('finished', 74.0, 75.0)
    assert 'final_error' not in row and row['final_train_error'] is None
    assert tables.over_seeds([row]).splitlines()[0].split() == [
        'runs', 'AP', 'best', 'AP', 'training', 'loss', 'images/s', 'seconds']


def test_curves_are_those_of_the_classes_with_objects():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    truth = [Objects(boxes, np.array([0, 0]), np.zeros(2, bool), np.full(2, 100.0))]
    found = [Found(boxes[[0, 0, 1]], np.array([0, 0, 0]), np.array([0.9, 0.8, 0.7]))]
    points = detection_errors.curves_of(truth, found, ['cat', 'dog'])
    assert [(x['class'], x['recall'], round(x['precision'], 2)) for x in points] == [
        ('cat', 50, 100), ('cat', 50, 50), ('cat', 100, 66.67)]
    spec = detection_errors.chart(points, {'correct': 2, 'missed': 0}, 0.3).to_dict()
    assert [panel['title'] for panel in spec['hconcat']] == [
        'Precision and recall at an IoU of 0.5', 'Detections of a score of at least 0.3']


def test_a_picture_that_cannot_be_written_is_told_at_once(commands, tmp_path):
    found = commands.run('experiments.detection_errors', f'--output={tmp_path}/errors.svg')
    assert found.errors.startswith('error: give --checkpoint=DIR, for example: python -m exper')
    with pytest.raises(UserError, match=r'--output must end with \.svg or \.png'):
        pictures.output('errors.pdf', pictures.CHARTS)
    with pytest.raises(UserError, match=r'there is no folder .*nowhere; make it first'):
        pictures.output(str(tmp_path / 'nowhere' / 'errors.svg'), pictures.CHARTS)
