"""Tools of a course on adversarial machine learning, in five folders.

Import modules by name: ``from course_utils.methods import attacks``.
"""
