"""Reward functions as users write them, in the signatures of TRL and verl; imported by their names."""


def trl(prompts, completions, answer, **columns):
    assert len(prompts) == len(completions) == len(columns["race"]) == len(columns["completion_lengths"])
    return [None if not text else float(wanted in text) for text, wanted in zip(completions, answer, strict=True)]


async def trl_async(completions, solution):
    return [float(text == wanted) for text, wanted in zip(completions, solution, strict=True)]


def chat(prompts, completions, **_):
    assert prompts[0][0]["role"] == "user"
    return [float(len(turns[0]["content"])) for turns in completions]


class Callable:
    async def __call__(self, completions, **_):
        return [1.0] * len(completions)


def verl(data_source, solution_str, ground_truth, extra_info=None):
    assert extra_info is not None
    return {"score": float(ground_truth in solution_str), "acc": extra_info["race"] == "b" and data_source == "a"}


def verl_float(data_source, solution_str, ground_truth, extra_info):
    return True


def verl_without_score(data_source, solution_str, ground_truth, extra_info):
    return {"acc": 1.0}


def too_few(completions, **_):
    return [1.0]


def words(completions, **_):
    return ["good"] * len(completions)


def endless(completions, **_):
    return [float("inf")] * len(completions)


def beyond(completions, **_):
    return [1e39] * len(completions)  # of float32


def raises_for_b(completions, dataset, **_):
    if "b" in dataset:
        raise KeyError("no such thing")
    return [0.0] * len(completions)


def raises_for_many(completions, **_):
    if len(completions) > 1:
        raise RuntimeError("too many")
    return [0.0]


def neither(text):
    return 0.0


def share_of_a(completions, **_):
    """What is common in the words of an untrained model, so that it differs between completions."""
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def whole(completions, **_):
    return [float(len(text) > 4) for text in completions]
