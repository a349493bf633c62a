"""Tools for stores: verify.py, info.py and show.py; survey.py reads what the teacher said."""
