"""Published tables as configurations, and the paper's numbers against its text."""

import itertools
import re

import pytest
from ml_collections import ConfigDict

from configs import cityscapes, tables, unimatch, voc
from css_jax import config as configs
from css_jax.config import warnings
from data_prep.splits import lists
from tests.conftest import ROOT

PAPER = ROOT.parent / 'shared' / 'paper' / '001_7fd10a522e558b17.txt'
PAPER_S = tuple(number for number in tables.TABLES if isinstance(number, int))
IMAS_S = tuple(name for name in tables.TABLES if str(name).startswith('imas:'))
UNIMATCH_S = tuple(name for name in tables.TABLES if name not in PAPER_S + IMAS_S)
FAMILIES = {
    'configs/voc.py': voc,
    'configs/cityscapes.py': cityscapes,
    'configs/unimatch.py': unimatch,
}
# Method, pseudo-label, indicator of every row and variant, from Sec. 4.2, 5.1, 5.2 and 5.3.
MEANT = {
    (1, 'Sup.', ''): ('supervised', None, None),
    (1, 'MT', ''): ('mean_teacher', None, None),
    (1, 'CutMix', ''): ('cutmix', None, None),
    (1, 'Baseline', ''): ('baseline', 'logit', 'confidence'),
    (1, 'CSS(crs.)', ''): ('css_cross', 'cross', 'both'),
    (1, 'CSS(mix)', ''): ('css_mix', 'mix', 'both'),
    (2, 'CSS (mix)', ''): ('css_mix', 'mix', 'both'),
    (3, 'CSS (mix)', ''): ('css_mix', 'mix', 'both'),
    (5, 'logit space', ''): ('baseline', 'logit', 'confidence'),
    (5, 'representation space', ''): ('css', 'representation', 'both'),
    (5, 'mix pseudo-labeling', ''): ('css_mix', 'mix', 'both'),
    (5, 'cross pseudo-labeling', ''): ('css_cross', 'cross', 'both'),
    (6, 'conf.', 'seg label'): ('baseline', 'logit', 'confidence'),
    (6, 'conf.', 'mix label'): ('css_mix', 'mix', 'confidence'),
    (6, 'smr.', 'seg label'): ('css', 'logit', 'similarity'),
    (6, 'smr.', 'mix label'): ('css_mix', 'mix', 'similarity'),
    (6, 'mix', 'seg label'): ('css', 'logit', 'both'),
    (6, 'mix', 'mix label'): ('css_mix', 'mix', 'both'),
    (7, 'baseline', ''): ('baseline', 'logit', 'confidence'),
    (7, 'mix', ''): ('css_mix', 'mix', 'confidence'),
    (7, 'cross', ''): ('css_cross', 'cross', 'confidence'),
    (7, 'ind', ''): ('css', 'logit', 'both'),
    (7, 'mix + ind', ''): ('css_mix', 'mix', 'both'),
    (7, 'cross + ind', ''): ('css_cross', 'cross', 'both'),
}


@pytest.fixture(autouse=True)
def _without_lists(tmp_path, monkeypatch):
    """Where the tests are run there may be lists of one layout alone."""
    monkeypatch.chdir(tmp_path)


def final(table, cell, more=''):
    argument = tables.argument(table, cell) + more
    return configs.finalise(FAMILIES[table.file].get_config(argument))


@pytest.mark.parametrize('number', PAPER_S)
def test_every_cell_is_an_argument_that_gives_what_the_paper_ran(number):
    table = tables.get(number)
    seen = set()
    for cell in table.cells:
        config = final(table, cell, ',seed=2')
        found = (config.method, config.get('pseudo_label'), config.get('indicator'))
        assert found == MEANT[number, cell.row, cell.variant]
        labelled = config.data.streams.labelled
        assert config.seed == labelled.subset_seed == 2
        if number in (2, 3):  # the published lists
            folder = {2: 'pascal', 3: 'cityscapes'}[number]
            assert labelled.ids_file == f'splits/{folder}/{cell.labels}/labeled.txt'
            assert f'{folder}/{cell.labels}/labeled.txt' in lists.sizes()
        else:
            assert (labelled.split, labelled.count) == ('train', cell.labels)
        seen.add((cell.row, cell.variant, cell.labels))
    assert len(seen) == len(table.cells) == {1: 24, 2: 4, 3: 4, 5: 8, 6: 12, 7: 12}[number]


def test_the_rows_are_those_that_are_checked():
    rows = {(n, c.row, c.variant) for n in PAPER_S for c in tables.get(n).cells}
    assert rows == MEANT.keys()


# Row -> what its runs are: method, backbone, output stride, group.
IMAS = {
    ('imas:classic', 'SupOnly, R101, stride 16 (log)'): ('imas_supervised', 'resnet101', 16, None),
    ('imas:classic', 'iMAS, R101, stride 16 (log)'): ('imas', 'resnet101', 16, 4),
    ('imas:blended', 'SupOnly, R50, stride 16 (README)'): ('imas_supervised', 'resnet50', 16, None),
    ('imas:blended', 'iMAS, R50, stride 8 (README)'): ('imas', 'resnet50', 8, 4),
    ('imas:blended', 'iMAS, R50, stride 16 (log)'): ('imas', 'resnet50', 16, 4),
    ('imas:blended', 'SupOnly, R101, stride 16 (README)'): (
        'imas_supervised', 'resnet101', 16, None,
    ),
    ('imas:blended', 'iMAS, R101, stride 8 (README)'): ('imas', 'resnet101', 8, 4),
    ('imas:blended', 'iMAS, R101, stride 16 (log)'): ('imas', 'resnet101', 16, 4),
    ('imas:cityscapes', 'SupOnly, R50, stride 16 (README)'): (
        'imas_supervised', 'resnet50', 16, None,
    ),
    ('imas:cityscapes', 'iMAS, R50, stride 8 (log)'): ('imas', 'resnet50', 8, 2),
    ('imas:cityscapes', 'iMAS, R50, stride 16 (log)'): ('imas', 'resnet50', 16, 4),
}  # fmt: skip
# Steps of the method and of labels alone, from the epochs in the authors' logs.
STEPS = {
    'voc': {
        92: (655, 6), 183: (650, 12), 366: (638, 23), 732: (615, 46), 1464: (570, 92),
        662: (620, 42), 1323: (578, 83), 2646: (496, 166),
    },
    'cityscapes': {186: (174, 11), 372: (162, 23), 744: (139, 46), 1488: (93, 93)},
}  # fmt: skip


@pytest.mark.parametrize('name', IMAS_S)
def test_every_cell_of_imas_is_what_its_authors_ran(name):
    table, seen = tables.get(name), set()
    assert (table.source, table.protocol) == (
        'authors',
        {'imas:classic': 'classic', 'imas:blended': 'blender', 'imas:cityscapes': ''}[name],
    )
    for cell in table.cells:
        config = final(table, cell, ',seed=2,pretrained={backbone}-deep.npz')
        method, backbone, stride, group = IMAS[name, cell.row]
        assert (config.method, config.model.backbone) == (method, backbone)
        assert (config.model.output_stride, config.imas.get('group')) == (stride, group)
        assert (config.model.stem, config.model.pretrained) == ('deep', f'{backbone}-deep.npz')
        dataset = config.eval.dataset
        epochs = {'voc': 80, 'cityscapes': 240}[dataset]
        step = STEPS[dataset][cell.labels][method == 'imas_supervised']
        # The authors print one step more for 372 on eight GPUs.
        step += (dataset, cell.labels, group) == ('cityscapes', 372, 2)
        assert (config.steps, config.imas.epochs) == (epochs * step, epochs)
        streets = dataset == 'cityscapes'
        last = (method, cell.labels) == ('imas_supervised', 1488)
        assert config.imas.auxiliary_weight == (0.4 if streets and not last else 0.0)
        labelled = config.data.streams.labelled
        share = {662: '1_16', 1323: '1_8', 2646: '1_4'}.get(cell.labels, cell.labels)
        folder = f'{"cityscapes" if streets else "pascal"}/{share}'
        assert labelled.ids_file == f'splits/{folder}/labeled.txt'
        assert labelled.split == ('trainaug' if name == 'imas:blended' else 'train')
        seen.add((cell.row, cell.labels))
    assert len(seen) == len(table.cells)


def test_the_numbers_of_imas_are_its_authors():
    rows = {(name, c.row) for name in IMAS_S for c in tables.get(name).cells}
    assert rows == IMAS.keys()
    found = {(n, c.row, c.labels): c for n in IMAS_S for c in tables.get(n).cells}
    for name, row, labels, mean, std in (
        ('classic', 'iMAS, R101, stride 16 (log)', 92, (68.78 + 68.67) / 2, 0.11 / 2**0.5),
        ('classic', 'iMAS, R101, stride 16 (log)', 183, 74.42, None),
        ('classic', 'iMAS, R101, stride 16 (log)', 1464, (81.16 + 80.97) / 2, 0.19 / 2**0.5),
        ('classic', 'SupOnly, R101, stride 16 (log)', 732, 70.4, None),
        ('blended', 'iMAS, R50, stride 8 (README)', 662, 75.9, None),
        ('blended', 'iMAS, R50, stride 16 (log)', 1323, (76.60 + 76.21) / 2, 0.39 / 2**0.5),
        ('blended', 'iMAS, R101, stride 8 (README)', 2646, 79.3, None),
        ('blended', 'iMAS, R101, stride 16 (log)', 662, 76.48, None),
        ('blended', 'SupOnly, R101, stride 16 (README)', 1323, 72.1, None),
        ('cityscapes', 'iMAS, R50, stride 8 (log)', 372, 78.27, None),
        ('cityscapes', 'iMAS, R50, stride 16 (log)', 744, 78.22, None),
        ('cityscapes', 'SupOnly, R50, stride 16 (README)', 1488, 76.4, None),
    ):
        cell = found[f'imas:{name}', row, labels]
        assert cell.mean == pytest.approx(mean) and cell.std == (std and pytest.approx(std))
    # No log or README has the supervised run on 1,464 images.
    assert ('imas:classic', 'SupOnly, R101, stride 16 (log)', 1464) not in found


# Row of UniMatch's -> method, backbone, whether it is frozen.
UNIMATCH = {
    'labels only, S': ('unimatch_supervised', 'dinov2_small', False),
    'labels only, B': ('unimatch_supervised', 'dinov2_base', False),
    'FixMatch, B': ('fixmatch', 'dinov2_base', False),
    'losses of V1, B': ('unimatch_v1', 'dinov2_base', False),
    'UniMatch V2, S': ('unimatch', 'dinov2_small', False),
    'UniMatch V2, B': ('unimatch', 'dinov2_base', False),
    'UniMatch V2, L': ('unimatch', 'dinov2_large', False),
    'UniMatch V2, S frozen': ('unimatch', 'dinov2_small', True),
    'UniMatch V2, B frozen': ('unimatch', 'dinov2_base', True),
    'labels only, R50 (README)': ('unimatch_supervised', 'resnet50', False),
    'labels only, R101 (README)': ('unimatch_supervised', 'resnet101', False),
    'UniMatch V1, R50': ('unimatch_v1', 'resnet50', False),
    'UniMatch V1, R101': ('unimatch_v1', 'resnet101', False),
}
# Dataset, and how many rows and columns.
SIZES = {
    'unimatch:voc': ('voc', 9, 5),
    'unimatch:cityscapes': ('cityscapes', 3, 4),
    'unimatch:ade20k': ('ade20k', 5, 5),
    'unimatch:coco': ('coco/2017_all', 3, 5),
    'unimatch_v1:voc': ('voc', 3, 5),
    'unimatch_v1:blended': ('voc', 1, 3),
    'unimatch_v1:cityscapes': ('cityscapes', 4, 4),
}


@pytest.mark.parametrize('name', UNIMATCH_S)
def test_every_cell_of_unimatch_is_what_its_authors_ran(name):
    """Their numbers of steps, crops and rates are tests/test_unimatch_config.py's."""
    table, (dataset, rows, columns) = tables.get(name), SIZES[name]
    assert table.source == 'authors'
    for cell in table.cells:
        config = final(table, cell, ',seed=2')
        method, backbone, frozen = UNIMATCH[cell.row]
        assert (config.method, config.model.backbone) == (method, backbone)
        assert config.model.frozen_backbone == frozen
        assert config.seed == 2 and config.eval.dataset == dataset
        layout = 'u2pl' if name.endswith('blended') else 'unimatch'
        listed = {'voc': 'pascal', 'coco/2017_all': 'coco'}.get(dataset, dataset)
        folder = lists.folders(listed, layout)[cell.labels]
        labelled = config.data.streams.labelled
        assert labelled.ids_file == f'splits/{listed}/{folder}/labeled.txt'
        assert labelled.split == ('trainaug' if layout == 'u2pl' else 'train')
    assert len({cell.row for cell in table.cells}) == rows
    assert len({(cell.row, cell.labels) for cell in table.cells}) == rows * columns
    assert len(table.cells) == rows * columns


def test_the_numbers_of_unimatch_are_its_authors():
    assert {cell.row for name in UNIMATCH_S for cell in tables.get(name).cells} == UNIMATCH.keys()
    found = {(n, c.row, c.labels): c for n in UNIMATCH_S for c in tables.get(n).cells}
    for name, row, labels, mean in (
        ('unimatch:voc', 'UniMatch V2, B', 92, 86.29),
        ('unimatch:voc', 'UniMatch V2, S', 1464, 87.82),
        ('unimatch:voc', 'UniMatch V2, L', 366, 90.29),
        ('unimatch:voc', 'UniMatch V2, B frozen', 183, 87.22),
        ('unimatch:voc', 'UniMatch V2, S frozen', 92, 81.82),
        ('unimatch:voc', 'labels only, S', 183, 75.63),
        ('unimatch:voc', 'FixMatch, B', 732, 89.88),
        ('unimatch:voc', 'losses of V1, B', 1464, 90.43),
        ('unimatch:cityscapes', 'UniMatch V2, S', 372, 81.86),
        ('unimatch:cityscapes', 'labels only, B', 186, 80.79),
        ('unimatch:ade20k', 'UniMatch V2, L', 5052, 54.16),
        ('unimatch:ade20k', 'UniMatch V2, B frozen', 316, 35.58),
        ('unimatch:coco', 'UniMatch V2, B', 3697, 63.31),
        ('unimatch:coco', 'labels only, B', 925, 52.13),
        ('unimatch_v1:blended', 'UniMatch V1, R101', 1323, 81.92),
        ('unimatch_v1:cityscapes', 'UniMatch V1, R50', 1488, 78.60),
        ('unimatch_v1:voc', 'labels only, R101 (README)', 92, 45.1),
    ):
        cell = found[name, row, labels]
        assert (cell.mean, cell.std) == (mean, None)
    three = found['unimatch_v1:voc', 'UniMatch V1, R101', 183]
    assert three.mean == pytest.approx((76.75 + 78.17 + 77.69) / 3)
    assert three.std == pytest.approx(0.723, abs=1e-3)


@pytest.mark.parametrize('name', UNIMATCH_S)
def test_the_page_of_unimatch_has_the_numbers_of_its_tables(name):
    page = (ROOT / 'docs' / 'unimatch.md').read_text()
    table = tables.get(name)
    start = page.index(f'`{name}`, ')
    assert f'`{table.file}:{table.protocol},LABELS,...`' in page[start:].splitlines()[0]
    rows = {}
    for line in itertools.takewhile(str.strip, page[start:].splitlines()[2:]):
        words, argument, *numbers = (cell.strip(' `') for cell in line.strip('|').split('|'))
        rows[words] = argument, numbers
    assert rows[''][1] == [f'{count:,}' for count in dict.fromkeys(c.labels for c in table.cells)]
    for row in dict.fromkeys(cell.row for cell in table.cells):
        cells = [cell for cell in table.cells if cell.row == row]
        digits = 1 if 'README' in row else 2
        shown = [
            f'{cell.mean:.{digits}f}' + (f' ± {cell.std:.2f}' if cell.std else '') for cell in cells
        ]
        assert rows[row] == (tables.method(cells[0]), shown)


def test_the_file_and_the_heading_of_a_table():
    assert (tables.heading(2), tables.file_name('2')) == ('Table 2: blender VOC', 'table2.md')
    assert tables.heading('imas:classic') == 'iMAS, classic VOC'
    assert tables.file_name('imas:classic') == 'table_imas_classic.md'


def test_the_same_run_has_the_same_number_in_tables_5_6_and_7():
    means = {}
    for number in (5, 6, 7):
        for cell in tables.get(number).cells:
            means.setdefault((cell.method, cell.labels), set()).add(cell.mean)
    assert len(means) == 18  # of 32 cells
    assert all(len(numbers) == 1 for numbers in means.values())


def test_the_setup_is_that_of_the_paper():
    """Sec. 4.1 and 4.2."""
    classic = final(tables.get(1), tables.get(1).cells[-1])
    blender = final(tables.get(2), tables.get(2).cells[0], ',pretrained=deep.pth')
    streets = final(tables.get(3), tables.get(3).cells[0], ',pretrained=deep.pth')
    sup = final(tables.get(1), tables.get(1).cells[0])
    assert set(sup.data.streams) == {'labelled'}
    for config in (classic, blender):
        assert (config.steps, config.optimizer.learning_rate) == (40_000, 0.0064)
        assert config.eval.to_dict()['pad_to'] == (512, 512)
        assert (config.eval.dataset, config.eval.split, config.num_classes) == ('voc', 'val', 21)
        assert (config.eval.protocol, config.supervised.loss) == ('whole', 'ce')
        assert config.augment.resize == config.data.streams.labelled.resize == (0.5, 1.5)
        assert config.data.streams.unlabelled.split == 'trainaug'
    assert (streets.steps, streets.optimizer.learning_rate) == (80_000, 0.0038)
    assert (streets.eval.dataset, streets.num_classes) == ('cityscapes', 19)
    assert (streets.eval.protocol, streets.supervised.loss) == ('sliding', 'ohem')
    assert streets.augment.resize == streets.data.streams.labelled.resize == (0.5, 2.0)
    assert [c.model.stem for c in (classic, blender, streets)] == ['conv7', 'deep', 'deep']
    assert blender.data.streams.labelled.split == 'trainaug'
    for config, batch, side in ((classic, 16, 512), (blender, 16, 512), (streets, 8, 768)):
        assert config.model.backbone == 'resnet101' and config.model.output_stride == 8
        assert config.optimizer.weight_decay == 0.0005
        for stream in config.data.streams.values():
            assert (stream.batch_size, stream.crop) == (batch, (side, side))
        unlabelled = config.data.streams.unlabelled
        assert (unlabelled.exclude, unlabelled.pad) == ('labelled', 'reflect')
        assert unlabelled.resize == (1.0, 1.0)


def warned(config):
    images = {'labelled': 1000, 'unlabelled': 1000}
    return warnings.warnings(config, configs.finalise(config), images)


def test_random_weights_where_the_paper_has_imagenet_s_are_a_warning():
    table = tables.get(1)
    (warning,) = warned(final(table, table.cells[0], ',pretrained='))
    assert 'random weights' in warning and '--config.model.pretrained=resnet101)' in warning
    assert not warned(final(table, table.cells[0]))
    assert not warned(final(table, table.cells[0], ',pretrained=resnet101.npz'))
    started = ConfigDict(final(table, table.cells[0], ',pretrained='))
    started.init_from = 'runs/other'
    assert not warned(started)
    # With the representation head it comes beside the others.
    assert warning in warned(final(table, table.cells[-1], ',pretrained='))


@pytest.mark.parametrize('number', [2, 3])
def test_another_stem_than_the_paper_s_is_a_warning(number):
    table = tables.get(number)
    paper = warned(final(table, table.cells[0], ',pretrained=deep.pth'))
    (warning,) = set(warned(final(table, table.cells[0]))) - set(paper)
    assert "model.stem=conv7: the paper's network has a deep stem" in warning


@pytest.mark.parametrize('number', [4, '0', '', 'x', 'imas', 'imas:voc'])
def test_a_table_without_runs_is_named(number):
    with pytest.raises(ValueError, match=rf"--table: got '{number}', expected one of 1, 2, 3, 5"):
        tables.get(number)


@pytest.mark.parametrize('module', FAMILIES.values())
def test_the_numbers_of_a_docstring_are_the_table_s(module):
    line = r'\.py:(\S+) +(?:Table )?(\d|\w+:\w+): ([\d.]+)(?: ± ([\d.]+))?'
    quoted = re.findall(line, module.__doc__)
    assert len(quoted) >= 4 and ':' in quoted[-1][1]
    for argument, number, mean, std in quoted:
        table = tables.get(number)
        wanted = configs.finalise(module.get_config(argument))
        same = [cell for cell in table.cells if str(cell.labels) in argument.split(',')]
        cells = [cell for cell in same if final(table, cell) == wanted]
        assert [(c.mean, c.std) for c in cells] == [(float(mean), float(std) if std else None)]


def published(number):
    """(row, column) -> (mean, std or None), read from the paper's text."""
    lines = PAPER.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f'Table {number}. '))
    found = {}
    for line in itertools.takewhile(str.strip, lines[start + 2 :]):
        row, *cells = re.sub(r'<[^>]+>', '', line).split('\t')
        for column, cell in enumerate(cells):
            # What comes after an arrow is the difference to another row.
            values = [float(v) for v in re.findall(r'\d+\.\d+', cell.split('arrow')[0])]
            if values:
                found[row, column] = (values[0], values[1] if len(values) > 1 else None)
    return found


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not beside the project")
@pytest.mark.parametrize('number', PAPER_S)
def test_the_numbers_are_those_of_the_paper_s_text(number):
    table = tables.get(number)
    text = published(number)
    columns = sorted({c.labels for c in table.cells})
    variants = list(dict.fromkeys(c.variant for c in table.cells))
    compared = set()
    for cell in table.cells:
        column = columns.index(cell.labels) * len(variants) + variants.index(cell.variant)
        assert text[cell.row, column] == (cell.mean, cell.std), (cell, column)
        compared.add((cell.row, column))
    others = {row for row, _ in text.keys() - compared}
    assert all('[' in row for row in others)  # other papers' programs, with their reference
