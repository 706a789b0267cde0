"""Pages of the site that are made of other files: the README, the source code and its docstrings.

MkDocs runs this file; see mkdocs.yml. The README is split at its second-level headings. A link
from a document to a file outside docs/ becomes a link to a page that shows that file, so the
documents read well both here and in a clone.
"""

import ast
import importlib
import os
import pathlib
import re

import griffe
import pymdownx.slugs
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / 'docs'
# Sections of the README that are not part of the front page.
SECTIONS = {
    'start.md': ('Get started', ('Quick start', 'In Python', 'Trained networks',
                                 "The paper's figures and tables", 'GPUs and TPU pods')),
    'networks.md': ('Networks', ('Networks',)),
    'layout.md': ('Layout', ('Layout',)),
}
COPIES = {'contributing.md': 'CONTRIBUTING.md', 'changelog.md': 'CHANGELOG.md'}
PACKAGES = ('models', 'regions', 'tasks', 'training', 'data', 'weights', 'config')
COMMANDS = ('main', 'evaluate', 'predict', 'summary', 'compile', 'convert', 'export',
            'data.prepare', 'data.check')
LINK = re.compile(r'(\]\()([^)\s#]+)(#[^)\s]*)?(\))')
FENCED = re.compile(r'^```.*?^```$', re.MULTILINE | re.DOTALL)
LANGUAGES = {'.py': 'python', '.json': 'json', '.ipynb': 'json', '.cff': 'yaml', '.yml': 'yaml'}


def on_files(files, config):
    pages = {**_readme(), **_reference(), **{
        page: (ROOT / source).read_text() for page, source in COPIES.items()}}
    shown = {path for page, text in pages.items() for path in _outside(text, _folder(page))}
    for file in files.documentation_pages():
        path = pathlib.Path(file.abs_src_path)
        shown |= set(_outside(path.read_text(), path.parent))
    for path in sorted(shown | {file for folder in shown for file in folder.glob('*.py')}):
        pages[_page_of(path)] = _shown(path)
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, **_):
    uri = page.file.src_uri
    folder = _folder(uri) if page.file.generated_by else (DOCS / uri).parent

    def link(match):
        before, target, anchor, after = match.groups()
        path = _resolved(target, folder)
        if path is None:
            return match[0]
        inside = path.is_relative_to(DOCS)
        page_of = path.relative_to(DOCS).as_posix() if inside else _page_of(path)
        if page_of == 'index.md':
            page_of = _page_of_section((anchor or '')[1:])
        return (before + os.path.relpath(page_of, pathlib.Path(uri).parent) + (anchor or '')
                + after)

    return _outside_fences(lambda text: LINK.sub(link, text), markdown)


def _outside_fences(change, markdown):
    """Applies a function to all text that is not in a fenced block."""
    parts, end = [], 0
    for block in FENCED.finditer(markdown):
        parts += [change(markdown[end:block.start()]), block[0]]
        end = block.end()
    return ''.join([*parts, change(markdown[end:])])


def _folder(page):
    """The folder to which the links of a generated page are relative."""
    made_of_root = page == 'index.md' or page in SECTIONS or page in COPIES
    return ROOT if made_of_root else (DOCS / page).parent


def _resolved(target, folder):
    """The file of the project that a link leads to; None if it leads elsewhere."""
    if '://' in target or target.startswith(('mailto:', '#')):
        return None
    path = pathlib.Path(os.path.normpath(folder / target))
    return path if path.exists() else None


def _outside(text, folder):
    """The files outside docs/ that the links of a document lead to."""
    for match in LINK.finditer(FENCED.sub('', text)):
        path = _resolved(match[2], folder)
        if (path is not None and not path.is_relative_to(DOCS)
                and str(path.relative_to(ROOT)) not in ('README.md', *COPIES.values())):
            yield path


def _page_of(path):
    """The page of a file outside docs/."""
    name = path.relative_to(ROOT).as_posix()
    pages = {'README.md': 'index.md', **{source: page for page, source in COPIES.items()}}
    return pages.get(name, f'files/{name}.md')


def _page_of_section(anchor):
    """The page that has a section of the README."""
    slug = pymdownx.slugs.slugify(case='lower')
    return next((page for page, (_, names) in SECTIONS.items()
                 if anchor in [slug(name, '-') for name in names]), 'index.md')


def _shown(path):
    """A page that shows a file, or lists a folder."""
    name = path.relative_to(ROOT).as_posix()
    front = '---\nsearch:\n  exclude: true\nhide: [navigation]\n---\n\n'
    if path.is_dir():
        listed = '\n'.join(f'- [{file.name}]({file.name}.md)' for file in sorted(path.glob('*.py')))
        # Beside the pages of its files lies the page of a folder: folder.md and folder/file.md.
        return f'{front}# {name}/\n\n{listed.replace("](", f"]({path.name}/")}\n'
    return (f'{front}# {path.name}\n\n`{name}`\n\n````{LANGUAGES.get(path.suffix, "text")}\n'
            f'{path.read_text()}\n````\n')


def _readme():
    """The README as several pages: {page: Markdown}."""
    first, *sections = re.split(r'^(?=## )', (ROOT / 'README.md').read_text(), flags=re.MULTILINE)
    by_title = {text[3:].partition('\n')[0]: text for text in sections}
    pages = {}
    for page, (title, names) in SECTIONS.items():
        for name in set(names) - set(by_title):
            raise PluginError(f'README.md has no section {name!r}; correct SECTIONS in {__file__}')
        texts = [by_title.pop(name) for name in names]
        if len(texts) == 1:
            texts = [texts[0].partition('\n')[2]]
        pages[page] = f'# {title}\n\n' + '\n'.join(texts)
    return {'index.md': first + '\n'.join(by_title.values()), **pages}


def _reference():
    """The pages of the reference: {page: Markdown}."""
    package = ROOT / 'resnet_jax'
    pages = {'reference/commands.md': _commands(), 'reference/resnet_jax.md': ''.join(
        ['# resnet_jax\n\n', _module(package / '__init__.py'), _module(package / 'errors.py')])}
    for name in PACKAGES:
        modules = sorted((package / name).glob('*.py'),
                         key=lambda file: (file.stem != '__init__', file))
        pages[f'reference/{name}.md'] = (
            f'# {name}\n\n' + ''.join(_module(file) for file in modules))
    return pages


def _module(path):
    """What a module defines for others; nothing if that is nothing."""
    tree = ast.parse(path.read_text())
    members = [node.name for node in tree.body
               if isinstance(node, ast.FunctionDef | ast.ClassDef)
               and not node.name.startswith('_') and ast.get_docstring(node)]
    is_package = path.stem == '__init__'
    if not members and not is_package:
        return ''
    parts = path.relative_to(ROOT).with_suffix('').parts
    name = '.'.join(parts[:-1] if is_package else parts)
    listed = ''.join(f'        - {member}\n' for member in members) if members else ' false'
    return (f'::: {name}\n    options:\n      members:' + ('\n' if members else '') + listed
            + '\n\n')


def _commands():
    """What every command prints for --help."""
    cli = importlib.import_module('resnet_jax.cli')
    parts = ['# Commands\n\nWhat each command prints for `--help`.\n']
    for name in COMMANDS:
        module = importlib.import_module(f'resnet_jax.{name}')
        parts.append(f'## resnet_jax.{name}\n\n```text\n{cli.help_text(module.main)}\n```\n')
    return '\n'.join(parts)


class Docstrings(griffe.Extension):
    """Marks examples and commands in docstrings as code, which Markdown would not recognise."""

    def on_instance(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = _with_code(obj.docstring.value)


def _with_code(text):
    """A docstring with fences around its doctests, and around what its first part indents."""
    description, *sections = re.split(r'^(?=(?:Args|Attributes|Returns|Raises|Yields):$)', text,
                                      flags=re.MULTILINE)
    paragraphs = re.split(r'\n{2,}', description)
    for i, paragraph in enumerate(paragraphs):
        if paragraph.startswith('>>> '):
            paragraphs[i] = f'```pycon\n{paragraph.rstrip()}\n```\n'
        elif paragraph.strip() and all(line.startswith('  ') for line in paragraph.splitlines()):
            paragraphs[i] = f'```text\n{paragraph.rstrip()}\n```\n'
    return '\n\n'.join(paragraphs) + ''.join(sections)
