"""Dense little documents with questions of the kinds that the published datasets ask, drawn with Pillow.

`python -m monkey.data.documents --output DIR --side 224 --train N --heldout N` writes training conversations and
evaluation questions by kind. Nothing that a held-out image spells out was ever drawn in training: see `words.py` for
texts and values, `faces.py` for typefaces, `page.py` for layouts. Each kind of document is a pure function
`(page, words)` in `forms.py` or `figures.py`, registered in `sets.py`, which chooses questions and writes files.
"""
