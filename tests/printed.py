"""The commands that the documents print, and what each would make of its flags."""

import ast
import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
PYTHON = re.compile(r'(?:\.venv/bin/)?python[\d.]*$')
LOOP = re.compile(r'^for (\w+) in ([\w ]+); do\n(.*?)^done', re.MULTILINE | re.DOTALL)
BARE = re.compile(r'python3? -m \S+|(python3? -m resnet_jax|resnet-jax) \w+')  # only a name
OPERATORS = re.compile(r'[;&|()]+$')
REDIRECTIONS = re.compile(r'\d?[<>]+&?$')
HERE_DOCUMENT = re.compile(r"<<'EOF'\n(?!#!).*?^EOF$", re.MULTILINE | re.DOTALL)  # not a script
# A line of a block is a command if it starts with one of these, after variables that it sets.
PROGRAMS = ('python', 'python3', '.venv/bin/python', 'pip', '.venv/bin/pip', '.venv/bin/ruff',
            '.venv/bin/mkdocs', 'cat', 'find', 'hf', 'resnet-jax', 'taskset', 'tensorboard',
            'tfds')
SHELL = ('[', 'cat', 'cd', 'cp', 'curl', 'do', 'done', 'else', 'exit', 'export', 'fi', 'find',
         'for', 'if', 'kill', 'main', 'on_all', 'set', 'sh', 'source', 'tail', 'tar', 'then',
         'until', 'wait', 'while')
# Parses the flags as the command itself does, and checks the ranges of the config.
PARSE = '''
import runpy, sys
from absl import app, flags

def parse(main, flags_parser):
    flags_parser(sys.argv)
    from resnet_jax.config import check_ranges, given
    if 'config' in flags.FLAGS and flags.FLAGS.config is not None:
        check_ranges(given(flags.FLAGS.config))

app.run = parse
name = sys.argv[0] = sys.argv.pop(1)
if name.endswith('.py'):
    sys.path.insert(0, name.rpartition('/')[0])
    runpy.run_path(name, run_name='__main__')
else:
    runpy.run_module(name, run_name='__main__', alter_sys=True)
'''


class Printed(NamedTuple):
    """A command.

    Attributes:
      words: of the command, without variables that it sets; `python` for any of its names.
      place: the document.
      not_run: whether its config says that it has not been run.
    """

    words: tuple[str, ...]
    place: str
    not_run: bool = False

    @property
    def text(self) -> str:
        """Its normal form."""
        return ' '.join(self.words)

    @property
    def module(self) -> str | None:
        """The module or script of the project that it runs."""
        if self.words[0] != 'python':
            return None
        name = self.words[2 if self.words[1:2] == ('-m',) else 1]
        return name if re.match(r'(resnet_jax|experiments)\b', name) else None


def documents() -> list[pathlib.Path]:
    return [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]


def commands() -> list[Printed]:
    """All commands of the documents, the configs' docstrings and the commands' own."""
    found = []
    for path in documents():
        found += [Printed(words, str(path.relative_to(ROOT)))
                  for words in of_document(path.read_text())]
    sources = [*(ROOT / 'configs').glob('*.py'), *(ROOT / 'experiments').rglob('*.py'),
               *(ROOT / 'resnet_jax').rglob('*.py')]
    for path in sorted(sources):
        text = ast.get_docstring(ast.parse(path.read_text())) or ''
        not_run = path.parent.name == 'configs' and 'Not run' in text
        found += [Printed(words, str(path.relative_to(ROOT)), not_run)
                  for words in of_docstring(text)]
    return found


def of_document(text: str) -> Iterator[tuple[str, ...]]:
    """The commands in the blocks and spans of code of a Markdown file."""
    for language, block in re.findall(r'^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        if language in ('', 'bash'):
            yield from of_lines(block, whole=language == 'bash')
    prose = re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r'`([^`]+)`', prose):
        line = ' '.join(span.split())
        # Not the bare names of programs and modules, nor what an ellipsis cuts short.
        if (' ' in line and line.startswith(PROGRAMS) and '…' not in line
                and not BARE.fullmatch(line)):
            yield from of_lines(line)


def of_docstring(text: str) -> Iterator[tuple[str, ...]]:
    """The commands in the indented lines and spans of code of a docstring."""
    lines = re.sub(r'\\\n\s*', '', text)
    yield from of_lines('\n'.join(line.strip() for line in re.findall(r'^ +\S.*', lines, re.M)))
    for span in re.findall(r'`([^`]+)`', text):
        line = ' '.join(span.split())
        if line.startswith(('python ', 'tfds ', 'pip ')) and not BARE.fullmatch(line):
            yield from of_lines(line)


def of_lines(text: str, whole: bool = False) -> Iterator[tuple[str, ...]]:
    """The commands in lines of code.

    Args:
      text: the lines.
      whole: whether every line is one of a shell; otherwise, those that start with a program.
    """
    text = LOOP.sub(lambda loop: ''.join(
        loop[3].replace(f'${loop[1]}', value) for value in loop[2].split()),
        HERE_DOCUMENT.sub('', text))
    for line in re.sub(r'\\\n\s*', '', text).splitlines():
        line = re.sub(r'(^|\s)#.*|\d>&\d', '', line).strip()
        start = re.sub(r'^(\w+=\S*\s+)+', '', line)
        if not start or not (whole or start.split()[0] in PROGRAMS):
            continue
        for words in _split(line):
            yield from _normal(words)


def _split(line: str) -> list[list[str]]:
    """The commands of a line, as words; what stands in quotes is split, too, if it has several."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts, is_file = [[]], False
    try:
        for word in lexer:
            if is_file or REDIRECTIONS.match(word):
                is_file = not is_file
            elif OPERATORS.match(word):
                parts.append([])
            else:
                parts[-1].append(word)
    except ValueError:  # the quotation ends on a later line
        pass
    inner = [word for words in parts for word in words
             if re.search(r'&&|\bpython3? -m ', word) and not word.startswith('^')]
    return parts + [words for word in inner for words in _split(word)]


def _normal(words: list[str]) -> Iterator[tuple[str, ...]]:
    """A command in its normal form, if it is one."""
    while words and (re.match(r'\w+=', words[0]) or words[0] in ('exec', 'do', 'nohup', 'time')
                     or (words[0], *words[1:2]) == ('taskset', '-c')):
        words = words[3:] if words[0] == 'taskset' else words[1:]
    words = [word for word in words if not re.fullmatch(r'\$\{?[@\d].*', word)]
    if not words or words[0] in SHELL or words[0] == 'EOF':
        return
    if words[0] == 'resnet-jax':
        words = ['python', '-m', 'resnet_jax', *words[1:]]
    name = 'python' if PYTHON.match(words[0]) else words[0].removeprefix('.venv/bin/')
    if re.match(r'[\w./-]+$', name):
        yield name, *words[1:]
