"""A tiny random sentence encoder: its folder, and the same in plain NumPy, one text at a time."""

import json
import math

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors


WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"the is a of no there lesion nevus melanoma effusion pleural left".split(),
)
CONFIG = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
MODULES = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])
]
MODES = ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens")


def tensors(seed=0):
    """Weights under their published names, none near the identity."""
    rng = np.random.default_rng(seed)
    size, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], size),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], size),
        "embeddings.token_type_embeddings.weight": (2, size),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        maps = {f"attention.self.{part}": (size, size) for part in ("query", "key", "value")}
        maps |= {"attention.output.dense": (size, size), "intermediate.dense": (inner, size)}
        for name, shape in {**maps, "output.dense": (size, inner)}.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    found = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
    for name in norms:
        found |= {f"{name}.weight": rng.normal(1, 0.3, size), f"{name}.bias": rng.normal(0, 0.3, size)}
    return {name: array.astype(np.float32) for name, array in found.items()}


def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    words.enable_truncation(7)  # published files hold such limits, of which none counts
    words.enable_padding(length=7)
    return words


def write(folder, *, seed=0, mode="pooling_mode_mean_tokens", max_tokens=40):
    """The folder of an encoder, laid out as sentence-transformers does."""
    (folder / "1_Pooling").mkdir(parents=True)
    save_file({**tensors(seed), "embeddings.position_ids": np.arange(80)[None]}, folder / "model.safetensors")
    tokenizer().save(str(folder / "tokenizer.json"))
    for name, content in {
        "config.json": CONFIG,
        "modules.json": MODULES,
        "1_Pooling/config.json": {name: name == mode for name in MODES},
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def ids_of(text, max_tokens=40):
    """Token ids of a text in lower case."""
    found = [WORDS.index(word) if word in WORDS else 1 for word in text.split()]
    return [2, *found[: max_tokens - 2], 3]


def embedding(ids, weights):
    """The embedding of one text by mean, in NumPy and float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    heads, size = CONFIG["num_attention_heads"], CONFIG["hidden_size"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + CONFIG["layer_norm_eps"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
        out = np.zeros_like(x)
        for head in range(heads):
            own = slice(head * size // heads, (head + 1) * size // heads)
            scores = q[:, own] @ k[:, own].T / math.sqrt(size / heads)
            weights_ = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, own] = weights_ / weights_.sum(-1, keepdims=True) @ v[:, own]
        x = norm(x + linear(out, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        y = linear(x, f"{layer}.intermediate.dense")
        y = np.array([[a * (1 + math.erf(a / math.sqrt(2))) / 2 for a in row] for row in y])
        x = norm(x + linear(y, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)
