"""The site: it builds without a warning, asks for nothing elsewhere, and is accessible."""

import functools
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import pytest
import yaml

from tests import browser

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ('index.html', 'start.html', 'train.html', 'detection.html', 'networks.html',
         'results/index.html', 'reference/commands.html', 'reference/models.html',
         'files/resnet_jax/models/vgg.py.html')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The folder of the site; the build fails at the first warning."""
    pytest.importorskip('material')
    pytest.importorskip('mkdocstrings')
    folder = tmp_path_factory.mktemp('site')
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', folder],
        cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT), 'NO_MKDOCS_2_WARNING': '1'},
        capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    return folder


@pytest.fixture(scope='module')
def seen(site):
    """What happens in Chromium."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        return browser.look('site.js', f'http://127.0.0.1:{server.server_port}/',
                            json.dumps(PAGES), timeout=600)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_every_page_of_the_navigation_is_there_and_nothing_is_loaded_from_elsewhere(site):
    pages = sorted(site.rglob('*.html'))
    assert {page.relative_to(site).as_posix() for page in pages} >= {
        *PAGES, 'evaluate.html', 'localization.html', 'seeing.html', 'pods.html', 'recipes.html',
        'checkpoints.html', 'performance.html', 'fidelity.html', 'extending.html',
        'contributing.html', 'changelog.html'}
    loaded = {}
    for page in [*pages, *site.rglob('*.css')]:
        text = page.read_text()
        found = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="?((?:https?:)?//[^"\s>]*)',
                           text)
        found += re.findall(r'<link(?![^>]*rel="?canonical)[^>]*\shref="?((?:https?:)?//[^"\s>]*)',
                            text)
        found += re.findall(r'(?:url\(|@import\s*)[\'"]?((?:https?:)?//[^\'")]*)', text) * (
            page.suffix == '.css')
        if found:
            loaded[page.relative_to(site)] = found
    assert loaded == {}


@pytest.mark.slow
def test_the_reference_has_the_public_functions_and_the_commands_their_flags(site):
    identifiers = set(re.findall(r' id="?([\w.]+)"?', ''.join(
        page.read_text() for page in (site / 'reference').glob('*.html'))))
    assert identifiers >= {
        'resnet_jax.load', 'resnet_jax.create', 'resnet_jax.errors.UserError',
        'resnet_jax.models.create', 'resnet_jax.models.registry.Family',
        'resnet_jax.regions.nms.nms', 'resnet_jax.tasks.task.Task',
        'resnet_jax.training.loop.train', 'resnet_jax.data.types.Source',
        'resnet_jax.weights.read', 'resnet_jax.config.fields.default'}
    commands = (site / 'reference' / 'commands.html').read_text()
    assert '--draw' in commands and '--protocol=center_crop|ten_crop' in commands
    # A doctest is code, not a quotation of a quotation.
    page = (site / 'reference' / 'resnet_jax.html').read_text()
    assert '<blockquote>' not in page and '&gt;&gt;&gt; ' in page


@pytest.mark.slow
def test_no_page_asks_for_anything_elsewhere_or_complains(seen):
    assert seen['requests'] == [] and seen['console'] == []
    assert seen['results'] > 0  # of the search


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES)
def test_pages_are_accessible_in_light_and_dark(seen, page):
    for theme in ('light', 'dark'):
        found = seen['pages'][page][theme]
        assert found['passes'] > 20
        assert [one for one in found['violations']
                if one['impact'] in ('serious', 'critical')] == []
    assert seen['pages'][page]['overflow'] == 0  # on a phone
    light, dark = (seen['pages'][page][theme]['background'] for theme in ('light', 'dark'))
    assert light == 'rgb(255, 255, 255)' and dark != light


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {'cff-version', 'title', 'message', 'authors', 'version', 'license'} <= set(citation)
    assert citation['authors'] == [{'name': 'The resnet_jax contributors'}]
    setup = (ROOT / 'setup.cfg').read_text()
    assert f'\nversion = {citation["version"]}\n' in setup
    assert f'\nlicense = {citation["license"]}\n' in setup
    paper = citation['preferred-citation']
    assert {'type', 'title', 'authors', 'year'} <= set(paper)
    assert [one['family-names'] for one in paper['authors']] == ['He', 'Zhang', 'Ren', 'Sun']
    assert paper['year'] == 2016


def test_the_workflow_runs_what_decides_here():
    workflow = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())
    job = workflow['jobs']['run']
    assert [step['run'] for step in job['steps'] if 'run' in step] == ['bash .ci/run']
    setup = (ROOT / 'setup.cfg').read_text()
    supported = re.findall(r'Python :: (3\.\d+)', setup)
    assert job['strategy']['matrix']['python'] == supported
