"""Folder: a dataset of your own, photographs and masks for some of them."""
