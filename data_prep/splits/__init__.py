"""Split lists: which images of PASCAL VOC and Cityscapes the field trains on with labels."""
