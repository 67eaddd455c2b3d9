"""Reads the prompts of chat datasets: text with tags, the messages of TRL, OpenAI and ms-swift, LLaVA's conversations.

A message is ``{"role": ..., "content": ...}`` or ``{"from": ..., "value": ...}``; its content is text, where
``<image>`` and ``<video>`` stand for media, or a list of parts: ``{"type": "text", "text": ...}``, ``{"type":
"image"}``, and with the medium itself ``{"type": "image", "image": ...}`` or ``{"type": "image_url", "image_url":
{"url": ...}}``, videos alike. Texts are kept to the letter; nothing moves.
"""

import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fairgrpo_jax.data import embedded as inside
from fairgrpo_jax.data.record import Media, Turn


class Place(NamedTuple):
    """Where a medium stands.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        given: the medium as the part has it; None takes the next of the row.
        fps: frames per second that the part tells.
    """

    kind: str
    given: Any = None
    fps: Any = None


class Message(NamedTuple):
    """A turn as it was read."""

    role: Literal["system", "user", "assistant"]
    content: list[str | Place]


_TAGS = re.compile("<(image|video)>")
_ROLES: dict[Any, Literal["system", "user", "assistant"]] = {
    **{"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"},
}
_WEB = re.compile(r"(?!file:)[a-zA-Z][a-zA-Z0-9+.-]+://")


def read(prompt: Any) -> list[Message]:
    """Reads a prompt: text, parts, or messages; also a JSON text of these, as tables hold them.

    Raises:
        ValueError: if it is none of these, has an unknown role, part or key, media outside the user's turns, or a
            system turn that is not the first.

    Example:
        >>> from fairgrpo_jax.data import messages
        >>> messages.read("Before: <image> After: <image>")[0].content
        ['Before: ', Place(kind='image', given=None, fps=None), ' After: ', Place(kind='image', given=None, fps=None)]
        >>> messages.read([{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "No"}])[1]
        Message(role='assistant', content=['No'])
    """
    if isinstance(prompt, str):
        prompt = _parsed(prompt.strip())
    if isinstance(prompt, str):
        return [Message("user", _content(prompt))]
    if not isinstance(prompt, list) or not prompt or not all(isinstance(one, dict) for one in prompt):
        raise ValueError(f"prompt is {reprlib.repr(prompt)}; wanted text or a list of messages")
    if all("type" in one and not {"role", "from"} & one.keys() for one in prompt):
        return [Message("user", _content(prompt))]
    talk = [_message(message) for message in prompt]
    for number, (role, content) in enumerate(talk):
        if role == "system" and number:
            raise ValueError("prompt has a system message behind others; put it first")
        for part in content:
            if isinstance(part, Place):
                if role != "user":
                    raise ValueError(f"prompt has an <{part.kind}> in a message of the {role}; wanted it in the user's")
    return talk


def split_answer(talk: Sequence[Message], answer: str) -> tuple[list[Message], str]:
    """Takes what the assistant says last as the answer.

    Args:
        talk: the messages.
        answer: of the row; empty if it has none.

    Returns:
        The messages up to the user's last one, and the answer.

    Raises:
        ValueError: if the row has another answer, or the user has not the last word.

    Example:
        >>> from fairgrpo_jax.data import messages
        >>> messages.split_answer([messages.Message("user", ["?"]), messages.Message("assistant", ["No"])], "")
        ([Message(role='user', content=['?'])], 'No')
    """
    asked = list(talk)
    if asked[-1].role == "assistant":
        said = "".join(str(part) for part in asked.pop().content).strip()
        if answer and said != answer:
            raise ValueError(
                f"the last message is the assistant's, {reprlib.repr(said)}, and answer is {reprlib.repr(answer)}; "
                "leave one of them out"
            )
        answer = said
    if not asked:
        raise ValueError("prompt has no text")
    if asked[-1].role != "user":
        raise ValueError(f"the last message but the answer is the {asked[-1].role}'s; wanted the user's")
    return asked, answer


def placed(
    talk: Sequence[Message], own: Sequence[Media], make: Callable[[Place], Media]
) -> tuple[tuple[Turn, ...], tuple[Media, ...]]:
    """Puts media in their places: those of a kind in the order of the row.

    Args:
        talk: the messages; without a place in them, the row's media stand before the text of the user.
        own: the row's media.
        make: makes a medium that a part has itself.

    Returns:
        The turns, and all media in the order of the conversation.

    Raises:
        ValueError: if the row has more or fewer media than the places without one, or several turns of the user and
            places in none of them.
    """
    talk = [Message(role, list(content)) for role, content in talk]
    places = [part for _, content in talk for part in content if isinstance(part, Place)]
    asked = [content for role, content in talk if role == "user"]
    if own and not places:
        if len(asked) > 1:
            raise ValueError(
                f"the row has {len(own)} media and the prompt {len(asked)} messages of the user without a tag; wanted "
                "<image> or <video> where each stands"
            )
        asked[0][:0] = places = [Place(medium.kind) for medium in own]
    left = [place.kind for place in places if place.given is None]
    if sorted(left) != sorted(medium.kind for medium in own):
        inside = f" beside {len(places) - len(left)} in it" if len(left) < len(places) else ""
        raise ValueError(
            f"the prompt has {len(left)} tags of media, the row {len(own)} media{inside}; wanted one <image> or "
            "<video> for each, where it stands"
        )
    queues = {kind: iter([medium for medium in own if medium.kind == kind]) for kind in ("image", "video")}
    media = tuple(next(queues[place.kind]) if place.given is None else make(place) for place in places)
    turns = [Turn(role, tuple(None if isinstance(part, Place) else part for part in content)) for role, content in talk]
    return tuple(turns), media


def simple(prompt: str, media: Sequence[Media]) -> tuple[str, tuple[Turn, ...]] | None:
    r"""Reads a prompt that is text with all media before it, which is what most rows have.

    Args:
        prompt: the text, with a tag for each medium at its beginning, or without any.
        media: of the row.

    Returns:
        The question and its turns (none, if they go without saying), as the other functions of this module together
        have them; None for a prompt of another form.

    Example:
        >>> from pathlib import Path
        >>> from fairgrpo_jax.data import messages
        >>> from fairgrpo_jax.data.record import Media
        >>> picture = Media("image", path=Path("a.png"))
        >>> messages.simple("<image>What is seen?", [picture]), messages.simple("What is <image>?", [picture])
        (('What is seen?', ()), None)
        >>> messages.simple("<image>\nWhat is seen?", [picture])
        ('What is seen?', (Turn(role='user', content=(None, '\nWhat is seen?')),))
    """
    text = prompt.strip()
    rest = text.removeprefix("".join([f"<{medium.kind}>" for medium in media]))
    question = rest.lstrip()
    if not question or text[0] == "[" or "<image>" in rest or "<video>" in rest:
        return None
    return question, () if rest == question else (Turn("user", (*(None for _ in media), rest)),)


def are_simple(prompts: Sequence[str], images: int) -> bool:
    """Whether ``simple`` reads all prompts, told from all at once; False where some may need a closer look.

    Args:
        prompts: the texts.
        images: number of media of each, all images.

    Example:
        >>> from fairgrpo_jax.data import messages
        >>> messages.are_simple(["<image>What is seen?", "Which side?"], 1), messages.are_simple(["Is <image>?"], 1)
        (True, False)
    """
    rests = [prompt.strip().removeprefix("<image>" * images) for prompt in prompts]
    joined = "\n".join(rests)
    return all(rests) and not any(part in f"\n{joined}" for part in ("<image>", "<video>", "\n["))


def plain(turns: Sequence[Turn], question: str) -> bool:
    """Whether turns are one of the user with the media first and then the question, which goes without saying.

    Example:
        >>> from fairgrpo_jax.data import messages
        >>> messages.plain([messages.Turn("user", (None, "What is seen?"))], "What is seen?")
        True
    """
    if len(turns) != 1 or turns[0].role != "user":
        return False
    count = turns[0].content.count(None)
    return turns[0].content == (*(None for _ in range(count)), question)


def embedded(value: Any) -> Any:
    """A medium as a row has it; the bytes of a ``data:`` URI are decoded.

    Raises:
        ValueError: for an address on the web, which a run does not open, and a URI that cannot be decoded.

    Example:
        >>> from fairgrpo_jax.data import messages
        >>> messages.embedded("data:text/plain;base64,YWI="), messages.embedded("a.png")
        ({'bytes': b'ab', 'path': None}, 'a.png')
    """
    if not isinstance(value, str) or ":" not in value:
        return value
    if _WEB.match(value):
        raise ValueError(f"{reprlib.repr(value)} is an address on the web; wanted a file: download it first")
    if not value.startswith("data:"):
        return value
    if (content := inside.decoded(value)) is not None:
        return {"bytes": content, "path": None}
    raise ValueError(f"{reprlib.repr(value)} is no data:...;base64, URI; wanted one, or a file")


def _parsed(text: str) -> Any:
    """Messages or parts that were written as JSON text; other text as it is."""
    if not text.startswith("["):
        return text
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return text
    like = isinstance(told, list) and told and all(isinstance(one, dict) for one in told)
    return told if like and all({"role", "from", "type"} & one.keys() for one in told) else text


def _message(message: Mapping[str, Any]) -> Message:
    told = {key: value for key, value in message.items() if value not in (None, "", [], {})}
    said = [told.pop(key) for key in ("role", "from") if key in told]
    if len(said) != 1 or not isinstance(said[0], str) or said[0] not in _ROLES:
        raise ValueError(f"prompt has the message {reprlib.repr(message)}; wanted role system, user or assistant")
    contents = [told.pop(key) for key in ("content", "value") if key in told]
    if told:
        raise ValueError(f"prompt has a message with {', '.join(map(str, told))}, which is not read; leave it out")
    content: list[str | Place] = _content(contents[0]) if len(contents) == 1 else []
    if not content:
        raise ValueError(f"prompt has the message {reprlib.repr(message)} without content; wanted some, or no message")
    if said[0] == "system" and all(isinstance(part, str) for part in content):
        return Message("system", ["".join(map(str, content))])  # some templates read its first part only
    return Message(_ROLES[said[0]], content)


def _content(content: Any) -> list[str | Place]:
    if isinstance(content, str):
        pieces = _TAGS.split(content)
        return [Place(piece) if at % 2 else piece for at, piece in enumerate(pieces) if at % 2 or piece]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ValueError(f"prompt has the content {reprlib.repr(content)}; wanted text or a list of parts")
    return [piece for part in content for piece in _part(part)]


def _part(part: Mapping[str, Any]) -> list[str | Place]:
    told = {key: value for key, value in part.items() if value is not None and value != ""}
    kind = told.pop("type", None)
    found: list[str | Place]
    if kind == "text" and isinstance(text := told.pop("text", ""), str):
        found = _content(text)
    elif kind in ("image", "video", "image_url", "video_url"):
        kind = kind.removesuffix("_url")
        given = [told.pop(key) for key in (kind, f"{kind}_url", "url", "path") if key in told]
        if len(given) > 1:
            raise ValueError(f"prompt has the part {reprlib.repr(part)}; wanted one medium in it")
        medium = given[0] if given else None
        if isinstance(medium, dict) and "url" in medium:
            medium = medium["url"]
        found = [Place(kind, medium, told.pop("fps", None))]
    else:
        raise ValueError(f"prompt has the part {reprlib.repr(part)}; wanted type text, image or video")
    if told:
        raise ValueError(f"prompt has a part with {', '.join(map(str, told))}, which is not read; leave it out")
    return found
