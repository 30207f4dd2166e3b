"""PASCAL VOC 2012 segmentation with the additional labels of SBD: 20 kinds of objects."""
