"""What the command line does: a file for each --mode, of the same name."""

# Mode -> what it does, for --help.
MODES = {
    'train': 'train, or resume the run in DIR, then evaluate',
    'evaluate': 'restore a checkpoint from DIR and evaluate it',
    'predict': 'write what the run in DIR says of images (--source PATH... --target FOLDER)',
    'preview': 'write what the network sees and what a step costs to DIR, without training',
    'pseudo_labels': 'measure the pseudo-labels of the run in DIR against the truth, by class',
    'convert': 'a checkpoint of the reference to a run (--source), or a run to one (--target)',
    'embeddings': 'make label embeddings of the run of usss_basic in DIR (--target FILE.npz)',
    'stages': 'train usss_basic, make label embeddings, train the method on these, all in DIR',
    'export': 'write the network of the run in DIR to a file for other programs (--target FILE)',
    'report': 'compare runs: a table, a picture, a page; --workdir DIR [DIR ...], runs or folders',
    'sweep': 'run a table of a paper over seeds, each run in a folder of its own in DIR',
}
