"""Tables 1, 2, 3, 5, 6 and 7 of "Space Engage" (arXiv 2307.09755, Sec. 4.2 and 5), cell by cell.

Tables 2 and 3 have their last row only: the others quote other papers' programs. Table 4 is of
pseudo-labels, not of runs.

Sec. 5 names neither the split nor the number of runs of Tables 5, 6 and 7, whose baseline on 92
labels (67.11) is not Table 1's mean (66.91).
"""

from configs.tables.cells import Table, row

_CLASSIC = (92, 183, 366, 732)
_ABLATION = (92, 183)
_SEG, _MIX = 'seg label', 'mix label'
_REPRESENTATION = 'css,pseudo_label=representation,indicator=both'
_SIMILARITY = 'css,pseudo_label=logit,indicator=similarity'
_BOTH = 'css,pseudo_label=logit,indicator=both'

TABLES = {
    1: Table(
        'comparison with existing methods, classic VOC',
        'configs/voc.py',
        'classic',
        (
            *row('Sup.', 'supervised', _CLASSIC, (51.57, 54.69, 64.86, 70.77),
                  (3.58, 2.44, 1.04, 0.76)),
            *row('MT', 'mean_teacher', _CLASSIC, (58.92, 61.63, 66.79, 71.58),
                  (2.99, 1.76, 0.53, 0.51)),
            *row('CutMix', 'cutmix', _CLASSIC, (65.82, 67.91, 72.53, 74.08),
                  (3.60, 1.47, 0.50, 0.49)),
            *row('Baseline', 'baseline', _CLASSIC, (66.91, 70.32, 73.97, 76.49),
                  (4.21, 1.86, 1.04, 0.58)),
            *row('CSS(crs.)', 'css_cross', _CLASSIC, (67.03, 71.41, 74.47, 77.08),
                  (4.58, 1.67, 1.08, 0.37)),
            *row('CSS(mix)', 'css_mix', _CLASSIC, (68.09, 71.93, 74.91, 77.57),
                  (4.89, 1.88, 1.12, 0.73)),
        ),
    ),
    2: Table(
        'blender VOC',
        'configs/voc.py',
        'blender',
        row('CSS (mix)', 'css_mix', (662, 1323, 2646, 5291), (78.73, 79.54, 80.82, 81.06)),
    ),
    3: Table(
        'Cityscapes',
        'configs/cityscapes.py',
        '',
        row('CSS (mix)', 'css_mix', (186, 372, 744, 1488), (74.02, 76.93, 77.94, 79.62)),
    ),
    5: Table(
        'pseudo-labels from different sources, classic VOC',
        'configs/voc.py',
        'classic',
        (
            *row('logit space', 'baseline', _ABLATION, (67.11, 70.32)),
            *row('representation space', _REPRESENTATION, _ABLATION, (64.20, 67.52)),
            *row('mix pseudo-labeling', 'css_mix', _ABLATION, (68.41, 72.74)),
            *row('cross pseudo-labeling', 'css_cross', _ABLATION, (67.85, 71.98)),
        ),
    ),
    6: Table(
        'indicators from different spaces, classic VOC',
        'configs/voc.py',
        'classic',
        (
            *row('conf.', 'baseline', _ABLATION, (67.11, 70.32), variant=_SEG),
            *row('conf.', 'css_mix,indicator=confidence', _ABLATION, (68.33, 71.92), variant=_MIX),
            *row('smr.', _SIMILARITY, _ABLATION, (66.16, 68.90), variant=_SEG),
            *row('smr.', 'css_mix,indicator=similarity', _ABLATION, (66.89, 69.25), variant=_MIX),
            *row('mix', _BOTH, _ABLATION, (67.80, 71.50), variant=_SEG),
            *row('mix', 'css_mix', _ABLATION, (68.41, 72.74), variant=_MIX),
        ),
    ),
    7: Table(
        'components of CSS, classic VOC',
        'configs/voc.py',
        'classic',
        (
            *row('baseline', 'baseline', _ABLATION, (67.11, 70.32)),
            *row('mix', 'css_mix,indicator=confidence', _ABLATION, (68.33, 71.92)),
            *row('cross', 'css_cross,indicator=confidence', _ABLATION, (67.21, 70.87)),
            *row('ind', _BOTH, _ABLATION, (67.80, 71.50)),
            *row('mix + ind', 'css_mix', _ABLATION, (68.41, 72.74)),
            *row('cross + ind', 'css_cross', _ABLATION, (67.85, 71.98)),
        ),
    ),
}  # fmt: skip
