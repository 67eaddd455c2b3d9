"""The formulas of cost equal the parameters of the models, and what XLA counts in the unrolled programs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from fairgrpo_jax import config as options, mesh, models
from fairgrpo_jax.models import gemma3, lora, qwen2_5_vl, qwen2_vl, qwen3_vl, text
from fairgrpo_jax.models.tree import flatten
from fairgrpo_jax.plan import ahead, cost
from tests import real_sizes


FAMILIES = [
    text.tiny("qwen2"),
    text.tiny("qwen3"),
    text.tiny("mistral"),
    text.tiny("llama"),
    qwen2_vl.tiny(tie_word_embeddings=False),
    qwen2_5_vl.tiny(),
    qwen3_vl.tiny(),
    gemma3.tiny(),
]
by_family = pytest.mark.parametrize("architecture", FAMILIES, ids=lambda config: config.model_type)
# The text families differ in biases and norms, Qwen2-VL from 2.5 in windows: their matrices are compared for all below.
COMPILED = ("qwen3", "qwen2_5_vl", "qwen3_vl", "gemma3")
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
compiled = pytest.mark.parametrize(
    "architecture",
    [pytest.param(c, marks=[pytest.mark.slow] * (c.model_type not in COMPILED)) for c in FAMILIES],
    ids=lambda config: config.model_type,
)
TARGETS = r"^layers/.*/(q|v|down)$"
# Norms, activations and softmax, which XLA counts and the formulas leave out, at the widths below.
ELEMENTWISE = 0.025


def wide(architecture):
    """The structure of a tiny model at a width where matrix products are nearly all of the work."""
    vision, size = architecture.vision, 1024
    if vision is not None:
        vision = dataclasses.replace(vision, hidden_size=512, intermediate_size=768, num_heads=4, out_hidden_size=size)
    sections = (12, 10, 10) if architecture.mrope_interleaved else (16, 24, 24)
    return dataclasses.replace(
        architecture,
        hidden_size=size,
        intermediate_size=1536,
        num_heads=8,
        head_dim=64 if architecture.mrope_interleaved else 128,
        vocab_size=4096,
        vision=vision,
        mrope_section=sections if architecture.mrope_section else (),
    )


def counted(monkeypatch, architecture, program, sizes, *, model=None, update=None):
    """FLOPs that XLA counts in a program whose loops over layers are unrolled (it counts a loop's body once)."""
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    config = options.Config(
        prompts=sizes.prompts,
        rollouts=sizes.rollouts,
        data=options.Data(prompt_length=sizes.prompt, num_patches=sizes.patches),
        sampling=options.Sampling(max_new_tokens=sizes.completion),
        model=model or options.Model(),
        update=update or options.Update(),
    )
    devices = mesh.make("1x1")
    with jax.set_mesh(devices):
        analysis = ahead.programs(config, architecture, devices)[program]().cost_analysis()
    return (analysis or {})["flops"]


def sizes_of(architecture, completion):
    return cost.Sizes(
        prompts=2, rollouts=3, prompt=96, completion=completion, patches=128 if architecture.vision else 0
    )


@pytest.mark.parametrize("name", real_sizes.CONFIGS)
def test_published_models_have_as_many_parameters_as_the_hub_says(name):
    assert sum(cost.parameters(models.read_config(real_sizes.CONFIGS[name])).values()) == real_sizes.PARAMETERS[name]


@by_family
def test_parameters_and_matrices_are_those_of_the_tree(architecture):
    tree = jax.eval_shape(lambda: models.family(architecture).init(architecture, jax.random.key(0)))
    parts = cost.parameters(architecture)
    for part, count in parts.items():
        own = [tree.get(name, ()) for name in ((part, "projector") if part == "vision" else (part,))]
        assert count == sum(leaf.size for leaf in jax.tree.leaves(own)), part
    leaves = {path.replace(".", "/"): leaf for path, leaf in flatten(tree).items()}
    found = {}
    for linear in cost.linears(architecture):
        path = linear.path if linear.path == "embedding" else f"{linear.path}/kernel"
        if linear.count:
            found[path] = leaves[path].size
            assert linear.weights == leaves[path].size
            assert linear.bias == (f"{linear.path}/bias" in leaves)
    kernels = {path: leaf.size for path, leaf in leaves.items() if path.endswith("kernel")}
    assert {**found, **kernels} == found


@compiled
def test_rollout(monkeypatch, architecture):
    architecture = wide(architecture)
    sizes = sizes_of(architecture, 2)  # the loop over tokens has one step, as its body counts once
    prompt, decode = cost.rollout_flops(architecture, sizes)
    passed = prompt.total - prompt.head  # the first token is drawn by a program of its own
    assert 1 <= counted(monkeypatch, architecture, "prompt", sizes) / passed < 1 + ELEMENTWISE
    assert 1 <= counted(monkeypatch, architecture, "decode", sizes) / decode.total < 1 + ELEMENTWISE
    sizes = dataclasses.replace(sizes, completion=1)
    assert cost.rollout_flops(architecture, sizes)[1].total == 0
    assert cost.rollout_flops(architecture, sizes)[0] == prompt


@pytest.mark.parametrize("remat", [slow(False), slow("selective"), True])
@compiled
def test_update(monkeypatch, architecture, remat):
    architecture = wide(architecture)
    sizes = sizes_of(architecture, 48)
    flops = cost.update_flops(architecture, sizes, cost.Training(remat=remat))
    xla = counted(monkeypatch, architecture, "update", sizes, update=options.Update(remat=remat))
    assert 1 <= xla / flops.total < 1 + ELEMENTWISE
    once = cost.update_flops(architecture, sizes, cost.Training(remat=remat), recomputed=False)
    assert once == cost.update_flops(architecture, sizes, cost.Training(remat=not remat), recomputed=False)
    assert once.total < flops.total  # the head is recomputed in any case


@pytest.mark.parametrize(
    "rank,freeze,remat",
    [
        (0, ("^vision/", "^projector"), True),
        slow(16, (), True),
        (16, ("/down/",), "selective"),
    ],
    ids=["frozen", "lora", "both"],
)
def test_update_of_a_part(monkeypatch, rank, freeze, remat):
    architecture = wide(qwen2_5_vl.tiny())
    if not rank:
        freeze = freeze[:1]
    sizes = sizes_of(architecture, 48)
    model = options.Model(lora_rank=rank, lora_targets=TARGETS, freeze=freeze)
    training = cost.Training(lora_rank=rank, lora_targets=TARGETS, freeze=freeze, remat=remat)
    scaled = lora.scaled(architecture, 2.0)
    xla = counted(monkeypatch, scaled, "update", sizes, model=model, update=options.Update(remat=remat))
    total = cost.update_flops(scaled, sizes, training).total
    # Nothing before the first layer is trained: unrolled, newer versions of JAX leave the gradient of its input out.
    first = 2 * 2 * (96 + 3 * 47) * 1024 * (1024 + 2 * 256 + 2 * rank) if rank else 0
    assert total - first <= xla < (1 + ELEMENTWISE) * total
    whole = cost.update_flops(architecture, sizes)
    assert cost.update_flops(scaled, sizes, training).vision < 0.34 * whole.vision


def test_the_supervised_step_is_an_update_with_one_rollout(monkeypatch):
    architecture = wide(gemma3.tiny())
    sizes = dataclasses.replace(sizes_of(architecture, 48), prompts=96, rollouts=1)
    xla = counted(monkeypatch, architecture, "supervised", dataclasses.replace(sizes, prompts=64, rollouts=2))
    assert 1 <= xla / cost.update_flops(architecture, sizes).total < 1 + ELEMENTWISE


def test_six_flops_for_every_weight_and_token():
    """The usual rule, on a text model with one rollout and attention left out."""
    architecture = text.tiny("qwen3")
    sizes = cost.Sizes(prompts=5, rollouts=1, prompt=7, completion=4)
    flops = cost.update_flops(architecture, sizes, recomputed=False)
    matrices = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96)
    assert (flops.decoder, flops.head) == (6 * 5 * (7 + 3) * matrices, 6 * 5 * 4 * 64 * 512)
    assert flops.attention == 3 * 4 * 2 * 4 * 16 * 5 * (7 * 7 + 3 * (7 + 3))
    assert flops.total == flops.decoder + flops.head + flops.attention


def test_every_token_attends_to_all_places_of_its_caches():
    """Two layers of four heads of 16; a prompt of 7, and the 3 of 4 tokens that are decoded in a loop."""
    sizes = cost.Sizes(prompts=5, rollouts=2, prompt=7, completion=4)
    prompt, decode = cost.rollout_flops(text.tiny("qwen3"), sizes)
    assert prompt.attention == 4 * 2 * 4 * 16 * 5 * 7 * 7
    assert decode.attention == 4 * 2 * 4 * 16 * 5 * 2 * 3 * (7 + 3)
    assert (prompt.head, decode.head) == (2 * 5 * 2 * 64 * 512, 2 * 5 * 2 * 3 * 64 * 512)
    scored = cost.score_flops(text.tiny("qwen3"), sizes)
    assert 3 * scored.total == cost.update_flops(text.tiny("qwen3"), sizes, recomputed=False).total


def test_logits_come_in_whole_chunks():
    head = lambda length: (
        cost.update_flops(text.tiny("qwen3"), cost.Sizes(prompts=1, rollouts=1, prompt=1, completion=length)).head
    )
    assert head(129) == head(256) == 2 * head(128) and head(127) == head(128) * 127 / 128
    # 64 completions at once of Qwen's vocabulary: 13 steps fit into 512 MiB, so chunks of 8
    wide = dataclasses.replace(text.tiny("qwen3"), vocab_size=152_064)
    sizes = cost.Sizes(prompts=8, rollouts=8, prompt=1, completion=130)
    of = lambda **how: cost.update_flops(wide, sizes, **how).head
    assert of(rows=64) == of() == 8 * 64 * 136 * 64 * 152_064 and of(rows=4) == 8 * 64 * 256 * 64 * 152_064
    assert of(recomputed=False) == 6 * 64 * 130 * 64 * 152_064  # no padding
    assert cost.score_flops(wide, sizes, rows=64).head == 2 * 64 * 136 * 64 * 152_064


def test_what_a_token_reads():
    """Untied: layers and head, not the table; a prompt's keys and values once for its rollouts; here 4 times."""
    architecture = qwen2_vl.tiny(tie_word_embeddings=False)
    counts = cost.parameters(architecture)
    sizes = cost.Sizes(prompts=8, rollouts=3, prompt=10, completion=5, patches=16)
    places = 2 * (10 + 3 * 4)
    weights, kept = 2 * (counts["layers"] + 512 * 64), 2 * places * 2 * 2 * 2 * 16
    of = functools.partial(cost.decode_bytes, sizes=sizes, dtype="bfloat16", devices=4)
    assert of(architecture, cache="bfloat16") == 4 * (weights + kept)
    assert of(architecture, cache="bfloat16", waves=2) == 4 * (2 * weights + kept)
    assert of(architecture, cache="float32") == 4 * (weights + 2 * kept)
    tied = dataclasses.replace(architecture, tie_word_embeddings=True)
    assert of(tied, cache="bfloat16") == 4 * (weights + kept)


def test_caches_double_and_local_layers_keep_their_window():
    architecture = dataclasses.replace(gemma3.tiny(), window=300)
    assert cost.cache_lengths(1000) == [256] * 256 + [512] * 256 + [999] * 487 and cost.cache_lengths(1) == []
    count, every = sum(architecture.local), architecture.num_layers
    assert 0 < count < every
    of = functools.partial(cost.completion_cache_bytes, architecture, dtype="bfloat16")
    place = 2 * 2 * architecture.num_kv_heads * architecture.head_dim
    assert of(256) == 256 * every * place and of(999) == ((every - count) * 999 + count * 300) * place


def test_every_family_of_the_library_is_here():
    assert {config.model_type for config in FAMILIES} == set(models.FAMILIES)
    assert jnp.dtype("bfloat16").itemsize == cost.BYTES["bfloat16"]
