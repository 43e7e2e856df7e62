"""A Whisper of a few kilobytes: its weights are chance, and so is what it hears; it loads and runs like a real one."""

from pathlib import Path
from typing import Any

import numpy

_WIDTH, _HEADS, _MELS = 16, 2, 80
_SOUNDS, _WORDS = 1_500, 448  # positions of the encoder and the decoder
_TEXT = [f"word{number}" for number in range(200)]
_SPECIAL = [
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
]  # fmt: skip
_TOKENS = [*_TEXT, *_SPECIAL, *(f"<|{number * 0.02:.2f}|>" for number in range(1_501))]


def make_tiny_whisper(folder: Path) -> None:
    """Weights and a tokenizer in `folder`, as faster-whisper loads them. English only."""
    from ctranslate2.specs import WhisperSpec

    folder.mkdir(parents=True)
    chance = numpy.random.default_rng(7)

    def weights(*shape: int) -> Any:
        return chance.normal(0, 0.3, shape).astype(numpy.float32)

    def linear(layer: Any, outputs: int, inputs: int) -> None:
        layer.weight, layer.bias = weights(outputs, inputs), numpy.zeros(outputs, numpy.float32)

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = numpy.ones(_WIDTH, numpy.float32), numpy.zeros(_WIDTH, numpy.float32)

    def attention(layer: Any, *outputs: int) -> None:
        norm(layer.layer_norm)
        for part, size in zip(layer.linear, outputs, strict=True):
            linear(part, size, _WIDTH)

    def thinking(layer: Any) -> None:
        norm(layer.ffn.layer_norm)
        linear(layer.ffn.linear_0, 4 * _WIDTH, _WIDTH)
        linear(layer.ffn.linear_1, _WIDTH, 4 * _WIDTH)

    spec = WhisperSpec(1, _HEADS, 1, _HEADS)
    for conv, inputs in ((spec.encoder.conv1, _MELS), (spec.encoder.conv2, _WIDTH)):
        conv.weight, conv.bias = weights(_WIDTH, inputs, 3), numpy.zeros(_WIDTH, numpy.float32)
    spec.encoder.position_encodings.encodings = weights(_SOUNDS, _WIDTH)
    spec.decoder.position_encodings.encodings = weights(_WORDS, _WIDTH)
    spec.decoder.embeddings.weight = weights(len(_TOKENS), _WIDTH)
    linear(spec.decoder.projection, len(_TOKENS), _WIDTH)
    for side in (spec.encoder, spec.decoder):
        norm(side.layer_norm)
        for layer in side.layer:
            attention(layer.self_attention, 3 * _WIDTH, _WIDTH)
            thinking(layer)
    for layer in spec.decoder.layer:
        attention(layer.attention, _WIDTH, 2 * _WIDTH, _WIDTH)
    spec.register_vocabulary(_TOKENS)
    spec.config.suppress_ids, spec.config.suppress_ids_begin = [], []
    spec.config.lang_ids, spec.config.alignment_heads = [_TOKENS.index("<|en|>")], [(0, 0)]
    spec.validate()
    spec.save(str(folder))
    _tokenizer(folder / "tokenizer.json")


def _tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {token: place for place, token in enumerate(_TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=_TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.save(str(path))
