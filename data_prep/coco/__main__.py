"""Prepares `coco` from the archives you have downloaded, or from the folders in them."""

from data_prep import command
from data_prep.coco import builder

if __name__ == '__main__':
    command.run('coco', __doc__, builder, check=builder.find_source)
