"""The commands that the documents print, those that tests run, and those marked as not run.

The mark is `not run by a test: REASON`. In a block it is a comment, either behind a command or
above the commands that it covers, which end at an empty line. In a sentence it covers the commands
of its paragraph and of the block that follows. A sentence with "this section" or "this page" covers
all commands there, and one with "other" covers those that no test runs.
"""

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
NOT_RUN = re.compile(r'[Nn]ot run by a test: ([a-z0-9].{9})')
HERE_DOCUMENT = re.compile(r"<<'EOF'\n(?!#!).*?^EOF$", re.MULTILINE | re.DOTALL)  # not a script
# A line of a block is a command if it starts with one of these, after variables that it sets.
PROGRAMS = ('python', 'python3', '.venv/bin/python', 'pip', '.venv/bin/pip', '.venv/bin/ruff',
            '.venv/bin/mkdocs', '.venv/bin/mypy', 'cat', 'find', 'hf', 'resnet-jax', 'taskset',
            'tensorboard', 'tfds')
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
      not_run: the words of the document that say that no test runs it; empty if there are none.
    """

    words: tuple[str, ...]
    place: str
    not_run: str = ''

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
        found += [one._replace(place=str(path.relative_to(ROOT)))
                  for one in of_document(path.read_text())]
    sources = [*(ROOT / 'configs').glob('*.py'), *(ROOT / 'experiments').rglob('*.py'),
               *(ROOT / 'resnet_jax').rglob('*.py')]
    for path in sorted(sources):
        text = ast.get_docstring(ast.parse(path.read_text())) or ''
        why = re.search(r'[Nn]ot\s+run\b[^.]*\.', text) if path.parent.name == 'configs' else None
        found += [Printed(words, str(path.relative_to(ROOT)), f'other: {why[0]}' if why else '')
                  for words in of_docstring(text)]
    return found


def of_document(text: str) -> Iterator[Printed]:
    """The commands in the blocks and spans of code of a Markdown file."""
    parts = [part for part in re.split(r'(^```\w*\n.*?^```$)|\n\n|\n(?=[|#]|- )', text,
                                       flags=re.MULTILINE | re.DOTALL) if part and part.strip()]
    marks = _marks(parts)
    for part, mark in zip(parts, marks, strict=True):
        language, block = re.fullmatch(r'```(\w*)\n(.*)```|.*', part, re.DOTALL).groups()
        if language in ('', 'bash'):
            yield from of_lines(block, language == 'bash', mark)
        elif language is None:
            for span in re.findall(r'`([^`]+)`', part):
                line = ' '.join(span.split())
                # Not the bare names of programs and modules, nor what an ellipsis cuts short.
                if (' ' in line and line.startswith(PROGRAMS) and '…' not in line
                        and not BARE.fullmatch(line)):
                    yield from of_lines(line, mark=mark)


def _marks(parts: list[str]) -> list[str]:
    """The sentence that says of the commands of each part that no test runs them, or ''."""
    marks = [''] * len(parts)
    level = [len(part) - len(part.lstrip('#')) for part in parts]
    for i, part in enumerate(parts):
        words = ' '.join(part.split())
        if part.startswith('```') or not NOT_RUN.search(words):
            continue
        first, end = i, i + 1
        if 'this page' in words:
            first, end = 0, len(parts)
        elif 'this section' in words:
            first = max(j for j in range(i) if level[j])
            end = next((j for j in range(i, len(parts)) if 0 < level[j] <= level[first]),
                       len(parts))
        elif parts[i + 1:i + 2] and parts[i + 1].startswith('```'):
            end = i + 2
        marks[first:end] = [words] * (end - first)
    return marks


def as_printed(line: str, more: str = '') -> list[str]:
    """What `commands.run` is given for a printed command, followed by flags that make it small.

    The tests that run a printed command do it by this, and are found by it.
    """
    words = shlex.split(line)[1:]
    return [*words[words[0] == '-m':], *shlex.split(more)]


def run_by_tests() -> set[str]:
    """The first arguments of all calls of `as_printed` in the tests."""
    found = set()
    for path in (ROOT / 'tests').rglob('test_*.py'):
        if 'as_printed(' in (text := path.read_text()):
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            found |= {call.args[0].value for call in calls
                      if ast.unparse(call.func).endswith('as_printed')
                      and isinstance(call.args[0], ast.Constant)}
    return found


def run_by_ci() -> set[str]:
    """The commands of .ci/run, and those of the blocks of the README that it runs."""
    script = (ROOT / '.ci' / 'run').read_text()
    blocks = re.findall(r'^```bash\n(.*?)^```$', (ROOT / 'README.md').read_text(),
                        re.MULTILINE | re.DOTALL)
    numbers = re.findall(r'^run_command (\d)$', script, re.MULTILINE)
    return {one.text for text in [script, *(blocks[int(number) - 1] for number in numbers)]
            for one in of_lines(text)}


def of_docstring(text: str) -> Iterator[tuple[str, ...]]:
    """The commands in the indented lines and spans of code of a docstring."""
    lines = re.sub(r'\\\n\s*', '', text)
    yield from (one.words for one in of_lines(
        '\n'.join(line.strip() for line in re.findall(r'^ +\S.*', lines, re.M))))
    for span in re.findall(r'`([^`]+)`', text):
        line = ' '.join(span.split())
        if line.startswith(('python ', 'tfds ', 'pip ')) and not BARE.fullmatch(line):
            yield from (one.words for one in of_lines(line))


def of_lines(text: str, whole: bool = False, mark: str = '') -> Iterator[Printed]:
    """The commands in lines of code.

    Args:
      text: the lines.
      whole: whether every line is one of a shell; otherwise, those that start with a program.
      mark: what the prose says of why no test runs them.
    """
    text = LOOP.sub(lambda loop: ''.join(
        loop[3].replace(f'${loop[1]}', value) for value in loop[2].split()),
        HERE_DOCUMENT.sub('', text))
    above = ''
    for line in re.sub(r'\\\n\s*', '', text).splitlines():
        code, comment = re.fullmatch(r'(.*?)((?:^|\s)#.*)?', line).groups()
        found = comment.strip() if comment and NOT_RUN.search(comment) else ''
        line = re.sub(r'\d>&\d', '', code).strip()
        if not line:
            above = found or (above if comment else '')
        start = re.sub(r'^(\w+=\S*\s+)+', '', line)
        if not start or not (whole or start.split()[0] in PROGRAMS):
            continue
        for words in _split(line):
            yield from (Printed(normal, '', found or above or mark)
                        for normal in _normal(words))


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
    inner = [re.sub(r'^\w+=', '', word) for words in parts for word in words
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
