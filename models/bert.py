"""BERT without its pooling head: tokens in, one hidden state a token out. The body of sentence encoders."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fairgrpo_jax.models import hub
from fairgrpo_jax.models.attention import Masks, attend
from fairgrpo_jax.models.layers import ACTIVATIONS, MLP, LayerNorm, Linear, bind, layer_norm, stack
from fairgrpo_jax.models.tree import flatten, unflatten


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The static configuration; hashable."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    num_types: int = 2
    activation: str = "gelu"
    eps: float = 1e-12
    initializer_range: float = 0.02

    gated = False  # the MLP has no gate
    lora_scale = 1.0

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(f"got hidden_size={self.hidden_size}; wanted a multiple of num_heads={self.num_heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"got activation={self.activation!r}; wanted one of {sorted(ACTIVATIONS)}")

    @classmethod
    def from_hugging_face(cls, config: Any) -> "Config":
        """Converts the config of a checkpoint.

        Args:
            config: the dict of a ``config.json``, or a transformers config, of a BERT.

        Raises:
            ValueError: if the checkpoint uses options that this model does not implement.
        """
        wanted = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
        given = config if isinstance(config, Mapping) else config.to_dict()
        hub.require("bert", {name: given.get(name, value) for name, value in wanted.items()}, wanted)
        config = hub.read(config, "bert")
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            max_positions=config.max_position_embeddings,
            num_types=config.type_vocab_size,
            activation=config.hidden_act,
            eps=config.layer_norm_eps,
            initializer_range=config.initializer_range,
        )


class Layer(nnx.Module):
    """``y = norm(x + attention(x))``, then ``norm(y + mlp(y))``; every token sees all that are valid."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.q, self.k, self.v, self.o = (Linear(size, size, config, bias=True, rngs=rngs) for _ in range(4))
        self.attention_norm = LayerNorm(size, config.eps)
        self.mlp = MLP(config, bias=True, rngs=rngs)
        self.mlp_norm = LayerNorm(size, config.eps)
        self.num_heads = config.num_heads

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        heads = lambda part: part(x).reshape(x.shape[0], 1, x.shape[1], self.num_heads, -1)
        seen = jnp.broadcast_to(valid[:, None, :], (*x.shape[:2], x.shape[1]))
        out = attend(heads(self.q), None, (heads(self.k), heads(self.v)), Masks(own=seen))
        x = self.attention_norm(x + self.o(out[:, 0]))
        return self.mlp_norm(x + self.mlp(x))


def init(config: Config, key: jax.Array) -> dict:
    """Initial parameters: N(0, ``initializer_range``²) weights, norms as the identity, biases 0."""
    keys = jax.random.split(key, 4)
    sizes = {"embedding": config.vocab_size, "position": config.max_positions, "type": config.num_types}
    tables = {
        name: config.initializer_range * jax.random.normal(own, (rows, config.hidden_size))
        for own, (name, rows) in zip(keys, sizes.items(), strict=False)
    }
    norm = {"weight": jnp.ones(config.hidden_size), "bias": jnp.zeros(config.hidden_size)}
    return {**tables, "norm": norm, "layers": stack(Layer, config, keys[3], config.num_layers)}


def encode(params: dict, config: Config, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    """Hidden states of the last layer; to be called under ``jax.jit``.

    Args:
        params: parameters as :func:`init` makes them.
        config: the model.
        tokens: (N, T) int32, padded on the right, T at most ``max_positions``.
        valid: (N, T) bool, false at padding.

    Returns:
        (N, T, d), meaningless at padding.
    """
    table = params["position"][: tokens.shape[1]] + params["type"][:1]
    x = params["embedding"][tokens] + table[None]
    x = layer_norm(x, params["norm"]["weight"], params["norm"]["bias"], config.eps)
    return jax.lax.scan(lambda x, weights: (bind(Layer, config, weights)(x, valid), None), x, params["layers"])[0]


# Our path -> the published name; "*" is the layer.
_NAMES = {
    "embedding": "embeddings.word_embeddings.weight",
    "position": "embeddings.position_embeddings.weight",
    "type": "embeddings.token_type_embeddings.weight",
    "norm": "embeddings.LayerNorm",
    **{
        f"layers.{ours}": f"encoder.layer.*.attention.self.{theirs}"
        for ours, theirs in {"q": "query", "k": "key", "v": "value"}.items()
    },
    "layers.o": "encoder.layer.*.attention.output.dense",
    "layers.attention_norm": "encoder.layer.*.attention.output.LayerNorm",
    "layers.mlp.up": "encoder.layer.*.intermediate.dense",
    "layers.mlp.down": "encoder.layer.*.output.dense",
    "layers.mlp_norm": "encoder.layer.*.output.LayerNorm",
}
UNUSED = ("pooler.", "cls.", "embeddings.position_ids")  # heads of the pre-training, and a list of numbers


def from_hugging_face(tensors: Mapping[str, np.ndarray], config: Config) -> dict:
    """Converts the tensors of a checkpoint to our parameter tree, in float32.

    Args:
        tensors: name to array, as published, with or without ``bert.`` in front. Heads of the pre-training are left
            out.
        config: the model.

    Raises:
        ValueError: naming every missing, unexpected and misshapen tensor.
    """
    found = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    found = {name: tensor for name, tensor in found.items() if not name.startswith(UNUSED)}
    leaves = flatten(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    slots = {path: _published(path, leaf.shape) for path, leaf in leaves.items()}
    wanted = {name: shape for names, shape in slots.values() for name in names}
    faults = [f"missing {name} {shape}" for name, shape in wanted.items() if name not in found]
    faults += [f"unexpected {name} {found[name].shape}" for name in found if name not in wanted]
    faults += [
        f"{name} is {found[name].shape}, wanted {shape}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    if faults:
        raise ValueError(
            f"the tensors do not fit the config; is it that of the same checkpoint? {len(faults)} faults:\n  "
            + "\n  ".join(sorted(faults))
        )

    def leaf(path: str) -> np.ndarray:
        arrays = [np.asarray(found[name], np.float32) for name in slots[path][0]]
        arrays = [array.T for array in arrays] if path.endswith(".kernel") else arrays
        return np.stack(arrays) if path.startswith("layers.") else arrays[0]

    return unflatten({path: leaf(path) for path in leaves})


def _published(path: str, shape: tuple[int, ...]) -> tuple[list[str], tuple[int, ...]]:
    """The published names of a leaf, one a layer, and the shape of each."""
    module, _, last = path.rpartition(".")
    name = _NAMES.get(path) or f"{_NAMES[module]}.{'bias' if last == 'bias' else 'weight'}"
    if "*" not in name:
        return [name], shape
    one = shape[:0:-1] if last == "kernel" else shape[1:]
    return [name.replace("*", str(layer)) for layer in range(shape[0])], one


def tiny(**changes: Any) -> Config:
    """A model of two layers.

    Args:
        **changes: fields of :class:`Config` to replace.
    """
    sizes: dict[str, Any] = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4)
    return Config(**{**sizes, "max_positions": 40, "initializer_range": 0.2, **changes})
