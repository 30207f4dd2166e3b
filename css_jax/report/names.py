"""Titles of the numbers that are logged and scored, and which of them are shares."""

import re
from typing import NamedTuple


class Said(NamedTuple):
    """A number's meaning.

    Attributes:
        title: for people; the name itself where none is known.
        percent: whether it is a share, which is shown in %.
    """

    title: str
    percent: bool = False


_SHARES = {
    'miou': 'mIoU',
    'miou_masked': "mIoU, classes the image lacks left out",
    'miou_crf': 'mIoU behind the CRF',
    'cam_miou': 'mIoU of the CAMs',
    'cam_miou_best': 'mIoU of the CAMs at their best threshold',
    'cam_threshold_best': 'best threshold of the CAMs',
    'cam_aux_miou': 'mIoU of the early CAMs',
    'cam_aux_miou_best': 'mIoU of the early CAMs at their best threshold',
    'cam_aux_threshold_best': 'best threshold of the early CAMs',
    'classifier_map': 'mean average precision of the classifier',
    'confident': 'unlabelled pixels with a confident pseudo-label',
    'confident_foreground': 'foreground among the confident pixels',
    'labelled': 'pixels with a label from CAMs',
    'foreground': 'foreground among these pixels',
    'agreement': 'pixels on which both kinds of labels agree',
    'valid': 'pixels that L_c may draw from',
    'hard': 'hard ones among these pixels',
}  # fmt: skip
_OTHERS = {
    'loss': 'all terms, weighted',
    'loss_supervised': 'L_s, of masks',
    'loss_unsupervised': 'L_u, of pseudo-labels',
    'loss_contrastive': 'L_c, contrastive',
    'loss_class': 'classification',
    'loss_class_aux': 'classification, early layer',
    'loss_cam2seg_background': 'CAM to segmentation, background',
    'loss_cam2seg_foreground': 'CAM to segmentation, foreground',
    'loss_aux2seg_background': 'early CAM to segmentation, background',
    'loss_aux2seg_foreground': 'early CAM to segmentation, foreground',
    'loss_seg2cam': 'segmentation to CAM',
    'loss_energy': 'dense energy',
    'prototype_cosine': 'mean cosine between prototypes',
    'classes_with_prototype': 'classes with a prototype',
    'classes_present': 'classes that L_c drew from',
    'anchors': 'anchors of L_c',
    'weight_contrastive': 'weight of L_c',
    'learning_rate': 'learning rate',
    'gradient_norm': 'norm of the gradient',
    'update_norm': 'norm of the update',
    'images_per_second': 'images per second',
}  # fmt: skip
_SAID = {name: Said(title, True) for name, title in _SHARES.items()}
_SAID |= {name: Said(title) for name, title in _OTHERS.items()}


def said(name: str) -> Said:
    """Return what a number of metrics.jsonl or of the scores beside mIoU means.

    What follows a known name is of what it is: 'loss_supervised_a' of dataset a, 'eval_miou_shapes'
    of the evaluation of shapes.
    """
    name = name.removeprefix('eval_')
    if name in _SAID:
        return _SAID[name]
    # A loss that nobody has named is not all terms, and of shares a suffix may change the kind.
    beginnings = ('loss_supervised', 'miou', 'learning_rate')
    for beginning in beginnings:
        if rest := re.fullmatch(f'{beginning}_(.+)', name):
            known = _SAID[beginning]
            return Said(f'{known.title}: {rest[1]}', known.percent)
    return Said(name)
