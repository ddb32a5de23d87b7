"""Signs of other projects are found in a text, and what people write is left alone."""

from __future__ import annotations

import pytest

from monkey.data.foreign import AUDIO, CONTROL, IMAGE, PLACE, VIDEO, find_foreign_markers

CERTAIN = {
    IMAGE: "<|image_pad|> <|vision_start|> <|image_1|> <|image|> <IMG_CONTEXT> <ImageHere> <imgpad> [IMG]",
    VIDEO: "<|video_pad|>",
    AUDIO: "<|AUDIO|> <|audio_bos|>",
    PLACE: "<|box_start|> <|box_end|> <|object_ref_start|> <|ref|> <|/det|> <ref-object> <bbox> <loc_12> <loc0012>",
    CONTROL: "<|im_start|> <|im_end|> <|endoftext|> <|user|> <|eot_id|> <|start_header_id|>",
}
POSSIBLE = {
    IMAGE: ["<image>", "<image1>", "<image-2>", "<image_3>", "<image 4>", '<img src="a.png">', "<img src='a' alt=x/>"],
    VIDEO: ["<video>"],
    AUDIO: ["<audio>"],
    PLACE: ["[0.1, 0.25,0.30,1.0]", "[0, .5, 1, 0.75]", '"bbox_2d"', '"point_2d"', "<point x=", "<points x1="],
    CONTROL: [
        *("[INST]", "[/INST]", "<<SYS>>", "<s>", "</s>", "<start_of_turn>"),
        *("<eos>", "<|extra_7|>", "ASSISTANT: ", "### Human:"),
    ],
}


SIGNS = [(meaning, sign, True) for meaning, signs in CERTAIN.items() for sign in signs.split()]
SIGNS += [(meaning, sign, False) for meaning, signs in POSSIBLE.items() for sign in signs]


@pytest.mark.parametrize(("meaning", "sign", "is_certain"), SIGNS)
def test_a_sign_is_found_where_it_stands_and_may_be_text_or_not(meaning, sign, is_certain):
    (found,) = find_foreign_markers(f"See {sign} there")
    assert found == (sign, 4, meaning, is_certain)


def test_signs_keep_their_order():
    found = find_foreign_markers("<image>\nFind it.<|im_end|>[0.1,0.2,0.3,0.4]")
    expected = [("<image>", 0), ("<|im_end|>", 16), ("[0.1,0.2,0.3,0.4]", 26)]
    assert [(marker.text, marker.start) for marker in found] == expected


@pytest.mark.parametrize(
    "text",
    [
        "What is the total? Answer: ",
        "<img>a.png</img> Where is <ref>it</ref>? <box>(1,2),(3,4)</box> <quad>(1,2),(3,4),(5,6),(7,8)</quad>",
        "<ul><li>images</li></ul> <imagery> a <| b |> c <|> x<y [1] [1,2,3,4] [0.1,0.2] see [2, 3, 0.5, 1]",
        "The user: said, an assistant: answered. # Human",
    ],
)
def test_ours_and_plain_text_are_left_alone(text):
    assert find_foreign_markers(text) == []
