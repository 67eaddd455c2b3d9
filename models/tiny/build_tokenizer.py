r"""Builds the tiny tokenizer: byte-level BPE over the few sentences of the synthetic clinic and of COVID-BLUES.

    python -m fairgrpo_jax.models.tiny.build_tokenizer [folder]

It has Qwen's special tokens and chat format, and no data other than this file. The text inside ``\boxed{...}`` is one
word for the merges, so that every answer is one token and the length of a completion does not depend on its answer.
"""

import json
import pathlib
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers


FOLDER = pathlib.Path(__file__).parent / "tiny_tokenizer"
VOCABULARY_LIMIT = 512
SPECIAL_TOKENS = (  # ids are positions in this tuple; the config of the tiny model relies on them
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
THINK_TOKENS = ("<think>", "</think>")

QUESTIONS = (
    "What does this dermoscopy image show?",
    "What does this chest X-ray show?",
    "What does this head CT slice show?",
    "What does this lung ultrasound show?",
    "Does this patient's diabetes progress fast?",
    "Which digit is this?",
    "Does the patient have COVID?",
)
INSTRUCTION = r" First think inside <think> </think>, then give the final answer in \boxed{}."
ANSWERS = (
    *("Nevus", "Melanoma", "Basal Cell Carcinoma", "Other"),
    *("Normal", "Nodule", "Pneumonia", "Effusion"),
    *("No Hemorrhage", "Intraparenchymal", "Subdural"),
    *("A-lines", "B-lines", "Slow", "Fast", "Has COVID", "No COVID"),
    *"0123456789",
)
FINDINGS = (
    *("round", "elongated", "ring", "lobed", "clear", "focal", "diffuse", "basal"),
    *("none", "crescent", "bands", "rays", "low", "high", "loop", "open"),
)

# A word is: the opening of the box; its contents; a closing brace; letters, or other signs, with the space before them;
# one digit; any other white space.
WORD = r"\\boxed\{|(?<=\{)[^{}]+|\}| ?\p{L}+(?:'s)?| ?[^\s\p{L}\p{N}{}\\]+|\p{N}|\s+|."

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def corpus() -> list[str]:
    """The training text; text that is repeated more is merged first: answers and findings before questions."""
    completions = [f"\\boxed{{{answer}}}" for answer in ANSWERS] + list(FINDINGS)
    return 100 * [*completions, "user\n", "assistant\n"] + 10 * list(QUESTIONS) + [INSTRUCTION]


def build() -> Tokenizer:
    """Trains the tokenizer; the result is deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_LIMIT - len(THINK_TOKENS),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK_TOKENS])
    return tokenizer


def write(folder: pathlib.Path = FOLDER) -> None:
    """Writes ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``."""
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "model_max_length": 4096,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
