"""A judge without a server against transformers, which reads the same folder with its own model and tokenizer."""

import numpy as np
import pytest

from fairgrpo_jax.config.judge import Judge as Options
from fairgrpo_jax.models import next_words
from fairgrpo_jax.models.tiny import judge as tiny_judge
from fairgrpo_jax.rewards import judge_prompts
from fairgrpo_jax.rewards.local_judge import ANSWER, LocalJudge


torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "llama"])
def test_scores_equal_those_of_transformers(tmp_path, monkeypatch, family, template):
    import transformers

    monkeypatch.setattr(next_words, "TOGETHER", 2048)
    folder = tiny_judge.write(tmp_path / family, family, template=template)
    thoughts = [f"{'The lung is clear. ' * n}It is a ring, digit {n}." for n in (0, 2, 5, 9)]
    questions = [judge_prompts.coherent(thought, "Which digit is this?", "0123456789") for thought in thoughts]
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    wanted = []
    for question in questions:
        if template:
            talk = [{"role": "user", "content": question.text}]
            ids = tokens.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        else:
            ids = tokens(question.text + ANSWER, return_tensors="pt")
        with torch.no_grad():
            shares = model(**ids).logits[0, -1].double().softmax(-1).numpy()
        yes, no, yes_too, no_too = shares[tokens.convert_tokens_to_ids([*tiny_judge.WORDS])]
        wanted.append((yes + yes_too) / (yes + yes_too + no + no_too))
    with LocalJudge(Options(path=folder, dtype="float32", mode="typed")) as judge:
        np.testing.assert_allclose(judge.submit(questions).result()[:, 0], wanted, atol=5e-5)
