"""The files of a run of 200 questions, to the byte, on one process and on two: `evaluation.json` of the outside.

The sums of the files are those that count; answers and results stand beside them so that a difference can be read.
"""

from __future__ import annotations

import pytest

from tests.golden.outside.observed import evaluated, recorded


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_of_200_questions_leaves_the_files_that_it_left(tmp_path, processes):
    found, expected = evaluated(tmp_path, processes), recorded("evaluation.json")
    assert found["predictions"] == expected["predictions"]
    assert found["results"] == expected["results"]
    assert found["sha256"] == expected["sha256"]
