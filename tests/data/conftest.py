"""Tiny datasets that the tests make, and the real ones where a variable says where they are."""

import os
import pathlib
import tarfile

import pytest

from resnet_jax import config as config_lib
from tests.data.data_helpers import write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / 'images')


@pytest.fixture
def config(tmp_path, folder):
    """Of a run on the image folder, through the host pipeline."""
    config = config_lib.default()
    config.batch_size, config.eval.batch_size = 8, 8
    data = config.data
    data.source, data.path, data.cache = 'folder', str(folder), str(tmp_path / 'cache')
    data.image_size, data.train_crop, data.flip = 24, 'random_resized', True
    data.chunk_size = 3
    return config


@pytest.fixture(scope='session')
def real_data(tmp_path_factory):
    """Unpacks a tar file of the real data, and returns the folder that it holds."""
    root = os.environ.get('RESNET_JAX_TEST_DATA')
    if not root:
        pytest.skip('RESNET_JAX_TEST_DATA is not set to the folder of the real data')

    def unpack(name: str) -> pathlib.Path:
        target = tmp_path_factory.mktemp('real')
        with tarfile.open(pathlib.Path(root) / name) as tar:
            tar.extractall(target, filter='data')
        return next(x for x in target.iterdir() if x.is_dir())

    return unpack
