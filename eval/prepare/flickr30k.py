"""Captions: Flickr30K by Karpathy's split. (TextCaps shares its pictures with TextVQA and stands there.)

dataset_flickr30k.json: {"images": [{"filename", "split", "imgid", "sentences": [{"raw", "tokens"}, …]}, …]}; the
pictures are in flickr30k-images/.
"""

from __future__ import annotations

from eval.prepare.release import Prepared, PreparedRow, Release, take, take_text

CAPTION_QUESTION = "Generate the caption in English:"
"""What a row of a caption task asks; its prompt form says it without a place for a question."""

PICTURES = "data/flickr30k/flickr30k-images"


def flickr30k(release: Release) -> Prepared:
    """The 1,000 test pictures of Karpathy's split, with five references each."""
    name = "dataset_flickr30k.json"
    rows = []
    for where, row in release.rows(release.file(name, f"flickr30k/{name}", f"caption_datasets/{name}"), "images"):
        if take_text(row, "split", where) != "test":
            continue
        file_name = take_text(row, "filename", where)
        picture = release.picture(
            f"{PICTURES}/{file_name}",
            f"flickr30k-images/{file_name}",
            f"flickr30k_images/{file_name}",
            f"images/{file_name}",
            where=where,
        )
        references = [take_text(one, "raw", where) for one in take(row, "sentences", (list,), where)]
        rows.append(PreparedRow(picture, CAPTION_QUESTION, references, take(row, "imgid", (int,), where), where))
    return Prepared(rows, ["Karpathy's test split, all references of a picture in one row"])
