"""Document-like pictures with questions and answers, drawn with Pillow: signs, receipts, tables, bar charts, shapes.

`python -m monkey.data.render --output DIR --seed 0 --train N --heldout N` writes training conversations and evaluation
questions whose splits share no drawn text. Each kind of picture is a pure function in a file of its own, registered in
tasks.py; how hard they are is a row of difficulty.py.
"""
