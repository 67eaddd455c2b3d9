"""The judge against a server that others wrote: `transformers serve` with a tiny chat model, on loopback."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from fairgrpo_jax.config.judge import Judge as Options
from fairgrpo_jax.models.tiny import tokenizer as tiny
from fairgrpo_jax.rewards import judge_prompts as prompts
from fairgrpo_jax.rewards.judge import Judge


torch = pytest.importorskip("torch")
for name in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(name)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SERVE = "from transformers.cli.transformers import main; main()"


def build(folder: Path) -> None:
    """A chat model that says Yes to everything: its layers add nothing, so that each token leads to one other."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    shutil.copytree(tiny.FOLDER, folder)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.add_tokens([AddedToken(word, special=False, normalized=False) for word in ("Yes", "No", *"ABCDE")])
    words.save(str(folder / "tokenizer.json"))
    sizes: dict[str, Any] = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    config = Qwen2Config(
        **sizes, num_key_value_heads=1, vocab_size=words.get_vocab_size(), max_position_embeddings=4096
    )
    config.eos_token_id, config.pad_token_id, config.tie_word_embeddings = words.token_to_id("<|im_end|>"), 0, False
    model: Any = Qwen2ForCausalLM(config)
    chat = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "?"}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.normal_()
        given, out = model.model.embed_tokens.weight, model.lm_head.weight.normal_(std=0.01)
        out[words.token_to_id("Yes")] = given[chat[-1]] / 8
        out[words.token_to_id("<|im_end|>")] = given[words.token_to_id("Yes")]
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The options of a judge whose server runs."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    build(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    log = folder.with_name("log").open("w")
    command += ["--device", "cpu", "--dtype", "float32"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=offline)
    try:
        end = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, Path(log.name).read_text()
                time.sleep(0.5)
        yield Options(url=f"http://127.0.0.1:{port}/v1", model=str(folder), max_tokens=4, attempts=2)
    finally:
        process.terminate()
        process.wait()
        log.close()


def changed(options, **changes):
    return Options(**{**vars(options), **changes})


def test_a_chat_is_answered_and_metered(served):
    with Judge(served) as judge:
        judge.check()
        scores = judge.submit([prompts.coherent(f"The lungs are clear, {i}.", "What is seen?") for i in range(8)])
        assert scores.result(timeout=100)[:, 0].tolist() == [1.0] * 8
        counts = judge.counts()
    assert counts["calls"] == 9 and counts["unmetered"] == 0 and counts["tokens_in"] > 100 and counts["tokens_out"] > 9


def test_what_is_not_five_lines_is_nan(served):
    with Judge(served) as judge:
        assert np.isnan(judge.submit([prompts.clinical("a", "b")]).result(timeout=100)).all()
        assert judge.counts()["failed/malformed"] == 1 and judge.counts()["calls"] == 2


def test_typed_questions_have_the_probabilities_of_the_pipeline(served):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.pipelines.decision import DecisionPipeline

    questions = [
        prompts.coherent("Clear lungs.", "What is seen?", ["Normal", "Nodule"], mode="typed"),
        prompts.coherent("So it is, </s>$x.", "Why?", mode="typed"),
    ]
    compared = prompts.clinical("The duct is clipped.", "The duct is cut.", mode="typed")
    with Judge(changed(served, mode="typed")) as judge:
        judge.check()
        scores = judge.submit(questions).result(timeout=100)
        levels = judge.submit([compared]).result(timeout=100)
    model, words = (kind.from_pretrained(served.model) for kind in (AutoModelForCausalLM, AutoTokenizer))
    decide = DecisionPipeline(model=model, tokenizer=words)
    for question, row in zip([*questions, compared], [*scores, *levels], strict=True):
        expected = decide({"state": question.text, "questions": dict(question.typed)})
        np.testing.assert_allclose(row, question.read(expected), rtol=1e-5)


def test_another_model_is_refused_by_name(served):
    with (
        Judge(changed(served, model="absent")) as judge,
        pytest.raises(ValueError, match="one of its models: .*/model"),
    ):
        judge.check()
