"""Methods that are nothing like CSS, a file and an entry each, to hold the house to its promise."""

from tests.toys import image_labels, queue, two_datasets, without_teacher

TOYS = {
    'without_teacher': without_teacher.METHOD,
    'two_datasets': two_datasets.METHOD,
    'image_labels': image_labels.METHOD,
    'queue': queue.METHOD,
}
