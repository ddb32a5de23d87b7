"""The score of boxes: intersection over union, from one half on."""

from __future__ import annotations

import pytest

from eval.box_overlap import first_box, official, overlap
from eval.metrics import METRICS

BOX = "<box>(100,100),(300,200)</box>"


@pytest.mark.parametrize(
    ("prediction", "iou"),
    [
        (BOX, 1.0),
        ("<ref>Total</ref><box>(100,100),(300,200)</box>", 1.0),
        ("<box>(300,200),(100,100)</box>", 1.0),
        ("<box>(100,100),(200,200)</box>", 0.5),
        ("<box>(200,100),(400,200)</box>", 1 / 3),
        ("<box>(400,400),(500,500)</box>", 0.0),
        ("<box>(0,0),(900,900)</box> <box>(100,100),(300,200)</box>", 20_000 / 810_000),
        ("(100,100),(300,200)", 0.0),
        ("", 0.0),
    ],
)
def test_overlap_is_that_of_the_first_box(prediction, iou):
    assert overlap(prediction, [BOX]) == pytest.approx(iou)
    assert official(prediction, [BOX]) == (iou >= 0.5)


def test_the_nearest_reference_counts():
    assert overlap(BOX, ["<box>(0,0),(1,1)</box>", BOX, "no box"]) == 1.0


def test_boxes_without_area_are_compared_not_divided():
    assert overlap("<box>(5,5),(5,5)</box>", ["<box>(5,5),(5,5)</box>"]) == 1.0
    assert overlap("<box>(5,5),(5,5)</box>", ["<box>(6,6),(6,6)</box>"]) == 0.0


def test_numbers_that_no_box_has_are_not_read():
    assert first_box("<box>(1234567,0),(1,1)</box>") is None
    assert first_box("<box>(-5,0),(1,1)</box>") is None


def test_the_metric_has_both_variants():
    assert set(METRICS["box_overlap"].variants) == {"official", "mean"}
