"""The structure: who may import whom, how many modules lie where, and how long a file is."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / 'resnet_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
COMMANDS = ('__main__', 'main', 'evaluate', 'predict', 'summary', 'compile', 'convert', 'export',
            'data.check', 'data.prepare', 'data.command')

# What each room may import, besides itself.
BELOW = {
    'errors': (), 'regions': (), 'storage': ('errors',),
    'config': ('errors',), 'output': ('storage',),
    'models': ('regions',),
    'xla': ('errors', 'output'), 'distributed': ('errors', 'output', 'xla'),
    'data': ('config', 'errors', 'output', 'storage', 'distributed', 'xla', 'regions'),
    'weights': ('config', 'errors', 'output', 'storage', 'distributed', 'xla', 'models', 'data'),
}
BELOW['tasks'] = (*BELOW['weights'], 'weights', 'regions')
BELOW['training'] = (*BELOW['tasks'], 'tasks')
BELOW['cli'] = ('config', 'errors', 'storage')
BELOW['commands'] = (*BELOW['training'], 'training', 'cli')
BELOW['__init__'] = BELOW['commands']  # load and create, which import when they are called


def module_of(path):
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' and len(parts) > 1 else parts)


def room_of(module):
    return 'commands' if module in COMMANDS else module.split('.')[0]


def imports(path):
    """The modules of the package that a file imports, also within functions."""
    modules = {module_of(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'resnet_jax':
            below = node.module.removeprefix('resnet_jax').lstrip('.')
            for alias in node.names:
                whole = f'{below}.{alias.name}'.lstrip('.')
                yield whole if whole in modules else below
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith('resnet_jax.'):
                    yield alias.name.removeprefix('resnet_jax.')


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room = room_of(module_of(path))
    for imported in imports(path):
        other = room_of(imported)
        assert other == room or other in BELOW[room], f'{room} must not import {imported}'


def test_no_imports_go_round_in_a_circle():
    graph = {module_of(path): set(imports(path)) for path in FILES}
    for module, imported in graph.items():
        # A package and its own modules are one place.
        graph[module] = {other for other in imported
                         if not other.startswith(module) and not module.startswith(other + '.')}
    done, on_the_way = set(), []

    def visit(module):
        if module in done:
            return
        assert module not in on_the_way, ' -> '.join([*on_the_way, module])
        on_the_way.append(module)
        for other in graph.get(module, ()):
            visit(other)
        done.add(on_the_way.pop())

    for module in graph:
        visit(module)


def test_files_are_short_and_few_lie_directly_in_the_package():
    # Python itself wants __init__.py and __main__.py there.
    assert len(list(PACKAGE.glob('[!_]*.py'))) <= 12
    assert {path.name: lines for path in FILES
            if (lines := len(path.read_text().splitlines())) > 400} == {}


def test_regions_need_only_jax_and_numpy():
    allowed = {'collections', 'functools', 'math', 'typing', 'jax', 'numpy', 'resnet_jax'}
    for path in (PACKAGE / 'regions').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([node.module] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
            assert {name.split('.')[0] for name in names} <= allowed, path.name


def signatures(node, within=''):
    """The public functions of a module or class, whose names do not begin with '_', by name."""
    for one in node.body:
        if isinstance(one, ast.ClassDef) and not one.name.startswith('_'):
            yield from signatures(one, f'{one.name}.')
        elif isinstance(one, ast.FunctionDef) and (
                not one.name.startswith('_') or one.name == '__call__'):
            yield within + one.name, one


@pytest.mark.parametrize('room', ['models', 'regions', 'tasks', 'training'])
def test_public_functions_have_complete_signatures(room):
    """What mypy, which .ci/run starts, has to go by; it checks the bodies of all functions."""
    open_ones, count = [], 0
    for path in sorted((PACKAGE / room).rglob('*.py')):
        for name, function in signatures(ast.parse(path.read_text())):
            given = function.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs,
                         *filter(None, (given.vararg, given.kwarg))]
            missing = [one.arg for one in arguments
                       if one.annotation is None and one.arg not in ('self', 'cls')]
            if missing or function.returns is None:
                open_ones.append(f'{path.name}: {name}')
            count += 1
    assert open_ones == [] and count > 10
