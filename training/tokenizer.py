"""Small byte-level BPE tokenizers in transformers' own format: any text is legal."""

from __future__ import annotations

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast


def train_tokenizer(
    corpus: list[str],
    *,
    special: list[str],
    vocabulary: int,
    max_length: int,
    frame: tuple[str, str] | None = None,
    keep_case: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer whose frequent words are one token and whose unknown words fall back to bytes.

    ``special[0]`` pads. ``frame`` puts a first and a last token around every text (CLIP's habit).
    """
    core = Tokenizer(models.BPE())
    core.normalizer = (
        normalizers.NFC()
        if keep_case
        else normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=not keep_case)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    named = {"pad_token": special[0]}
    if frame:
        first, last = frame
        core.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            special_tokens=[(t, core.token_to_id(t)) for t in frame],
        )
        named |= {"bos_token": first, "eos_token": last}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_length,
        additional_special_tokens=special[1:],
        clean_up_tokenization_spaces=False,
        **named,
    )
