"""Evaluation: a row of questions becomes a score.

tasks (one row a data set) -> questions -> backend (answers) -> journal -> metrics -> results. `monkey` never
imports this package; `eval.metrics` and `eval.tasks` need neither torch nor transformers. The program is
`evaluate_vqa.py`.
"""

import monkey  # noqa: F401  before transformers, which else meets a torchvision that cannot be imported
