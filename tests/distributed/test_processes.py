"""Jobs of several processes, which have eight simulated devices together."""

import json
import re
import shutil
import signal
import socket
import threading
import time

import jax
import numpy as np
import pytest

from configs import digits_r20
from resnet_jax.distributed import processes, sharding
from resnet_jax.errors import UserError
from resnet_jax.training import loop
from resnet_jax.training.program import build
from resnet_jax.training.writers import read_rows
from resnet_jax.weights.checkpoints import Checkpoints
from tests import xla_options
from tests.printed import as_printed

CONFIG = {
    'model.depth': 8, 'model.width': 8, 'model.virtual_batch_size': 8, 'batch_size': 64,
    'schedule.name': 'constant', 'schedule.warmup': 'none', 'schedule.learning_rate': 0.01,
    'log.every_steps': 1, 'eval.every_steps': 10**6, 'checkpoint.every_steps': 5,
    'checkpoint.keep_last': 1000, 'compilation_cache': ''}

# '[Gloo] Rank 4 is connected to 7 peer ranks. …', or any pieces of several of them.
GLOO = re.compile(r'(\[Gloo\] Rank | is connected to '
                  r'| peer ranks\. Expected number of connected peer ranks is : |\d+)*')


class Job:
    """Commands that were started together."""

    def __init__(self, commands, *arguments, count=2, flags=True, env=None):
        """Starts some of a command, which find one another by flags or by env(process, port)."""
        port = free_port()
        self.processes = []
        for i in range(count):
            told = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}',
                    f'--process_id={i}'] if flags else []
            self.processes.append(commands.start(*arguments, *told, env={
                'XLA_FLAGS': xla_options.quick(devices=8 // count),
                **(env(i, port) if env else {})}))

    def output(self, process):
        return self.processes[process].output

    def said(self, process):
        """The lines of its output without those of Gloo, whose threads interrupt one another."""
        return [line for line in self.output(process).splitlines() if not GLOO.fullmatch(line)]

    def errors(self, process):
        return self.processes[process].errors

    def until(self, condition):
        """Waits until a condition holds, while all processes run."""
        end = time.monotonic() + 600
        while not condition():
            for i, process in enumerate(self.processes):
                assert process.poll() is None, self.errors(i)
            assert time.monotonic() < end
            time.sleep(0.01)

    def wait(self):
        """The exit statuses of all."""
        try:
            return [process.wait() for process in self.processes]
        finally:
            for process in self.processes:
                process.send_signal(signal.SIGKILL)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def config(**fields):
    result = digits_r20.get_config()
    result.update_from_flattened_dict({**CONFIG, **fields})
    return result


def main(workdir, **fields):
    """The training command and its arguments."""
    return ['resnet_jax.main', '--config=configs/digits_r20.py', f'--workdir={workdir}',
            *(f'--config.{name}={value}' for name, value in {**CONFIG, **fields}.items())]


def losses(workdir):
    return {row['step']: row['train/loss'] for row in read_rows(workdir / 'metrics.jsonl')
            if 'train/loss' in row}


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir()
                  if path.name.isdigit())


def eight_threads(process, port):
    """As many in one process as in each of two: Eigen cuts its sums by their number."""
    return {'NPROC': '8'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('processes')


@pytest.fixture(scope='module')
def one(folder):
    """Workdir of 10 steps of one process of eight devices, through the host pipeline."""
    loop.train(config(**{'data.pipeline': 'host', 'num_steps': 10}), folder / 'one')
    return folder / 'one'


@pytest.fixture(scope='module')
def stopped(folder, commands):
    """A job on the on-device pipeline, one process of which got SIGTERM, and its workdir."""
    workdir = folder / 'two'
    first = as_printed('python -m resnet_jax.main --config=configs/digits_r20.py '
                       '--coordinator=HOST:12345 --num_processes=2 --process_id=0')
    job = Job(commands, *first, *main(workdir, num_steps=10**6)[2:], env=eight_threads)
    job.until(lambda: len(read_rows(workdir / 'metrics.jsonl')) > 6)
    job.processes[1].send_signal(signal.SIGTERM)
    return job, job.wait(), workdir


@pytest.mark.slow
def test_two_processes_of_four_devices_have_the_losses_of_one_of_eight(one, stopped):
    expected, found = losses(one), losses(stopped[2])
    steps = range(1, 7)
    np.testing.assert_allclose([found[s] for s in steps], [expected[s] for s in steps], rtol=1e-4)


@pytest.mark.slow
def test_the_losses_are_the_same_bits_where_sums_are_taken_in_the_same_order(
        folder, stopped, commands):
    workdir = folder / 'alone'
    job = Job(commands, *main(workdir, num_steps=6), count=1,  # by gloo, as two do
              env=eight_threads)
    assert job.wait() == [0], job.errors(0)
    expected, found = losses(workdir), losses(stopped[2])
    assert len(expected) == 6
    assert expected == {step: found[step] for step in expected}


@pytest.mark.slow
def test_a_signal_to_one_process_makes_all_save_at_the_same_step(stopped):
    job, statuses, workdir = stopped
    assert statuses == [143, 143]
    told = re.search(r'stopped by SIGTERM; checkpoint saved at step (\d+)', job.errors(0))
    assert int(told[1]) == saved(workdir)[-1] == max(losses(workdir))


@pytest.mark.slow
def test_only_process_0_speaks_and_writes_logs(stopped):
    job, _, workdir = stopped
    assert job.said(1) == [] and 'stopped' not in job.errors(1)
    assert 'mesh {\'data\': 8, \'model\': 1}' in job.output(0)
    steps = [row['step'] for row in read_rows(workdir / 'metrics.jsonl')]
    assert steps == list(range(1, len(steps) + 1))
    assert len(list(workdir.glob('events.out.tfevents.*'))) == 1


@pytest.mark.slow
def test_when_process_0_is_killed_the_other_says_so_and_the_job_goes_on_elsewhere(
        stopped, commands, capsys):
    *_, workdir = stopped
    first = saved(workdir)[-1]
    job = Job(commands, *main(workdir, num_steps=10**6))
    job.until(lambda: saved(workdir)[-1] > first)
    job.processes[0].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    assert job.wait() in ([-9, 134], [-9, -6])  # -6 where jax was faster
    assert time.monotonic() - killed < 60
    assert f'resuming from step {first} ' in job.output(0)
    sentence = (f'error: process 0 on {socket.gethostname()} died; stopping. Restart all processes '
                'to resume.\n')
    assert job.errors(1).count(sentence) == 1
    # One process of eight devices, its parameters laid out otherwise.
    last = saved(workdir)[-1]
    loop.train(config(**{'num_steps': last + 3, 'mesh.parameters': 'fsdp'}), workdir)
    assert f'resuming from step {last} ' in capsys.readouterr().out
    assert list(losses(workdir)) == list(range(1, last + 4))


GOES_ON = '''
import json
import pathlib
import jax
from resnet_jax import cli
from resnet_jax.distributed import processes
from resnet_jax.distributed import sharding
from resnet_jax.training import loop
from resnet_jax.training.program import build
from tests.distributed import test_processes

PROCESSES = cli.process_flags()

def main(arguments):
    with processes.job(*(flag.value for flag in PROCESSES)):
        config = test_processes.config(**json.loads(arguments[2]))
        loop.train(config, pathlib.Path(arguments[1]))
        config.model.width = 32  # smaller arrays are not split
        program = build(config, sharding.create_mesh(config))
        state = jax.jit(program.create_state, out_shardings=program.shardings)()
        trees = jax.tree.leaves((state.params, state.opt_state))
        here = sum(leaf.addressable_shards[0].data.nbytes for leaf in trees)
        print('share', here / sum(leaf.nbytes for leaf in trees))

cli.run(main, takes_files=True)
'''


@pytest.fixture(scope='module')
def gone_on(folder, one, commands):
    """Two processes that take over from step 5 of `one`, with parameters in parts."""
    workdir = folder / 'gone_on'
    shutil.copytree(one, workdir)
    shutil.rmtree(workdir / 'checkpoints')
    shutil.copytree(one / 'checkpoints' / '5', workdir / 'checkpoints' / '5')
    job = Job(commands, '-c', GOES_ON, workdir, json.dumps(
        {'data.pipeline': 'host', 'num_steps': 10, 'mesh.parameters': 'fsdp'}))
    assert job.wait() == [0, 0], job.errors(0) + job.errors(1)
    return job, workdir


@pytest.mark.slow
def test_a_checkpoint_goes_on_on_more_processes_with_the_same_batches(one, gone_on):
    job, workdir = gone_on
    assert 'resuming from step 5 ' in job.output(0)
    steps = range(6, 11)
    np.testing.assert_allclose([losses(workdir)[s] for s in steps],
                               [losses(one)[s] for s in steps], rtol=1e-4)


@pytest.mark.slow
def test_fsdp_over_processes_leaves_a_device_less_than_a_sixth(gone_on):
    job, _ = gone_on
    for process in range(2):
        assert float(re.search(r'share (\S+)', job.output(process))[1]) < 1 / 6


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_restored_by_one(one, gone_on):
    *_, workdir = gone_on
    states = []
    for path, fields in ((one, {}), (workdir, {}), (workdir, {'mesh.data': 1})):
        program_config = config(num_steps=10, **fields)
        program = build(program_config, sharding.create_mesh(program_config))
        state = Checkpoints(path / 'checkpoints', 1).restore(program.state)
        assert all(leaf.sharding == like.sharding for leaf, like in zip(
            *map(jax.tree.leaves, (state, program.state)), strict=True))
        states.append([np.asarray(leaf) for leaf in jax.tree.leaves(state)])
    for expected, eight, alone in zip(*states, strict=True):
        np.testing.assert_array_equal(eight, alone)
        np.testing.assert_allclose(eight, expected, rtol=1e-3, atol=1e-4)


def slurm(process, port):
    """What srun sets."""
    return {'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_STEP_NUM_TASKS': '2',
            'SLURM_NTASKS': '2', 'SLURM_PROCID': str(process), 'SLURM_LOCALID': str(process),
            'JAX_COORDINATOR_PORT': str(port)}


@pytest.mark.slow
def test_evaluation_over_processes_counts_every_image_once(folder, one, commands):
    confusion = folder / 'confusion.tsv'
    job = Job(commands, 'resnet_jax.evaluate', f'--workdir={one}', '--json',
              f'--confusion={confusion}', flags=False, env=slurm)
    assert job.wait() == [0, 0], job.errors(0) + job.errors(1)
    found = json.loads(job.output(0).splitlines()[-1])
    expected = read_rows(one / 'metrics.jsonl')[-1]
    assert found['eval/count'] == 297
    for name in ('eval/loss', 'eval/top1_error', 'eval/top5_error'):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4)
    assert '{' not in job.output(1)
    assert len(confusion.read_text().splitlines()) == 11


FAILS = '''
import pathlib
import jax
import numpy as np
from jax.experimental import multihost_utils
from resnet_jax import cli
from resnet_jax.distributed import processes
from resnet_jax.errors import UserError

def main(arguments):
    with processes.job():
        me = jax.process_index()
        print('devices', jax.device_count())
        for check, argument in (
                (processes.check_alike, {'seed': '0', 'num_steps': str(me)}),
                (processes.check_shared, pathlib.Path(arguments[1 + me])),
                (processes.check_shared, pathlib.Path(arguments[1]))):
            try:
                check(argument)
                print('ok')
            except UserError as error:
                print(error)
        while True:
            total = multihost_utils.process_allgather(np.float32(jax.process_index()))
            assert list(total) == [0, 1]
            if me:
                raise UserError('the disk is full.')

cli.run(main, takes_files=True)
'''


WAITS = '''
import time
from jax.experimental import multihost_utils
from resnet_jax import cli
from resnet_jax.distributed import processes

PROCESSES = cli.process_flags()

def main(arguments):
    with processes.job(*(flag.value for flag in PROCESSES), ends_on_sigterm=True):
        print('waits', flush=True)
        if PROCESSES[2].value or PROCESSES[1].value == 1:
            time.sleep(600)
        multihost_utils.sync_global_devices('never')

cli.run(main)
'''


@pytest.mark.slow
@pytest.mark.parametrize('told', [[0], [0, 1]])
def test_sigterm_ends_a_job_that_saves_nothing_even_inside_a_collective(commands, told):
    job = Job(commands, '-c', WAITS)
    job.until(lambda: all('waits' in job.output(i) for i in range(2)))
    time.sleep(1)  # for process 0 to enter the collective
    for process in told:
        job.processes[process].send_signal(signal.SIGTERM)
    sent = time.monotonic()
    assert job.wait() == [143, 143]
    assert time.monotonic() - sent < 20
    ended = 'stopped by SIGTERM before the end.\n'
    assert ended in job.errors(0)
    assert (ended if 1 in told else
            f'error: process 0 on {socket.gethostname()} stopped: it got SIGTERM.\n') in (
                job.errors(1))


@pytest.mark.slow
def test_sigterm_ends_a_job_of_one_process_that_saves_nothing(commands):
    job = Job(commands, '-c', WAITS, count=1)  # as on a single machine with TPUs
    job.until(lambda: 'waits' in job.output(0))
    job.processes[0].send_signal(signal.SIGTERM)
    sent = time.monotonic()
    assert job.wait() == [-signal.SIGTERM]
    assert time.monotonic() - sent < 20


def open_mpi(process, port):
    """What mpirun sets."""
    return {'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://127.0.0.1:1', 'JAX_COORDINATOR_PORT': str(port),
            'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': str(process),
            'OMPI_COMM_WORLD_LOCAL_RANK': str(process)}


@pytest.fixture(scope='module')
def failed(folder, commands):
    """A job started as by Open MPI, of which process 1 has an error while 0 waits for it."""
    for i in range(2):
        (folder / f'own{i}').mkdir()
    job = Job(commands, '-c', FAILS, folder / 'own0', folder / 'own1', flags=False,
              env=open_mpi)
    return job, job.wait()


def test_processes_that_would_not_compute_the_same_are_told(failed):
    for i in range(2):
        said = failed[0].said(i)
        assert said[:2] == [
            'devices 8', 'process 1 was started with a different num_steps than process 0.']
        assert said[2].startswith('process 1 does not see what process 0 writes to')
        assert said[3:] == ['ok']


def test_an_error_in_one_process_ends_all(failed):
    job, statuses = failed
    assert statuses == [1, 1]
    assert job.errors(1) == 'error: the disk is full.\n'
    host = socket.gethostname()
    assert job.errors(0) == f'error: process 1 on {host} stopped: the disk is full.\n'


def meet_all(*numbers):
    """What is said to each of the processes (count, number) that come to one address."""
    coordinator, told = f'127.0.0.1:{free_port()}', {}

    def meet(i, count, number):
        try:
            processes._meet(coordinator, count, number)
        except UserError as error:
            told[i] = str(error)

    threads = [threading.Thread(target=meet, args=(i, *x)) for i, x in enumerate(numbers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


@pytest.mark.parametrize(('numbers', 'sentence'), [
    ([(4, 0), (4, 2)], 'processes 1, 3 (of 4) did not connect to'),
    ([(3, 0), (3, 1), (3, 1)], 'two processes were started with --process_id=1'),
    ([(2, 0), (3, 1)],
     'process 1 was started with --num_processes=3, but process 0 with --num_processes=2'),
    ([(2, 1)], 'process 1 could not connect to process 0 at'),
])
def test_processes_that_do_not_come_together_are_told_why(monkeypatch, numbers, sentence):
    monkeypatch.setattr(processes, 'START_SECONDS', 2)
    begun = time.monotonic()
    told = meet_all(*numbers)
    assert len(told) == len(numbers)
    assert all(sentence in text for text in told.values())
    assert time.monotonic() - begun < 20


def test_processes_that_all_come_are_told_nothing():
    assert meet_all((3, 2), (3, 0), (3, 1)) == {}


@pytest.mark.parametrize(('flags', 'sentence'), [
    ((None, 2, 0), 'must be given together'), (('127.0.0.1', 2, 0), 'an address and a port'),
    (('127.0.0.1:80', 2, 2), 'from 0 to --num_processes - 1, got 2 with --num_processes=2')])
def test_flags_that_make_no_job_are_told(flags, sentence):
    with pytest.raises(UserError, match=sentence), processes.job(*flags):
        pass


def test_a_port_that_is_taken_is_told():
    with socket.create_server(('', 0)) as server, pytest.raises(
            UserError, match=r'process 0 cannot open the port .*; choose another one'):
        processes._meet(f'127.0.0.1:{server.getsockname()[1]}', 2, 0)
