"""Tiny models with random weights of every family that the description experts open, with processors, in folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SamConfig,
    SamModel,
    SamProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from monkey.describe.prompt import RULES, TASK

WORDS = ("a", "red", "blue", "sign", "circle", "on", "the", "left", "of", "picture", "shows", "There", "is", ".", ",")


def tokenizer(*special: str, begin: bool = False, **named: str) -> PreTrainedTokenizerFast:
    """Words split at spaces, with these special tokens; `begin` puts the first of them before every text."""
    listed = [*special, *(f"▁{word}" for word in WORDS)]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(listed)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    if begin:
        core.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **named)


def blip2_config(vocabulary: int, image_token: int | None) -> Blip2Config:
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    return Blip2Config(
        # Their own ranges are so small that pictures would make no difference.
        vision_config={**small, "image_size": 28, "patch_size": 14, "initializer_range": 0.5},
        qformer_config={
            **small,
            "vocab_size": vocabulary,
            "encoder_hidden_size": 16,
            "cross_attention_frequency": 1,
            "initializer_range": 0.5,
            "use_qformer_text_input": True,
        },
        text_config=OPTConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            word_embed_proj_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=32,
            init_std=0.5,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=image_token,
        image_text_hidden_size=8,
        initializer_range=0.5,
    )


def write_blip2(folder: Path) -> Path:
    torch.manual_seed(0)
    words = tokenizer("<s>", "</s>", "<pad>", "<unk>", "<image>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    config = blip2_config(len(words), words.convert_tokens_to_ids("<image>"))
    config.qformer_config.use_qformer_text_input = False
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 28, "width": 28})
    Blip2Processor(images, words, num_query_tokens=4).save_pretrained(folder)
    return folder


def write_matcher(folder: Path) -> Path:
    torch.manual_seed(1)
    words = tokenizer(
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "<unk>",
        "<image>",
        begin=True,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    model = Blip2ForImageTextRetrieval(blip2_config(len(words), words.convert_tokens_to_ids("<image>")))
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 28, "width": 28})
    Blip2Processor(images, words, num_query_tokens=4).save_pretrained(folder)
    return folder


def write_sam(folder: Path) -> Path:
    torch.manual_seed(2)
    side, patch = 64, 16
    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": patch,
            "mlp_dim": 32,
            "window_size": 2,
            "global_attn_indexes": [0],
            "num_pos_feats": 8,
            "initializer_range": 0.5,
        },
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": side,
            "patch_size": patch,
            "image_embedding_size": side // patch,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
            "iou_head_depth": 2,
        },
        initializer_range=0.5,
    )
    SamModel(config).save_pretrained(folder)
    images = SamImageProcessorPil(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    SamProcessor(images).save_pretrained(folder)
    return folder


FLORENCE_ANSWER = (
    "▁a ▁red ▁sign <loc_100> <loc_200> <loc_499> <loc_599> ▁blue ▁circle <loc_600> <loc_0> <loc_999> <loc_399> </s>"
)
"""What the tiny Florence-2 says of every picture: its decoder's position embeddings are made to spell it."""


def write_florence2(folder: Path) -> Path:
    torch.manual_seed(3)
    places = [f"<loc_{number}>" for number in range(1000)]
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    words = tokenizer("<s>", "<pad>", "</s>", "<unk>", "<image>", *places, **named)
    words.add_tokens(places, special_tokens=False)
    words = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        **named,
    )
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = Florence2Config(
        text_config=BartConfig(
            vocab_size=len(words),
            d_model=64,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=64,
            decoder_start_token_id=2,
            forced_bos_token_id=0,
            **ids,
        ).to_dict(),
        vision_config={
            "depths": (1, 1, 1, 1),
            "embed_dim": (8, 8, 8, 16),
            "num_heads": (2, 2, 2, 2),
            "num_groups": (2, 2, 2, 2),
            "projection_dim": 64,
            "window_size": 2,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
        **ids,
    )
    model = Florence2ForConditionalGeneration(config)
    spell(model, [0, *words.convert_tokens_to_ids(FLORENCE_ANSWER.split())])
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    tasks = {"description_with_bboxes": {}}
    Florence2Processor(images, words, post_processor_config=tasks).save_pretrained(folder)
    return folder


def spell(model: Florence2ForConditionalGeneration, ids: list[int]) -> None:
    """Make the decoder say these tokens, by what it adds to each position."""
    decoder = model.model.language_model.decoder
    with torch.no_grad():
        for layer in decoder.layers:
            for linear in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
        embeddings = decoder.embed_tokens.weight
        embeddings.sub_(embeddings.mean(dim=1, keepdim=True))
        embeddings.div_(embeddings.norm(dim=1, keepdim=True).clamp(min=1e-6))  # that of padding is zero
        # BART's positions begin at the third row.
        for place, token in enumerate(ids):
            decoder.embed_positions.weight[place + 2] = 20 * embeddings[token]


def write_causal(folder: Path, template: bool = True) -> Path:
    torch.manual_seed(4)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [TASK, RULES], trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    words = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    if template:
        words.chat_template = (
            "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
            "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
        )
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


FAMILIES = {
    "blip2": write_blip2,
    "matcher": write_matcher,
    "sam": write_sam,
    "florence2": write_florence2,
    "causal": write_causal,
}


def write_all(folder: Path) -> dict[str, Path]:
    return {name: write(folder / name) for name, write in FAMILIES.items()}
