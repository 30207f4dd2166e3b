"""The account of what crosses devices."""

import math
from collections import Counter

import numpy as np
import pytest

from configs import voc
from css_jax import config as configs
from tests import traffic
from tests.conftest import ROOT

DEVICES = 8

# Two sums that could go together, a third that needs both, one in a loop's body, and one array
# that is passed on; as XLA prints them.
PROGRAM = """
HloModule step

%body (arg: f32[4]) -> f32[4] {
  %arg = f32[4]{0} parameter(0)
  ROOT %inner = f32[4]{0} all-reduce(%arg), channel_id=5, to_apply=%add
}

ENTRY %main (a: f32[4], b: f32[]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %b = f32[] parameter(1)
  %first = (f32[4]{0}, f32[]) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %second = f32[1,4]{1,0} all-reduce(%a), to_apply=%add, control-predecessors={%first}
  %part = f32[4]{0} get-tuple-element(%first), index=0, metadata={op_name="of %third"}
  %sum = f32[4]{0} fusion(%part, %second), kind=kLoop, calls=%fused
  %third = f32[4]{0} all-reduce(%sum), channel_id=3, to_apply=%add
  ROOT %on = s32[2,1]{1,0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}
}
"""


def test_every_array_is_found():
    assert traffic.found(PROGRAM) == Counter(
        {
            ('all-reduce', 'f32', (4,)): 4,
            ('all-reduce', 'f32', ()): 1,
            ('collective-permute', 's32', (2,)): 1,
        }
    )


def test_what_is_sent_too_often_or_not_at_all_is_named():
    kinds = {
        'gradients': Counter({('all-reduce', 'f32', (4,)): 3}),
        'image': Counter({('collective-permute', 's32', (2,)): 1}),
        'bank': Counter({('all-reduce', 'f32', (7, 3)): 1}),
    }
    other, scalars = traffic.unaccounted(PROGRAM, kinds)
    assert other == {('all-reduce', 'f32', (4,)): 1, ('all-reduce', 'f32', (7, 3)): -1}
    assert scalars == 1


def test_a_chain_is_of_operations_that_need_one_another():
    assert traffic.chain(PROGRAM) == 2


def test_a_ring_sends_every_byte_twice_but_for_one_share():
    summed = Counter({('all-reduce', 'f32', (10, 100)): 2})
    passed = Counter({('collective-permute', 's32', (10,)): 1})
    assert traffic.sent(summed, 1) == 0
    assert traffic.sent(summed, 2) == 8000
    assert traffic.sent(summed, 8) == 2 * 7 / 8 * 8000
    assert traffic.sent(passed, 8) == 40


@pytest.fixture(scope='module')
def kinds():
    """What the paper's network sends on eight devices."""
    config = configs.finalise(voc.get_config('classic,92,css_mix'))
    return traffic.arrays(config, DEVICES, (512, 512))


def test_the_paper_s_network(kinds):
    # torchvision's ResNet-101 has 104 BatchNorms, ASPP 6, the decoder 1 and each head 1.
    assert kinds['BatchNorm, forward'].total() == 2 * 4 * (104 + 6 + 1 + 2)
    # 512 x 512 pixels of three floats, a label and an indicator.
    assert traffic.sent(kinds[traffic.IMAGE], DEVICES) == 512 * 512 * 5 * 4
    # Beside gradients and the image, all together is less than one image's representations.
    rest = set(kinds) - {'gradients', traffic.IMAGE}
    floats = sum(math.prod(shape) * n for name in rest for (_, _, shape), n in kinds[name].items())
    assert floats < 128 * 128 * 256


def test_the_table_in_the_documentation_is_the_formula_s(kinds):
    lines = (ROOT / 'docs' / 'scaling.md').read_text().splitlines()
    tables = [line.split('|')[1:-1] for line in lines if line.startswith('|')]
    shown = {cells[0].strip(): cells[1:] for cells in tables}
    for name, counter in kinds.items():
        bytes_ = sum(4 * math.prod(shape) * n for (_, _, shape), n in counter.items())
        sent = traffic.sent(counter, DEVICES)
        found = [float(cell.replace(',', '')) for cell in shown[name]]
        expected = [counter.total(), bytes_ / 2**20, sent / 2**20]
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=1e-3)
