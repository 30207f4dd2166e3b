"""The table of kernels, from traces written by hand in the form that jax gives them."""

import pytest

from benchmarks import kernels

pytestmark = pytest.mark.soak
GPU = ('/device:GPU:0', 'Stream #16(Compute)')


def trace(*lines):
    """A trace of (process, thread, name, operation, start, length)."""
    events = []
    for process, thread, name, operation, start, length in lines:
        events += [
            {'ph': 'M', 'name': 'process_name', 'pid': process, 'args': {'name': process}},
            {'ph': 'M', 'name': 'thread_name', 'pid': process, 'tid': thread}
            | {'args': {'name': thread}},
            {'ph': 'X', 'pid': process, 'tid': thread, 'name': name, 'ts': start, 'dur': length}
            | ({'args': {'hlo_op': operation}} if operation else {}),
        ]
    return {'traceEvents': events}


def test_kernels_are_those_of_streams():
    found = kernels.events(
        trace(
            (*GPU, 'sm90_xmma_fprop_implicit_gemm', 'custom-call.3', 0, 6),
            (*GPU, 'loop_add_fusion', 'loop_add_fusion', 5, 3),
            (*GPU, 'nvjet_tst_128x256_64x4_2x1_v_bz_NNT', 'custom-call.4', 8, 2),
            ('/device:GPU:0', 'XLA Ops', 'custom-call.3', 'custom-call.3', 0, 6),
            ('/host:CPU', 'python', 'dispatch', 'jit_step', 0, 50),
        )
    )
    assert [kernels.group(event) for event in found] == ['convolution', kernels.OTHER, 'product']
    assert kernels.covered(found) == 10


def test_on_a_cpu_loops_do_not_count_beside_what_runs_in_them():
    found = kernels.events(
        trace(
            ('/host:CPU', 'tf_XLAEigen/1', 'while.3', 'while.3', 0, 10),
            ('/host:CPU', 'tf_XLAEigen/1', 'sort.1', 'sort.1', 2, 4),
            ('/host:CPU', 'tf_XLAEigen/2', 'ThunkExecutor', '', 0, 10),
        )
    )
    assert [(event.name, kernels.group(event)) for event in found] == [('sort.1', 'sort')]


def test_names_are_given_until_95_percent_of_the_time_is_named():
    lengths = {'gemm.1': 50, 'gemm.2': 10, 'fusion.7': 36, 'copy': 3, 'sort': 1}
    found = [kernels.Event(name, name, 0, length) for name, length in lengths.items()]
    rows = {row['kernels']: row for row in kernels.table(found, step_us=100.0 / kernels.STEPS)}
    own = ['gemm', 'fusion', '2 others']
    assert list(rows)[-3:] == own and rows[kernels.SUM]['share'] == 1
    assert [rows[name]['share'] for name in own] == pytest.approx([0.6, 0.36, 0.04])
    assert rows['gemm']['calls a step'] * kernels.STEPS == 2
    assert rows['gemm']['longest call ms'] == 0.05
    assert rows[kernels.COVERED]['share'] == 0.5
