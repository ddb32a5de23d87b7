"""Detailed descriptions of images, made of what several experts see (arXiv 2311.06607, "multi-level description
generation").

`python -m monkey.describe run --config configs/describe/offline.yaml --images FOLDER --output RUN` makes them. The
order of work, with who does it, is the table of pipeline.py; experts.py look at images, filters.py says what is kept of
what they find (findings.py), prompt.py asks about it, writers.py write, and output.py says what a run leaves.
"""
