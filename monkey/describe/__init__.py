"""Detailed descriptions of pictures, made of what several experts see (arXiv 2311.06607, "multi-level description
generation").

`python -m monkey.describe run --config configs/describe/offline.yaml --images FOLDER --output RUN` makes them; what
a run leaves is described in records.py. The order of work is the table of stages.py, who does it the table of
experts.py, and what is kept of what they say is filters.py.
"""
