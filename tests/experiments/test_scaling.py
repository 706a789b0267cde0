"""The chart of predicted scaling."""

import json

import pytest

from experiments import charts, scaling
from resnet_jax.errors import UserError
from tests.printed import ROOT

POINTS = [{'scaling': kind, 'devices': devices, 'images_per_second': 1000.0 * devices,
           'efficiency': 0.9, 'efficiency_overlapped': 1.0, 'bound': 'memory'}
          for kind in ('weak', 'strong') for devices in (16, 256)]


def test_a_chart_has_the_predictions_of_each_file(tmp_path):
    for name in ('r50', 'r152'):
        (tmp_path / f'{name}.json').write_text(json.dumps({'base': {}, 'points': POINTS}))
    points = [point for name in ('r50', 'r152')
              for point in scaling.read(tmp_path / f'{name}.json')]
    assert len(points) == 8 and {point['run'] for point in points} == {'r50', 'r152'}
    charts.save_one(scaling.chart(points), tmp_path / 'chart.svg')
    drawn = (tmp_path / 'chart.svg').read_text()
    for text in ('weak scaling', 'strong scaling', 'efficiency', 'images per second', 'r152'):
        assert f'>{text}<' in drawn


def test_another_file_is_named(tmp_path):
    (tmp_path / 'a.json').write_text('[]')
    with pytest.raises(UserError, match=r'a\.json is not the output of `compile --sweep --json`'):
        scaling.read(tmp_path / 'a.json')


@pytest.mark.parametrize('network', ['ResNet-50', 'ResNet-152'])
def test_the_table_of_the_documents_holds_the_predictions(network):
    page = (ROOT / 'docs' / 'performance.md').read_text()
    points = json.loads((ROOT / 'docs' / 'scaling' / f'{network}.json').read_text())['points']
    for kind in ('weak', 'strong'):
        of_kind = [point for point in points if point['scaling'] == kind]
        assert [point['devices'] for point in of_kind] == [16, 64, 256]
        rows = [' | '.join([
            f'| {point["devices"]}', f'{point["images_per_device"]:.0f}',
            f'{1000 * max(point["flop_seconds"], point["memory_seconds"]):.1f}',
            f'{1000 * point["communication_seconds"]:.1f}', f'{point["images_per_second"]:,.0f}',
            f'{100 * point["efficiency"]:.0f} to {100 * point["efficiency_overlapped"]:.0f} % |'])
            for point in of_kind]
        assert f'| {network}, {kind} ' + '\n| '.join(rows) in page
