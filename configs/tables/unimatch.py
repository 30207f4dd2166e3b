"""Tables of UniMatch V2 (arXiv 2410.10777) and of UniMatch (arXiv 2208.09910), here V1.

They have the best epoch of the logs that the authors published with their programs
(https://github.com/LiheYoung/UniMatch-V2 and https://github.com/LiheYoung/UniMatch), of the EMA
teacher where there is one. V1's rows of labels alone are of its README, and three logs of the same
settings are one cell. Numbers of what is not here, Xception-65 or unlabelled images of another
dataset, stand in docs/unimatch.md alone.
"""

from configs.tables.cells import Table, runs

_FILE = 'configs/unimatch.py'
_FINE = (92, 183, 366, 732, 1464)
_BLENDED = (662, 1323, 2646)
_STREETS = (186, 372, 744, 1488)
_SCENES = (316, 631, 1263, 2526, 5052)
_THINGS = (232, 463, 925, 1849, 3697)
_V2, _V1, _ALONE = 'UniMatch V2', 'UniMatch V1', 'labels only'
_S, _B, _L = 'dinov2_small', 'dinov2_base', 'dinov2_large'
_NOTE = "The published numbers are the authors' best epoch on val, of one run or, with ±, of three."

TABLES = {
    'unimatch:voc': Table(
        'UniMatch V2, classic VOC',
        _FILE,
        'voc',
        (
            *runs(f'{_ALONE}, S', 'unimatch_supervised', _S, _FINE,
                   (66.98, 75.63, 81.82, 83.69, 85.56)),
            *runs(f'{_ALONE}, B', 'unimatch_supervised', _B, _FINE,
                   (76.86, 82.07, 85.27, 87.15, 88.30)),
            *runs('FixMatch, B', 'fixmatch', _B, _FINE, (83.83, 87.37, 88.21, 89.88, 90.21)),
            *runs('losses of V1, B', 'unimatch_v1', _B, _FINE,
                   (86.03, 87.52, 88.66, 89.99, 90.43)),
            *runs(f'{_V2}, S', 'unimatch', _S, _FINE, (79.03, 85.50, 85.85, 86.69, 87.82)),
            *runs(f'{_V2}, B', 'unimatch', _B, _FINE, (86.29, 87.92, 88.86, 89.98, 90.80)),
            *runs(f'{_V2}, L', 'unimatch', _L, _FINE, (86.44, 87.56, 90.29, 91.13, 91.21)),
            *runs(f'{_V2}, S frozen', 'unimatch', f'{_S},frozen', _FINE,
                   (81.82, 83.84, 84.02, 85.73, 86.23)),
            *runs(f'{_V2}, B frozen', 'unimatch', f'{_B},frozen', _FINE,
                   (84.64, 87.22, 87.44, 88.51, 90.17)),
        ),
        'authors',
        _NOTE,
    ),
    'unimatch:cityscapes': Table(
        'UniMatch V2, Cityscapes',
        _FILE,
        'cityscapes',
        (
            *runs(f'{_ALONE}, B', 'unimatch_supervised', _B, _STREETS,
                   (80.79, 82.65, 83.98, 84.39)),
            *runs(f'{_V2}, S', 'unimatch', _S, _STREETS, (80.55, 81.86, 82.39, 82.61)),
            *runs(f'{_V2}, B', 'unimatch', _B, _STREETS, (83.60, 84.30, 84.51, 85.14)),
        ),
        'authors',
        _NOTE,
    ),
    'unimatch:ade20k': Table(
        'UniMatch V2, ADE20K',
        _FILE,
        'ade20k',
        (
            *runs(f'{_ALONE}, B', 'unimatch_supervised', _B, _SCENES,
                   (32.06, 39.25, 42.82, 46.41, 49.02)),
            *runs(f'{_V2}, S', 'unimatch', _S, _SCENES, (31.48, 38.10, 40.69, 44.41, 45.76)),
            *runs(f'{_V2}, B', 'unimatch', _B, _SCENES, (38.70, 45.00, 46.67, 49.84, 52.02)),
            *runs(f'{_V2}, L', 'unimatch', _L, _SCENES, (39.95, 44.96, 49.33, 52.14, 54.16)),
            *runs(f'{_V2}, B frozen', 'unimatch', f'{_B},frozen', _SCENES,
                   (35.58, 40.19, 42.30, 45.60, 47.28)),
        ),
        'authors',
        _NOTE,
    ),
    'unimatch:coco': Table(
        'UniMatch V2, COCO',
        _FILE,
        'coco',
        (
            *runs(f'{_ALONE}, B', 'unimatch_supervised', _B, _THINGS,
                   (36.76, 45.77, 52.13, 56.24, 59.50)),
            *runs(f'{_V2}, S', 'unimatch', _S, _THINGS, (39.33, 45.41, 53.17, 54.99, 57.01)),
            *runs(f'{_V2}, B', 'unimatch', _B, _THINGS, (47.93, 55.84, 58.66, 60.42, 63.31)),
        ),
        'authors',
        _NOTE,
    ),
    'unimatch_v1:voc': Table(
        'UniMatch V1, classic VOC',
        _FILE,
        'voc',
        (
            *runs(f'{_ALONE}, R101 (README)', 'unimatch_supervised', 'resnet101', _FINE,
                   (45.1, 55.3, 64.8, 69.7, 73.5)),
            *runs(f'{_V1}, R50', 'unimatch_v1', 'resnet50', _FINE,
                   (71.90, 72.48, 75.96, 77.39, 78.70)),
            *runs(f'{_V1}, R101', 'unimatch_v1', 'resnet101', _FINE,
                   ((75.46, 74.78, 74.74), (76.75, 78.17, 77.69), (78.51, 78.69, 78.42),
                    (79.98, 80.21, 79.48), (80.78, 80.71, 81.01))),
        ),
        'authors',
        _NOTE,
    ),
    'unimatch_v1:blended': Table(
        "UniMatch V1, blended VOC, U2PL's lists",
        _FILE,
        'blender',
        runs(f'{_V1}, R101', 'unimatch_v1', 'resnet101', _BLENDED, (80.94, 81.92, 80.43)),
        'authors',
        _NOTE,
    ),
    'unimatch_v1:cityscapes': Table(
        'UniMatch V1, Cityscapes',
        _FILE,
        'cityscapes',
        (
            *runs(f'{_ALONE}, R50 (README)', 'unimatch_supervised', 'resnet50', _STREETS,
                   (63.3, 70.2, 73.1, 76.6)),
            *runs(f'{_V1}, R50', 'unimatch_v1', 'resnet50', _STREETS,
                   (75.03, 76.77, 77.49, 78.60)),
            *runs(f'{_ALONE}, R101 (README)', 'unimatch_supervised', 'resnet101', _STREETS,
                   (66.3, 72.8, 75.0, 78.0)),
            *runs(f'{_V1}, R101', 'unimatch_v1', 'resnet101', _STREETS,
                   (76.59, 77.92, 79.22, 79.45)),
        ),
        'authors',
        _NOTE,
    ),
}  # fmt: skip
