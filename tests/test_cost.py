"""What is read from a compiled program's text, where compilers write it in other ways."""

from css_jax.parallel import cost

# As for GPUs, where operations begin in one place and end in another.
ASYNCHRONOUS = """
  %all-gather-start = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(f32[4,8]{1,0} %p)
  %done = f32[32,8]{1,0} all-gather-done((f32[4,8]{1,0}, f32[32,8]{1,0}) %all-gather-start)
  %permute = (u8[2,3]{1,0}, u8[2,3]{1,0}, u32[], u32[]) collective-permute-start(u8[2,3]{1,0} %q)
  %all-reduce-start = (f32[7]{0}, bf16[3]{0}) all-reduce-start(f32[7]{0} %a, bf16[3]{0} %b)
  %all-reduce = f8e4m3fn[5]{0} all-reduce(f8e4m3fn[5]{0} %c), to_apply=%add
  %pred = pred[9]{0} all-reduce(pred[9]{0} %d), to_apply=%or
"""


def test_operations_that_begin_and_end_are_counted_once():
    assert cost.traffic(ASYNCHRONOUS) == [
        ('all-gather', (('f32', (32, 8)),)),
        ('collective-permute', (('u8', (2, 3)),)),
        ('all-reduce', (('f32', (7,)), ('bf16', (3,)))),
        ('all-reduce', (('f8e4m3fn', (5,)),)),
        ('all-reduce', (('pred', (9,)),)),
    ]
    assert cost.crossing(ASYNCHRONOUS) == {
        'all-gather': 4 * 32 * 8,
        'collective-permute': 6,
        'all-reduce': 4 * 7 + 2 * 3 + 5 + 9,
    }
