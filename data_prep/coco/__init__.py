"""COCO: everyday scenes, the 80 kinds of things of its instances as classes, and background."""
