"""What the step asks of a chip, and a bound of its time by it: python -m benchmarks.roofline.

`benchmarks.count` has the rule by which a program is divided into kernels. Each takes at least the
longer of its arithmetic at the peak of its type and its bytes at the bandwidth; their sum is the
program's 'bound ms'. It is a bound by that rule: what is fused further, or stays in a cache, may
take less, as a small program on a CPU does. Peaks are measured on the device at hand (the fastest
of a few products of large square matrices, and a large array read and written); what data sheets
say of a few chips is beside them. The step is that of dilated convolutions (`model.atrous`), whose
other form moves more bytes and has the same arithmetic but for the padding.
"""

from collections.abc import Iterator

import jax

from benchmarks import count, peaks, step, timing

H200 = 'an H200 by its data sheet'
KINDS = {
    'convolution': 'convolutions',
    'product': 'products, 1x1 convolutions among them',
    'pass': 'BatchNorm and other passes',
    'other': 'sorts, scatters',
    '': 'all',
}


def rows(size: str) -> Iterator[tuple[str, list[timing.Row]]]:
    """Gives a row a peak, then one a kind of kernel of the step: of this size, and the paper's."""
    best, chip = timing.isolated(peaks.measure, size), timing.isolated(_chip)
    said = peaks.datasheet(chip)
    yield (
        f'Peaks of {chip}',
        [
            {
                'peak': text,
                'measured': best[name],
                'data sheet': said.get(name, float('nan')),
                'unit': 'GB/s' if name == 'GB/s' else 'TFLOP/s',
            }
            for name, text in peaks.MEANING.items()
        ],
    )
    for case in step.HEADLINES:
        yield kinds(size, case, {'this chip': best})
    if size != 'real':
        for case in step.HEADLINES:
            yield kinds('real', case, {})


def kinds(size: str, case: str, chips: dict[str, dict[str, float]]) -> tuple[str, list[timing.Row]]:
    """Gives a row a kind of kernel in a case of `benchmarks.step`.

    Args:
        size: 'real' or 'small'.
        case: one of `benchmarks.step.CASES`.
        chips: name -> peaks; an H200's are added.
    """
    config = step.case_configuration(size, case, **{'model.atrous': 'dilated'})
    found = count.kernels(step.traced(config))
    chips = {**chips, H200: peaks.DATASHEETS['H200']}
    pairs = step.batch_of(size, case)
    table = []
    for kind, name in KINDS.items():
        own = [kernel for kernel in found if kind in ('', kernel.kind)]
        sums = count.totals(own)
        row = {
            'kernels': name,
            'number': int(sum(kernel.count for kernel in own)),
            'TFLOP': sums['flops'] / 1e12,
            'with padding': (sums['flops'] + sums['padding']) / 1e12,
            'GB': sums['bytes'] / 1e9,
        }
        least = {chip: peaks.bound(own, best) for chip, best in chips.items()}
        row |= {f'bound ms, {chip}': ms for chip, ms in least.items()}
        row |= {f'pairs/s by it, {chip}': 1e3 * pairs / ms for chip, ms in least.items()}
        table.append(row)
    return f'{step.CAPTION[size]}; {case}, {pairs} pairs', table


def _chip() -> str:
    return jax.devices()[0].device_kind


if __name__ == '__main__':
    timing.main('Roofline', rows)
