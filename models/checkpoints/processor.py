"""Reads the processor and the special tokens of a checkpoint folder."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fairgrpo_jax.models import pixels, processing
from fairgrpo_jax.models.tiny.tokenizer import quiet_transformers


# Settings that the processors compute; a missing or null entry of preprocessor_config.json means the same.
COMPUTED = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "do_pan_and_scan": False,
    "do_center_crop": False,
    "do_pad": False,
    "cap_pixels_per_frame": False,
    "rescale_factor": 1 / 255,
}
# Defaults of transformers' classes for missing entries.
GEOMETRY = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
QWEN_IMAGES = {
    **{"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2},
    **{"image_mean": list(pixels.CLIP_MEAN), "image_std": list(pixels.CLIP_STD)},
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
}
QWEN_VIDEOS = {**QWEN_IMAGES, "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}}
QWEN3_VIDEOS = {
    **QWEN_IMAGES,
    **{"patch_size": 16, "image_mean": list(pixels.HALF), "image_std": list(pixels.HALF)},
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
}
GEMMA_IMAGES = {"image_mean": list(pixels.HALF), "image_std": list(pixels.HALF)}
QWEN = {
    "qwen2_vl": processing.Qwen2Processor,
    "qwen2_5_vl": processing.Processor,
    "qwen3_vl": processing.Qwen3Processor,
}
TEXT = ("qwen2", "qwen3", "mistral", "llama")
VISION_TOKENS = (
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
)


def processor(
    checkpoint_dir: str | pathlib.Path,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    video_min_pixels: int | None = None,
    video_max_pixels: int | None = None,
) -> processing.TextProcessor:
    """Builds the processor of a checkpoint folder from its tokenizer, chat template and image settings; offline.

    As in transformers, image settings come from ``processor_config.json`` if it has them, otherwise from
    ``preprocessor_config.json``; video settings from the first, from ``video_preprocessor_config.json``, or from the
    image settings; the chat template from ``chat_template.json``, ``chat_template.jinja`` or ``tokenizer_config.json``.

    Args:
        checkpoint_dir: folder as Hugging Face publishes it.
        min_pixels: least area of an image (for Qwen2-VL and Qwen2.5-VL also of a frame), instead of the checkpoint's.
        max_pixels: largest area, as above.
        video_min_pixels: least area of a frame; for Qwen3-VL least frames x height x width.
        video_max_pixels: largest, as above.

    Returns:
        ``processing.Processor`` or the class of its family; call it with messages, images and videos.

    Raises:
        ValueError: if the folder has no config, tokenizer or image settings, is of an unknown family, or has
            unsupported settings; or if a budget is given for a family whose images have one size.
    """
    folder = pathlib.Path(checkpoint_dir)
    config = read_json(folder / "config.json")
    family = config.get("model_type")
    given = dict(
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        video_min_pixels=video_min_pixels,
        video_max_pixels=video_max_pixels,
    )
    given = {name: value for name, value in given.items() if value is not None}
    if family not in QWEN and family != "gemma3" and family not in TEXT:
        raise ValueError(
            f"{folder / 'config.json'}: got model_type {family!r}; wanted one of {[*QWEN, 'gemma3', *TEXT]}"
        )
    if given and family not in QWEN:
        raise ValueError(f"got {given}, but {family} has no images of varying size: leave the pixel budget out")
    if family in ("qwen2_vl", "qwen2_5_vl"):  # frames have the bounds of images
        given = {f"video_{name}": value for name, value in given.items() if "video" not in name} | given
    known = dict(tokenizer=tokenizer(folder), chat_template=_template(folder))
    if family in QWEN:
        return QWEN[family](**known, **_qwen_settings(folder, family) | given)
    if family == "gemma3":
        return processing.Gemma3Processor(**known, **_gemma_settings(folder, config))
    return processing.TextProcessor(**known)


def with_budget(folder: pathlib.Path, processor: Any) -> dict[str, dict]:
    """The settings files of a folder, by name, with the pixel budget of a processor; none where it is the folder's.

    So that whoever serves a model shows it images at the size at which it was trained.

    Args:
        folder: the checkpoint folder.
        processor: a processor that was made from it, perhaps with another budget.
    """
    family = read_json(folder / "config.json").get("model_type")
    if family not in QWEN or not isinstance(processor, processing.Processor):
        return {}
    names = [f"{kind}{bound}_pixels" for kind in ("", "video_") for bound in ("min", "max")]
    wanted, now = {name: getattr(processor, name) for name in names}, _qwen_settings(folder, family)
    wanted = {name: now[name] if value is None else value for name, value in wanted.items()}
    if all(now[name] == value for name, value in wanted.items()):
        return {}
    images, videos = [*wanted.values()][:2], [*wanted.values()][2:]
    combined, own = folder / "processor_config.json", folder / "video_preprocessor_config.json"
    both = read_json(combined) if combined.is_file() else {}
    found = {}
    if both.get("image_processor") is not None:
        both |= {"image_processor": _bounded(both["image_processor"], *images)}
        found[combined.name] = both
    else:
        found["preprocessor_config.json"] = _bounded(read_json(folder / "preprocessor_config.json"), *images)
    if both.get("video_processor") is not None:
        found[combined.name] = both | {"video_processor": _bounded(both["video_processor"], *videos)}
    elif own.is_file():
        found[own.name] = _bounded(read_json(own), *videos)
    elif videos != images:  # they were those of the images, or a class's defaults
        plain = read_json(folder / "preprocessor_config.json")
        found[own.name] = _bounded({name: plain[name] for name in plain if "processor" not in name}, *videos)
    return found


def _bounded(settings: Mapping[str, Any], least: int, most: int) -> dict[str, Any]:
    """Image settings with another budget, under each name that they use for it."""
    legacy = {"min_pixels": least, "max_pixels": most}
    held = {name: value for name, value in legacy.items() if settings.get(name) is not None}
    return {**settings, "size": {"shortest_edge": least, "longest_edge": most}, **held}


def tokenizer(folder: pathlib.Path) -> Any:
    """The folder's tokenizer, from its own files.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    quiet_transformers()
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise ValueError(f"{folder} has no tokenizer.json; copy the tokenizer files of the published checkpoint there")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries below raise bare Exceptions for broken files
        raise ValueError(f"the tokenizer of {folder} cannot be read: {error}") from error


def eos_ids(folder: pathlib.Path, tokenizer: Any = None) -> tuple[int, ...]:
    """The tokens that end an answer, from ``generation_config.json``, ``config.json`` and the tokenizer, each once."""
    config = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    found = []
    for ids in (
        read_json(generation).get("eos_token_id") if generation.is_file() else None,
        config.get("eos_token_id"),
        (config.get("text_config") or {}).get("eos_token_id"),
        getattr(tokenizer, "eos_token_id", None),
    ):
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return tuple(dict.fromkeys(found))


def vision_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids of all tokens that open, close or represent an image or video; they are never sampled."""
    vocabulary = tokenizer.get_vocab()
    named = [getattr(tokenizer, name, None) for name in ("boi_token", "eoi_token", "image_token", "video_token")]
    return tuple(sorted({vocabulary[token] for token in (*VISION_TOKENS, *named) if token in vocabulary}))


def with_token_ids(config: Any, folder: pathlib.Path, tokenizer: Any = None) -> Any:
    """Adds the folder's end tokens to a config, and bans vision tokens and ids that the tokenizer does not have.

    Args:
        config: the family's config.
        folder: the checkpoint folder.
        tokenizer: its tokenizer, if it has one.

    Raises:
        ValueError: if an end token is outside the vocabulary.
    """
    ends = tuple(dict.fromkeys((*eos_ids(folder, tokenizer), *config.eos_ids)))
    if max(ends, default=0) >= config.vocab_size:
        raise ValueError(f"{folder}: got end tokens {ends}; wanted ids below vocab_size={config.vocab_size}")
    known = vision_ids(tokenizer) if tokenizer is not None else ()
    banned = sorted({*config.banned_ids, *(id for id in known if id < config.vocab_size)})
    size = config.vocab_size if tokenizer is None else max(tokenizer.get_vocab().values()) + 1
    known_size = size if size < config.vocab_size else None
    return dataclasses.replace(config, eos_ids=ends, banned_ids=tuple(banned), num_tokens=known_size)


def read_json(path: pathlib.Path) -> dict:
    """Reads a JSON object.

    Raises:
        ValueError: if the file does not exist or does not hold a JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; wanted a checkpoint folder as Hugging Face publishes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; wanted an object")
    return content


def _template(folder: pathlib.Path) -> str | None:
    path = folder / "chat_template.json"
    return read_json(path)["chat_template"] if path.is_file() else None


def _settings(folder: pathlib.Path, kind: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The folder's settings for images or videos; null entries are ignored, unsupported settings are errors."""
    combined = folder / "processor_config.json"
    given = read_json(combined).get(f"{kind}_processor") if combined.is_file() else None
    if given is None:
        own = folder / "video_preprocessor_config.json"
        given = read_json(own if kind == "video" and own.is_file() else folder / "preprocessor_config.json")
    given = {name: value for name, value in given.items() if value is not None}
    _require(folder, kind, given, COMPUTED)
    return {**defaults, **given}


def _require(folder: pathlib.Path, kind: str, settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wrong = {name: settings[name] for name, value in wanted.items() if settings.get(name, value) != value}
    if wrong:
        raise ValueError(
            f"{folder}: got {kind} settings {wrong}; wanted { {name: wanted[name] for name in wrong} }, which alone is "
            "computed here"
        )


def _qwen_settings(folder: pathlib.Path, family: str) -> dict[str, Any]:
    images = _settings(folder, "image", QWEN_IMAGES)
    videos = _settings(folder, "video", QWEN3_VIDEOS if family == "qwen3_vl" else QWEN_VIDEOS)
    for kind, settings in (("image", images), ("video", videos)):
        _require(folder, kind, settings, {"resample": 3})
    _require(folder, "video", videos, {name: images[name] for name in GEOMETRY})
    least, most = _bounds(images)
    video_least, video_most = _bounds(videos)
    return dict(
        patch_size=images["patch_size"],
        merge_size=images["merge_size"],
        temporal_patch_size=images["temporal_patch_size"],
        mean=tuple(images["image_mean"]),
        std=tuple(images["image_std"]),
        min_pixels=least,
        max_pixels=most,
        video_min_pixels=video_least,
        video_max_pixels=video_most,
    )


def _bounds(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Least and largest area: ``min_pixels`` and ``max_pixels``, otherwise ``size``, which has two spellings."""
    size = settings["size"]
    least = settings.get("min_pixels", size.get("shortest_edge", size.get("min_pixels")))
    most = settings.get("max_pixels", size.get("longest_edge", size.get("max_pixels")))
    if least is None or most is None:
        raise ValueError(f"got size={size}; wanted shortest_edge and longest_edge, or min_pixels and max_pixels")
    return least, most


def _gemma_settings(folder: pathlib.Path, config: Mapping[str, Any]) -> dict[str, Any]:
    images = _settings(folder, "image", GEMMA_IMAGES)
    side = (config.get("vision_config") or {}).get("image_size", 896)
    tokens = config.get("mm_tokens_per_image", 256)
    _require(
        folder, "image", images, {"resample": 2, "size": {"height": side, "width": side}, "image_seq_length": tokens}
    )
    combined = folder / "processor_config.json"
    _require(folder, "image", read_json(combined) if combined.is_file() else {}, {"image_seq_length": tokens})
    return dict(
        image_size=side, tokens_per_image=tokens, mean=tuple(images["image_mean"]), std=tuple(images["image_std"])
    )
