"""Cityscapes: street scenes of 50 cities, finely annotated, the 19 classes of its evaluation."""
