"""The course kit: a problem set, and a grader that runs a student's notebook apart from itself.

Run from the repository's folder: ``.venv/bin/python -m course.grade --help``.
"""
