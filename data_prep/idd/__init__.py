"""IDD, part I: street scenes from India, finely annotated, the 26 classes of its level 3."""
