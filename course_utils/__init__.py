"""Tools of the course on adversarial machine learning; import the modules by name: ``from course_utils import attacks, data``."""
