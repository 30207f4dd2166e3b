"""Checkpoints of several processes: the same bits on any number of them, killed or damaged."""

import os
import signal
import time

import jax
import numpy as np

from css_jax import state
from css_jax.run import checkpoint, checksums
from tests import program

# One process of a run: what comes after it is what it does, with everything below at hand.
WORKER = """
import logging, os, pathlib, signal, sys, time
import jax
count, index, port, workdir = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if count > 1:
    jax.distributed.initialize(f'localhost:{port}', count, index)
logging.basicConfig(stream=sys.stdout, format='%(message)s', level=logging.WARNING, force=True)
from css_jax import parallel
from css_jax.run import checkpoint
from tests.test_checkpoint_processes import example, bits, wide
whole = parallel.Layout().replicated
"""
EXPECTED = """
import numpy as np
expected = bits(example())
def same(tree):
    found = bits(tree)
    assert found.keys() == expected.keys()
    for path, value in found.items():
        assert np.array_equal(value, expected[path]), path
"""


def example(value=0.0):
    """A state as a run has it: a network of several shapes, an optimiser's, a typed key."""
    rng = np.random.default_rng(0)

    def network(seed):
        params = {
            'kernel': rng.normal(size=(3, 3, 64, 96)).astype(np.float32) + value,
            'odd': rng.normal(size=(7, 5)).astype(np.float32),
            'scale': rng.normal(size=96).astype(np.float32),
        }
        return state.Variables(params, {'mean': np.full(5, seed, np.float32)})

    return state.TrainState(
        step=np.int32(3),
        student=network(1),
        teacher=network(2),
        memory={
            'prototypes': rng.normal(size=(7, 16)).astype(np.float32),
            'seen': np.ones(7, bool),
        },
        opt_state=({'trace': rng.normal(size=(9, 4)).astype(np.float32)}, (), np.int32(3)),
        key=jax.random.fold_in(jax.random.key(1), 1),
    )


def wide(current, sharding):
    """The state on all devices of `sharding`, as a run's step gives it."""
    return jax.jit(lambda: jax.tree.map(jax.numpy.asarray, current), out_shardings=sharding)()


def bits(tree):
    """Path -> array, this process's copy."""
    tree = tree.replace(key=jax.random.key_data(tree.key)) if hasattr(tree, 'key') else tree
    return {path: np.asarray(x) for path, x in state.flat(tree).items()}


def start(count, devices, workdir, script):
    """Starts `count` processes with so many devices each; gives them."""
    port, before = program.free_port(), f'{WORKER}{script}sys.exit()\n'
    indices = tuple(str(index) for index in range(count))
    given = str(count), indices, str(port), str(workdir)
    return program.start(None, *given, count=count, devices=devices, before=before, env=no_flags)


def no_flags(index, count, port):
    """The processes meet by themselves."""
    return {}


def run(count, devices, workdir, script):
    """Runs them to their end and gives what they print."""
    ends = program.finish(start(count, devices, workdir, EXPECTED + script))
    assert [code for code, *_ in ends] == [0] * count, ends
    return [output + errors for _, output, errors in ends]


def truncate_largest(folder):
    largest = max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


TWO = """
# Reading only, as evaluation does.
step = checkpoint.find(workdir, 'last')
assert step == 1 and checkpoint.exists(workdir)
reader = checkpoint.Checkpoints(workdir, read_only=True)
assert reader.latest_step == 1 and reader.steps == [1, 2] and reader.best() == (2, 0.75)
assert reader.meta(1) == {'split_hash': 'x'}
abstract = parallel.Layout().replicas(example())
same(reader.restore(abstract))
reader.close()
teacher = checkpoint.restore_network(workdir, 1, abstract.teacher)
assert len(teacher.params['odd'].sharding.device_set) == 4
np.testing.assert_array_equal(teacher.params['odd'], expected['teacher/params/odd'])
here = checkpoint.restore_network(workdir, 1, example().student, 'student')
np.testing.assert_array_equal(here.params['odd'], expected['student/params/odd'])
arrays = checkpoint.restore_arrays(workdir, 1, ['memory'])['memory']
np.testing.assert_array_equal(arrays['prototypes'], expected['memory/prototypes'])
for which, error in (('2', ValueError), ('best', ValueError), ('7', (OSError, ValueError))):
    try:
        checkpoint.find(workdir, which)
    except error as caught:
        print('told:', caught)
    else:
        raise AssertionError(which)
assert pathlib.Path(workdir, 'checkpoints', '2').exists()

# Training.
checkpoints = checkpoint.Checkpoints(workdir)
assert checkpoints.latest_step == 1
current = checkpoints.restore(wide(example(value=1.0), whole))
same(current)
assert all(x.sharding.is_equivalent_to(whole, x.ndim) for x in jax.tree.leaves(current))
checkpoints.save(2, current, {'split_hash': 'y'})
checkpoints.score(2, 0.5)
checkpoints.close()
"""

KILLED = """
checkpoints = checkpoint.Checkpoints(workdir)
assert checkpoints.latest_step == 2
import numpy as np
large = example()
large.memory['more'] = np.random.default_rng(1).normal(size=(4, 2**21)).astype(np.float32)
large = wide(large, whole)
checkpoints.save(3, large, {})
if index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(100)
"""

FOUR = """
folder = pathlib.Path(workdir, 'checkpoints')
assert len(list(folder.glob('3.*'))) == 1
checkpoints = checkpoint.Checkpoints(workdir)
assert len(jax.devices()) == 4 and checkpoints.steps == [1, 2]
current = checkpoints.restore(wide(example(value=1.0), whole))
same(current)
assert len(current.key.sharding.device_set) == 4
checkpoints.save(3, current, {})
assert checkpoints.best() == (2, 0.5)
checkpoints.close()
assert sorted(path.name for path in folder.iterdir()) == ['2', '3']
"""


def test_the_same_bits_on_any_number_of_processes(tmp_path):
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step, value, miou in ((1, 0.0, 0.25), (2, 2.0, 0.75)):
        checkpoints.save(step, wide(example(value), alone), {'split_hash': 'x'})
        checkpoints.score(step, miou)
    checkpoints.close()
    folder = tmp_path / checkpoint.FOLDER
    truncate_largest(folder / '2')
    (folder / '1' / checksums.SUMS).unlink()  # as an older version leaves it: process 0 reads it

    first, second = run(2, 2, tmp_path, TWO)
    assert f'{folder / "2"} is damaged' in first and 'step 1 is used' in first
    assert f'moved to {tmp_path / (checkpoint.FOLDER + checksums.SUFFIX) / "2"}' in first
    assert 'warning' not in second  # one of them tells
    for output in (first, second):
        assert 'the readable steps are [1]' in output
    writers = {path.name for path in (folder / '2' / 'state').glob('ocdbt.process_*')}
    assert writers == {'ocdbt.process_0', 'ocdbt.process_1'}

    processes = start(2, 2, tmp_path, KILLED)
    try:
        code = processes[1].wait(60)
        time.sleep(0.5)  # for process 0 to go wrong in
        named, half = (folder / '3').exists(), list(folder.glob('3.*'))
    finally:
        for process in processes:
            process.kill()
    assert code == -signal.SIGKILL, [process.read() for process in processes]
    assert half and not named, 'the save was over before the kill'

    run(1, 4, tmp_path, FOUR)
