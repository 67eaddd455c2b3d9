"""Worker of ``step.py``: a step of TRL's GRPOTrainer, for an interpreter with torch and trl.

What costs TRL time and does nothing here is off: mixed precision on the CPU, logging, saving, and the reference model
(beta is 0); gradient checkpointing is on where the task says so. Its generation is that of transformers.
"""

import os
import tempfile
from typing import Any

import numpy as np
import torch
import worker
from datasets import Dataset
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    TrainerCallback,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl import GRPOConfig, GRPOTrainer


class Processor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without videos, whose part needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class OnRequest(TrainerCallback):
    """Holds the trainer at the beginning of a step until the step is asked for, and answers when it reaches the next.

    The data loader, the optimizer and all that the trainer does between two steps count.
    """

    def __init__(self, say: Any, device: str):
        self.say, self.device, self.watch, self.made = say, device, None, {}
        self.requests = worker.requests()

    def on_step_begin(self, args, state, control, **_):
        self.answer()
        if next(self.requests, self) is self:
            os._exit(0)
        self.watch = worker.Stopwatch().__enter__()

    def on_train_end(self, args, state, control, **_):
        self.answer()

    def answer(self) -> None:
        if self.watch is None:
            return
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.watch.__exit__()
        memory = torch.cuda.max_memory_allocated() if self.device == "cuda" else None
        self.say(**self.watch.spent, **self.made, memory=memory)


def main() -> None:
    """Answers one line for every step."""
    spec, say = worker.start()
    if spec["device"] == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, seen = spec["folder"], spec["images"] is not None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor: Any = tokenizer
    if seen:
        processor = Processor(Qwen2VLImageProcessorPil.from_pretrained(folder), tokenizer, tokenizer.chat_template)
    loader = AutoModelForImageTextToText if seen else AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=getattr(torch, spec["dtype"])).to(spec["device"])
    callback = OnRequest(say, spec["device"])

    def reward(completions, completion_ids, **_):
        scores = [worker.reward(talk[0]["content"]) for talk in completions]
        callback.made = {"tokens": sum(map(len, completion_ids)), "reward": float(np.mean(scores))}
        return scores

    rows: list[dict] = [{"prompt": [{"role": "user", "content": text}]} for text in spec["questions"]]
    if seen:
        pictures = [Image.fromarray(image) for image in np.load(spec["images"])]
        rows = [row | {"image": picture} for row, picture in zip(rows, pictures, strict=True)]
    greet(say, spec, model, processor, rows)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments(spec, scratch),
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
            callbacks=[callback],
        )
        trainer.train()


def arguments(spec: dict, scratch: str) -> GRPOConfig:
    """TRL's defaults, but for what is named above and the sizes."""
    return GRPOConfig(
        output_dir=scratch,
        per_device_train_batch_size=len(spec["questions"]) * spec["rollouts"],
        num_generations=spec["rollouts"],
        max_completion_length=spec["tokens"],
        generation_kwargs={"min_new_tokens": spec["tokens"], "suppress_tokens": spec["banned"] or None},
        max_steps=10**6,
        shuffle_dataset=False,
        learning_rate=1e-6,
        use_cpu=spec["device"] == "cpu",
        bf16=False,
        gradient_checkpointing=spec["remat"],
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


@torch.no_grad()
def greet(say: Any, spec: dict, model: Any, processor: Any, rows: list[dict]) -> None:
    """Says the prompts' tokens, and the logits after the first prompt."""
    seen = spec["images"] is not None
    parts = [[{"type": "image"}] * seen + [{"type": "text", "text": row["prompt"][0]["content"]}] for row in rows]
    texts = [
        processor.apply_chat_template([{"role": "user", "content": part}], tokenize=False, add_generation_prompt=True)
        for part in parts
    ]
    both = [
        processor(text=[text], **({"images": [row["image"]]} if seen else {}), return_tensors="pt").to(spec["device"])
        for text, row in zip(texts, rows, strict=True)
    ]
    logits = model(**both[0]).logits[0, -1, :32].float().tolist()
    parameters = sum(part.numel() for part in model.parameters())
    say(prompts=[one["input_ids"][0].tolist() for one in both], logits=logits, parameters=parameters)


if __name__ == "__main__":
    main()
