"""The mean and deviation of a split are exact, shared out between processes, and never 0 or NaN."""

import threading

import jax
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import normalization, statistics
from resnet_jax.data.decode import UnreadableImageError
from resnet_jax.data.folder import open_folder
from resnet_jax.data.skips import Skips
from resnet_jax.data.sources import labelled
from resnet_jax.data.transforms import EvalTransform
from resnet_jax.data.types import Item
from resnet_jax.errors import UserError

TRANSFORM = EvalTransform(8, 8)


class Counted:
    """Images that must be decoded, or so it seems: counts how often each is read."""

    num_classes, fingerprint, cache_key = 1, 'counted', 'counted'

    def __init__(self, num_images):
        self.images = np.random.default_rng(0).integers(
            0, 256, (num_images, 8, 8, 3), dtype=np.uint8)
        self.reads = np.zeros(num_images, int)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads[index] += 1
        return Item(self.images[index], {}, f'image {index}')


def expected(images):
    fractions = images / 255
    return fractions.mean(0), fractions.mean((0, 1, 2)), fractions.std((0, 1, 2))


def test_statistics_are_those_of_numpy_and_the_sums_are_exact():
    source = Counted(700)  # three chunks
    sums = statistics.add_up(source, TRANSFORM, range(700))
    np.testing.assert_array_equal(sums.images, source.images.sum(0, dtype=np.uint64))
    np.testing.assert_array_equal(
        sums.squares, np.square(source.images.astype(np.uint64)).sum((0, 1, 2)))
    for found, wanted in zip(statistics.statistics(sums), expected(source.images), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize('processes', [1, 2, 3, 7, 20])
def test_the_shares_of_any_number_of_processes_add_up_to_the_same_integers(processes):
    source = Counted(13)
    shares = [statistics.share(13, i, processes) for i in range(processes)]
    assert [row for rows in shares for row in rows] == list(range(13))
    alone = statistics.add_up(source, TRANSFORM, range(13))
    parts = [statistics.pack(statistics.add_up(source, TRANSFORM, rows), (8, 8, 3))
             for rows in shares]
    assert parts[0].dtype == np.uint32
    together = statistics.added([sums for part in parts
                                 if (sums := statistics.unpack(part, (8, 8, 3))) is not None])
    jax.tree.map(np.testing.assert_array_equal, together, alone)


def test_a_long_measurement_reports_its_progress(monkeypatch, capsys):
    monkeypatch.setattr(statistics, 'REPORT_SECONDS', -1)
    statistics.add_up(Counted(300), TRANSFORM, range(300))
    assert capsys.readouterr().err == (
        'measured the mean of 256 of 300 training images\n'
        'measured the mean of 300 of 300 training images\n')


def test_packed_sums_keep_all_64_bits():
    sums = statistics.Sums(np.full((2, 2, 1), 2**63 + 5, np.uint64), np.array([2**40 + 1],
                                                                            np.uint64), 2**33)
    jax.tree.map(np.testing.assert_array_equal,
                 statistics.unpack(statistics.pack(sums, (2, 2, 1)), (2, 2, 1)), sums)


class Job:
    """Processes that are threads here."""

    def __init__(self, monkeypatch, count):
        self._barrier, self._local = threading.Barrier(count), threading.local()
        self._packed, self.count = [None] * count, count
        monkeypatch.setattr(jax, 'process_count', lambda: count)
        monkeypatch.setattr(jax, 'process_index', lambda: getattr(self._local, 'index', 0))
        monkeypatch.setattr(statistics, '_from_all_processes', self._gather)
        monkeypatch.setattr(statistics, '_from_first_process', lambda x: self._gather(x)[0])

    def _gather(self, packed):
        self._packed[self._local.index] = packed
        self._barrier.wait(60)
        gathered = np.stack(self._packed)
        self._barrier.wait(60)
        return gathered

    def run(self, function):
        """What the function returns in each process."""
        results = [None] * self.count

        def one(index):
            self._local.index = index
            results[index] = function(index)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_a_job_reads_every_image_once_and_all_processes_get_the_same_bits(monkeypatch, tmp_path):
    source = Counted(21)
    alone = normalization.measure(source, 'per_pixel_mean', TRANSFORM)
    source.reads[:] = 0
    job = Job(monkeypatch, 4)

    def measured(index):
        return normalization.measure(source, 'per_pixel_mean', TRANSFORM,
                                     str(tmp_path / f'disk{index}'))

    for found in job.run(measured):
        jax.tree.map(np.testing.assert_array_equal, found, alone)
    # Once more the first image, whose shape each process looks at.
    assert source.reads[1:].tolist() == [1] * 20
    assert len(list((tmp_path / 'disk0').iterdir())) == 1  # process 0 keeps the sums
    assert not (tmp_path / 'disk1').exists()
    source.reads[:] = 0
    for found in job.run(measured):
        jax.tree.map(np.testing.assert_array_equal, found, alone)
    assert source.reads[1:].sum() == 0


def cut_short(file):
    file.write_bytes(file.read_bytes()[:200])


def test_statistics_leave_out_the_images_that_training_skips(folder, tmp_path, capsys):
    names = [folder / 'train' / 'b' / f'000{i}.jpg' for i in (3, 5)]
    for name in names:
        cut_short(name)
    source, transform = open_folder(str(folder), 'train'), EvalTransform(24, 24)
    with pytest.raises(UnreadableImageError, match=r'0003.jpg cannot be read'):
        normalization.measure(source, 'per_channel', transform)
    found = normalization.measure(source, 'per_channel', transform, skip_unreadable=True)
    assert capsys.readouterr().err.splitlines() == [
        f'warning: skipped an image: {name} cannot be read: its JPEG header is incomplete or '
        'damaged.' for name in names]
    for name in names:
        name.unlink()
    good = normalization.measure(open_folder(str(folder), 'train'), 'per_channel', transform)
    jax.tree.map(np.testing.assert_array_equal, found, good)
    for name in (folder / 'train').glob('*/*'):
        cut_short(name)
    with pytest.raises(UserError, match='none of the training images can be read'):
        normalization.measure(open_folder(str(folder), 'train'), 'per_channel', transform,
                              skip_unreadable=True)


def test_ten_thousand_unreadable_images_are_seven_lines(capsys):
    skips = Skips()
    for i in range(10_000):
        skips.add(f'{i}.jpg cannot be read: it is empty.')
    lines = capsys.readouterr().err.splitlines()
    assert skips.count == 10_000
    assert lines[:3] == [f'warning: skipped an image: {i}.jpg cannot be read: it is empty.'
                         for i in range(3)]
    assert lines[3:] == [f'warning: skipped {count:,} unreadable images so far; the last one: '
                         f'{count - 1}.jpg cannot be read: it is empty.'
                         for count in (10, 100, 1_000, 10_000)]


@pytest.mark.parametrize('value', [0, 57, 255])
def test_a_constant_channel_is_an_error_that_names_it(value):
    images = np.random.default_rng(0).integers(0, 256, (300, 7, 9, 3), dtype=np.uint8)
    images[..., 1] = value
    source = labelled(images, np.zeros(300), 1, 'made up')
    with pytest.raises(UserError, match=(
            rf'the green channel of the training images is constant, {value} of 255 .* set '
            r'data.normalization to per_pixel_mean, imagenet or none\.')):
        normalization.measure(source, 'per_channel')
    assert np.isfinite(normalization.measure(source, 'per_pixel_mean')['mean']).all()
    grey = labelled(images[..., 1:2], np.zeros(300), 1, 'made up')
    with pytest.raises(UserError, match=r'the only channel .* set data.normalization to '
                                        r'per_pixel_mean or none\.'):
        normalization.measure(grey, 'per_channel')
    # A channel of which one pixel differs is none of these.
    images[0, 0, 0, 1] ^= 1
    assert normalization.measure(source, 'per_channel')['std'][1] > 0


def test_grey_images_saved_in_colour_are_fine(tmp_path):
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(grey).convert('RGB').save(tmp_path / 'train' / 'a' / '0.png')
    found = normalization.measure(open_folder(str(tmp_path), 'train'), 'per_channel', TRANSFORM)
    np.testing.assert_array_equal(found['std'], np.float32(grey.std() / 255))


def test_a_cache_that_cannot_be_written_is_one_line(folder, tmp_path, capsys):
    (tmp_path / 'file').write_text('not a folder')
    source = open_folder(str(folder), 'train')
    normalization.measure(source, 'per_channel', TRANSFORM, str(tmp_path / 'file'))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f'warning: {tmp_path}/file/statistics-')
    assert line.endswith(' was not cached: File exists.')
