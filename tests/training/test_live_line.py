"""On a terminal, one line shows how far a run is; what is printed appears above it."""

import json

import pytest

from tests import commands as server

COLUMNS = 120
# A run whose stdout and stderr are a terminal; prints what the terminal was sent.
ON_A_TERMINAL = f'''
import fcntl, json, os, pathlib, signal, struct, sys, termios, threading
sys.path.insert(0, {str(server.ROOT)!r})
from resnet_jax.output import warn
from resnet_jax.training import log, loop
from tests import tiny

master, slave = os.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 30, {COLUMNS}, 0, 0))
result, sent = os.dup(1), []
os.dup2(slave, 1), os.dup2(slave, 2), os.close(slave)
sys.stdout, sys.stderr = os.fdopen(1, 'w', closefd=False), os.fdopen(2, 'w', closefd=False)
os.environ['TERM'] = 'xterm'

def read():
    while True:
        try:
            sent.append(os.read(master, 65536))
        except OSError:
            return

reader = threading.Thread(target=read)
reader.start()
add, steps = log.StepLog.add, 0

def adding(self, reports):
    global steps
    add(self, reports)
    steps += len(reports.learning_rate)
    if steps == 7:
        warn('seven.')
    if steps == 13 and 'stop' in sys.argv:
        os.write(1, b'^C')  # the terminal's echo
        os.kill(os.getpid(), signal.SIGINT)

log.StepLog.add, loop.LIVE_SECONDS = adding, 0
config = tiny.config()
try:
    loop.train(config, pathlib.Path('run'))
except loop.Stopped as stopped:
    print(stopped)
sys.stdout.flush()
empty = os.open(os.devnull, os.O_WRONLY)
os.dup2(empty, 1), os.dup2(empty, 2)
reader.join()
os.write(result, json.dumps(b''.join(sent).decode()).encode())
'''


def screen(sent):
    """The lines of an endless terminal, the last one being that of the cursor."""
    lines, column = [''], 0
    for letter in sent:
        if letter == '\n':
            lines.append('')
        elif letter == '\r':
            column = 0
        else:
            assert letter.isprintable(), repr(letter)
            lines[-1] = lines[-1].ljust(column)[:column] + letter + lines[-1][column + 1:]
            column += 1
            assert column <= COLUMNS
    return [line.rstrip() for line in lines]


@pytest.fixture(scope='module')
def outputs(commands, tmp_path_factory):
    """What a terminal was sent by a whole run, and by one that is stopped."""
    def run(*arguments):
        done = commands.run('-c', ON_A_TERMINAL, *arguments,
                            cwd=tmp_path_factory.mktemp('terminal'))
        assert done.status == 0, done.errors
        return json.loads(done.output)

    return run(), run('stop')


@pytest.mark.slow
def test_steps_share_one_line_and_all_else_stays_above_it(outputs):
    lines = screen(outputs[0])
    parts = ['ResNet-8: ', 'compiling the training step', 'compiled the training step',
             'warning: seven.', 'compiling the evaluation step', 'compiled the evaluation step',
             'evaluation at step 10: ', 'evaluation at step 20: ', '100 % |', 'done: ', '']
    assert len(lines) == len(parts), lines
    for line, part in zip(lines, parts, strict=True):
        assert line.startswith(part), lines
    assert '| 20/20  0:00:00 left  loss ' in lines[-3]
    # Every step was drawn there in turn.
    assert [f' {step}/20  ' in outputs[0] for step in range(1, 21)] == [True] * 20


@pytest.mark.slow
def test_a_stop_leaves_the_line_and_the_cursor_below_it(outputs):
    lines = screen(outputs[1])
    assert lines[-3].startswith(' 65 % |') and '| 13/20  ' in lines[-3], lines
    assert lines[-2].startswith('stopped by SIGINT; checkpoint saved at step 13.')
    assert lines[-1] == ''
    assert sum('%  |' in line or '% |' in line for line in lines) == 1
