"""Commands that turn a dataset's published files into the records training reads.

One folder per dataset, each a TFDS builder and a command, `python -m data_prep.NAME --help`.
Records are ArrayRecord files of encoded bytes; neither writing nor reading them needs TensorFlow.
"""
