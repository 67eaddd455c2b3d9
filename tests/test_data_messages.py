"""Chats as TRL, OpenAI, ms-swift, LLaVA and verl write them: the same record, and the prompt of transformers."""

import base64
import io
import json
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from fairgrpo_jax import models
from fairgrpo_jax.data import media, messages
from fairgrpo_jax.data.datasets import jsonl
from fairgrpo_jax.data.record import Media, Turn, conversation, spoken
from tests import tiny_folder
from tests.test_models_folder import theirs


FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # conftest says how many
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(words):
    return {"type": "text", "text": words}


def load(folder, *rows, **more):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return jsonl.load(folder, split="train", **more)


def refused(folder, row):
    with pytest.raises(ValueError, match="train.jsonl: 1 bad rows: line 1: ") as caught:
        load(folder, row)
    return str(caught.value)


# ---- one conversation in every form ----------------------------------------------------------------------------------

PNG = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 40, 3), np.uint8)).save(PNG, "png")
DATA = f"data:image/png;base64,{base64.b64encode(PNG.getvalue()).decode()}"
PROMPT = [
    {"role": "system", "content": [text("You read X-rays.")]},
    {"role": "user", "content": [text("Before: "), IMAGE, text("\nWhat is seen?")]},
    {"role": "assistant", "content": [text("Nodule")]},
    {"role": "user", "content": [IMAGE, text(" and now, "), IMAGE, text("?")]},
]
ROW = {"prompt": PROMPT, "images": ["a.png", "b.png", "c.png"], "answer": "Effusion"}


def tagged(said, told="role", content="content", names=None):
    """The messages with tags in texts, as verl and LLaVA have them."""
    words = lambda parts: "".join(part.get("text", f"<{part['type']}>") for part in parts)
    return [{told: (names or {}).get(one["role"], one["role"]), content: words(one["content"])} for one in said]


def inline(said, files, form):
    """The messages with their media inside."""
    files, said = iter(files), json.loads(json.dumps(said))
    for part in (part for message in said for part in message["content"]):
        if part["type"] != "text":
            part.update(form(part["type"], next(files)))
    return said


NAMES = {"user": "human", "assistant": "gpt"}
LLAVA = tagged(PROMPT, "from", "value", NAMES)
LAST = {"role": "assistant", "content": "Effusion"}
FORMS = {
    "TRL": ROW,
    "with the rest of Arrow's struct": {
        **ROW,
        "prompt": [
            {**one, "content": [{"text": None, "index": None, **part} for part in one["content"]]} for one in PROMPT
        ],
    },
    "verl": {**ROW, "prompt": tagged(PROMPT)},
    "LLaVA": {**ROW, "prompt": None, "conversations": LLAVA},
    "LLaVA with its answer": {
        "conversations": [*LLAVA, {"from": "gpt", "value": "Effusion"}],
        "image": None,
        "images": ROW["images"],
    },
    "ms-swift with its answer": {"messages": [*tagged(PROMPT), LAST], "images": ROW["images"]},
    "an answer that is told twice": {**ROW, "prompt": [*PROMPT, LAST]},
    "Qwen": {"prompt": inline(PROMPT, ROW["images"], lambda kind, name: {kind: name}), "answer": "Effusion"},
    "OpenAI": {
        "messages": inline(PROMPT, ROW["images"], lambda _, name: {"type": "image_url", "image_url": {"url": name}}),
        "answer": "Effusion",
    },
    "transformers": {"messages": inline(PROMPT, ROW["images"], lambda _, name: {"url": name}), "answer": "Effusion"},
    "JSON text": {**ROW, "prompt": json.dumps(PROMPT)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_record(tmp_path, form):
    (record,) = load(tmp_path, FORMS[form])
    (wanted,) = load(tmp_path, ROW)
    assert (record.turns, record.question, record.answer) == (wanted.turns, wanted.question, wanted.answer)
    assert [medium.path for medium in record.media] == [tmp_path / name for name in ROW["images"]] and not record.extra
    assert conversation(record) == PROMPT
    assert record.question == "You read X-rays.\nBefore: \nWhat is seen?\nNodule\nand now, ?"


AS_URI = [{"role": "user", "content": [text("ä"), {"type": "image_url", "image_url": {"url": DATA}}, text("b")]}]
AS_BYTES = [
    {
        "role": "user",
        "content": [text("ä") | {"image": None}, IMAGE | {"image": {"bytes": PNG.getvalue()}, "text": None}],
    }
]
INSIDE = [
    *[{"messages": AS_URI, "answer": "x"}, {"prompt": "ä", "images": DATA, "answer": "x"}],
    *[{"prompt": "<image>ä", "images": [DATA], "answer": "x"}, {"prompt": AS_BYTES, "answer": "x"}],
]


def json_lines(path, rows):
    path.with_suffix(".jsonl").write_text("\ufeff" + "".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


def json_list(path, rows):
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1, ensure_ascii=False).replace("\n", "\r\n"), "utf-8")


def parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"), row_group_size=2)


def arrow(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path.with_suffix(".arrow")), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("row", INSIDE, ids=["URI in a message", "URI", "URIs", "bytes in a message"])
@pytest.mark.parametrize("write", [json_lines, json_list, parquet, arrow])
def test_media_inside_rows_stay_on_disk(tmp_path, write, row):
    """Of the right row, behind others with letters of several bytes; a file that was written anew is noticed."""
    if row is INSIDE[3] and write in (json_lines, json_list):
        return  # JSON has no bytes
    other = Image.new("RGB", (3, 2), "red")
    other.save(buffer := io.BytesIO(), "png")
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    first = json.loads(json.dumps(row, default=lambda _: None).replace(DATA, uri)) if row is not INSIDE[3] else row
    write(tmp_path / "train", [first, first, row, first])
    records = jsonl.load(tmp_path, split="train").records
    for record, size in zip(records, [(2, 3), (2, 3), (60, 40), (2, 3)], strict=True):
        (medium,) = record.media
        assert medium.pixels is None and medium.member is not None and record.question.startswith("ä")
        assert row is INSIDE[3] or media.decode(medium).shape[:2] == size
    np.testing.assert_array_equal(media.decode(records[2].media[0]), np.asarray(Image.open(PNG)))
    write(tmp_path / "train", [{"prompt": "a", "images": "1.png", "messages": None, "answer": "x"}])
    with pytest.raises(ValueError, match="record .*train.*(no cell|is no).*"):
        media.decode_record(records[2])


def test_media_in_the_text_of_a_cell(tmp_path, monkeypatch):
    """In the text of CSV there is no place to name; such media are held in memory, and not too many of them."""
    content = json.dumps([*AS_URI]).replace('"', '""')
    (tmp_path / "train.csv").write_text(f'messages,answer\n"{content}",x\n', encoding="utf-8")
    (record,) = jsonl.load(tmp_path, split="train")
    np.testing.assert_array_equal(record.media[0].pixels, np.asarray(Image.open(PNG)))
    monkeypatch.setattr(jsonl, "HELD", 7000)
    with pytest.raises(ValueError, match="train.csv: the pictures inside its rows up to line 2 take 7,200 bytes"):
        jsonl.load(tmp_path, split="train")


def test_what_goes_without_saying_is_not_said(tmp_path):
    """One turn of the user, media first: the record of a plain question."""
    first = [{"role": "user", "content": [IMAGE, IMAGE, text("What?")]}]
    pair = {"answer": "x", "images": ["a.png", "b.png"]}
    rows = [{"prompt": "What?", **pair}, {"prompt": "<image><image>What?", **pair}, {"prompt": first, **pair}]
    rows += [{"messages": tagged(first), **pair}, {"prompt": first[0]["content"], **pair}]
    rows += [{"prompt": [{"role": "user", "content": "What?"}], **pair}]
    for record in load(tmp_path, *rows):
        assert record.turns == () and conversation(record) == first
    below, single = load(
        tmp_path,
        {"prompt": "<image>\nWhat?", **pair, "images": "a.png"},
        {**ROW, "images": "a.png"} | {"prompt": [PROMPT[0], {"role": "user", "content": "What?"}]},
    )
    assert below.turns == (Turn("user", (None, "\nWhat?")),) and below.question == "What?"  # to the letter, as verl
    assert single.turns == (Turn("system", ("You read X-rays.",)), Turn("user", (None, "What?")))


def test_an_image_and_a_video_in_either_order(tmp_path):
    for said, kinds in (("<video>then<image>?", ["video", "image"]), ("<image>then<video>?", ["image", "video"])):
        (record,) = load(tmp_path, {"prompt": said, "image": "a.png", "video": "v.mp4", "answer": "x"})
        assert [medium.kind for medium in record.media] == kinds and record.turns[0].content == (
            None,
            "then",
            None,
            "?",
        )
    frames = {"type": "video", "video": ["1.png", "2.png"], "fps": 2}
    (record,) = load(tmp_path, {"messages": [{"role": "user", "content": [text("a"), frames]}], "answer": "x"})
    assert (record.media[0].fps, len(record.media[0].frames)) == (2.0, 2)


# ---- the prompt of transformers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of a family without a system role of its own, and of one with it; small images."""
    root = tmp_path_factory.mktemp("checkpoints")
    families = ("gemma3", "qwen2_vl")
    return {family: tiny_folder.shrink(tiny_folder.write(root / family, family), family) for family in families}


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl"])
def test_every_form_has_the_prompt_of_transformers(tmp_path, checkpoints, family):
    """Template and processor of the checkpoint, as transformers runs them on the messages of the file."""
    pictures = []
    for seed, (name, size) in enumerate(zip(ROW["images"], [(40, 24), (24, 64), (16, 16)], strict=True)):
        pictures.append(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)))
        pictures[-1].save(tmp_path / name)
    reference, ours = theirs(checkpoints[family], family), models.processor(checkpoints[family])
    template = reference.chat_template or reference.tokenizer.chat_template
    said = reference.apply_chat_template([PROMPT], chat_template=template, add_generation_prompt=True)
    begins = dict(add_special_tokens=False) if family == "gemma3" else {}
    expected = reference(text=said, images=pictures, return_tensors="np", **begins)
    for form in FORMS.values():
        (record,) = load(tmp_path, form)
        inputs = ours([conversation(record)], [media.decode_record(record).images])
        for name in ("input_ids", "pixel_values"):
            np.testing.assert_array_equal(inputs[name], expected[name])


# ---- any conversation ------------------------------------------------------------------------------------------------

words = st.text(min_size=1, max_size=12).filter(lambda said: not re.search("<(image|video)>", said))
parts = st.lists(words.map(text) | st.sampled_from([IMAGE, VIDEO]), min_size=1, max_size=4)


@st.composite
def talks(draw):
    """Up to three questions, all but the last with an answer, perhaps behind a system turn."""
    said = [{"role": "system", "content": [text(draw(words))]}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        said.append({"role": "user", "content": draw(parts)})
        said.append({"role": "assistant", "content": [text(draw(words))]})
    return [*said, {"role": "user", "content": [*draw(parts), text(f"{draw(words)}?")]}]


def joined(said):
    """Texts that follow each other as one, which forms with tags cannot tell apart."""
    out = json.loads(json.dumps(said))
    for message in out:
        merged = []
        for part in message["content"]:
            if part["type"] == "text" and merged and merged[-1]["type"] == "text":
                merged[-1]["text"] += part["text"]
            else:
                merged.append(part)
        message["content"] = merged
    return out


@FUZZ
@given(talks(), words.filter(str.strip))
def test_nothing_moves_and_nothing_is_lost(tmp_path, said, answer):
    kinds = [part["type"] for message in said for part in message["content"] if part["type"] != "text"]
    files = [f"{number}.{'png' if kind == 'image' else 'mp4'}" for number, kind in enumerate(kinds)]
    own = {f"{kind}s": [file for file, its in zip(files, kinds, strict=True) if its == kind] for kind in set(kinds)}
    last = {"role": "assistant", "content": answer}
    exact = [
        {"prompt": said, **own, "answer": "x"},
        {"messages": [*said, last], **own},
        {"prompt": inline(said, files, lambda kind, name: {kind: name}), "answer": "x"},
    ]
    tags = [
        {"prompt": tagged(said), **own, "answer": "x"},
        {"conversations": tagged([*said, {**last, "content": [text(answer)]}], "from", "value", NAMES), **own},
    ]
    for record, wanted in zip(load(tmp_path, *exact, *tags), [said] * 3 + [joined(said)] * 2, strict=True):
        assert conversation(record) == wanted and record.answer in ("x", answer.strip())
        assert [str(medium.path.relative_to(tmp_path)) for medium in record.media if medium.path] == files


# ---- what is refused -------------------------------------------------------------------------------------------------


@FUZZ
@given(
    st.lists(st.sampled_from(["<image>", "<video>", "\n", " ", "What?", "[1]", "<image", ""]), max_size=5).map("".join),
    st.lists(st.sampled_from(["image", "video"]), max_size=2),
)
def test_a_simple_prompt_is_what_the_other_functions_make_of_it(prompt, kinds):
    own = [Media(kind, path=pathlib.Path(f"{place}")) for place, kind in enumerate(kinds)]
    if (found := messages.simple(prompt, own)) is None:
        return
    turns, placed = messages.placed(messages.read(prompt), own, lambda place: pytest.fail(f"{place}"))
    question = spoken(turns)
    assert found == (question, () if messages.plain(turns, question) else turns) and [*placed] == own


@pytest.mark.parametrize("prompt", ["<image>What?", "What?", " <image>\nWhat?\n"])
def test_most_prompts_are_simple(prompt):
    assert messages.simple(prompt, [Media("image", path=pathlib.Path("a.png"))])


def user(content, **more):
    return {"messages": [{"role": "user", "content": content}], "answer": "x", **more}


SYSTEM, ASKED = {"role": "system", "content": "s"}, {"role": "user", "content": "?"}
SAID = {"role": "assistant", "content": "No"}


@pytest.mark.parametrize(
    "row, message",
    [
        (
            user("<image>?", images=["a", "b"]),
            "1 tags of media, the row 2 media; wanted one <image> or <video> for each",
        ),
        (user([IMAGE, text("?")]), "1 tags of media, the row 0 media"),
        (user([{"type": "image", "image": "a"}, text("?")], images=["b"]), "0 tags of media, the row 1 media beside 1"),
        ({"messages": [ASKED, SAID, ASKED], "images": ["a"], "answer": "x"}, "2 messages of the user without a tag"),
        ({"messages": [ASKED, SAID], "answer": "x"}, "the assistant's, 'No', and answer is 'x'; leave one of them out"),
        ({"messages": [ASKED, SAID, SAID]}, "last message but the answer is the assistant's; wanted the user's"),
        ({"messages": [SYSTEM], "answer": "x"}, "is the system's; wanted the user's"),
        ({"messages": [SAID]}, "prompt has no text"),
        ({"messages": [ASKED]}, "answer is missing; .* or a last message of the assistant"),
        ({"messages": [ASKED, SYSTEM, ASKED], "answer": "x"}, "a system message behind others; put it first"),
        (
            {"messages": [{**SYSTEM, "content": [IMAGE]}, ASKED], "image": "a", "answer": "x"},
            "of the system; wanted it in",
        ),
        ({"messages": [ASKED, {**SAID, "content": "<image>"}, ASKED], "image": "a", "answer": "x"}, "of the assistant"),
        ({"messages": [{**ASKED, "content": ""}], "answer": "x"}, "without content"),
        ({"messages": [{**ASKED, "role": "observation"}], "answer": "x"}, "wanted role system, user or assistant"),
        ({"messages": [{**ASKED, "from": "human"}], "answer": "x"}, "wanted role system, user or assistant"),
        ({"messages": [{**ASKED, "tool_calls": [{"id": 1}]}], "answer": "x"}, "with tool_calls, which is not read"),
        ({"messages": [ASKED, "?"], "answer": "x"}, "wanted text or a list of messages"),
        ({"messages": [ASKED], "prompt": "other", "answer": "x"}, "prompt and messages differ; keep one"),
        (user([{"type": "image", "image": "a", "max_pixels": 9}, text("?")]), "with max_pixels, which is not read"),
        (user([{"type": "image", "image": "a", "url": "b"}, text("?")]), "wanted one medium in it"),
        (user([{"type": "input_text", "text": "?"}]), "wanted type text, image or video"),
        (
            user([{"type": "image", "image": "https://x.org/a.png"}, text("?")]),
            "is an address on the web; .* download it",
        ),
        (user("?", images=["s3://bucket/a.png"]), "is an address on the web"),
        (user("?", image="data:image/png,abc"), "is no data:"),
        (user("?", image="data:image/png;base64,a b"), "is no data:"),
        (user("?", image="A" * 5000), "is no file name"),
        (user([{"type": "video", "video": ["1.png"]}, text("?")]), "fps is None"),
        (user([IMAGE], images=["a"]), "prompt has no text"),
        ({"prompt": "?", "answer": ["a", "a"]}, "wanted different labels as text, none empty"),
        ({"prompt": "?", "answer": ["a", None]}, "wanted different labels as text, none empty"),
        ({"prompt": "?", "answer": [0, 3]}, "no numbers of classes"),
        ({"prompt": "?", "answer": []}, "answer is missing"),
        ({"prompt": "?", "answer": ["Effusion, left", "Nodule"]}, "wanted labels without ', ', which joins several"),
        ({"prompt": "?", "answer": "e, l, n", "choices": ["e, l", "n"]}, "a choice with ', ' in it stands alone"),
        ({"prompt": "?", "answer": ["a", "c"], "choices": ["a", "b"]}, "wanted one of the choices"),
        ({"prompt": "?", "answer": "\\boxed{a}"}, "wanted what is to stand in .boxed{}, and nothing around it"),
        ({"messages": [ASKED, {**SAID, "content": "<think>so</think>No"}]}, "and nothing around it"),
    ],
)
def test_what_could_mean_two_things_is_refused(tmp_path, row, message):
    assert re.search(message, refused(tmp_path, row))


@pytest.mark.parametrize(
    "answer, wanted",
    [
        (["Nodule", "Effusion"], "Nodule, Effusion"),
        (["Effusion, left"], "Effusion, left"),
        (7, "7"),
        (0.5, "0.5"),
        (True, "True"),
        (" No finding ", "No finding"),
    ],
)
def test_answers_of_every_kind(tmp_path, answer, wanted):
    for row in ({"answer": answer}, {"solution": answer}, {"reward_model": {"ground_truth": answer}}):
        (record,) = load(tmp_path, {"prompt": "?", **row})
        assert record.answer == wanted
    choices = [*answer, "other"] if isinstance(answer, list) else [answer, "other"]
    assert load(tmp_path, {"prompt": "?", "answer": answer, "choices": choices})[0].answer == wanted


def test_it_is_said_where_answers_come_from(tmp_path):
    notes = load(tmp_path, {"messages": [ASKED, SAID]}, {"messages": [ASKED], "answer": "x"}).notes
    assert "the assistant's last message is the answer of 1 rows" in notes
    assert notes[0] == "columns that are read: answer, messages"
    assert load(tmp_path, {"prompt": "?", "answer": False}, codes={"answer": {"False": "no"}})[0].answer == "no"


def test_the_rows_of_the_page_are_one_record(tmp_path):
    page = (pathlib.Path(__file__).parents[1] / "docs" / "data.md").read_text()
    (block,) = re.findall(r"are one record.*?```\n(.*?)```", page, re.DOTALL)
    rows = [json.loads(line) for line in block.splitlines()]
    first, *others = load(tmp_path, *rows)
    assert len(others) == 2 and conversation(first) == rows[0]["prompt"] and first.answer == "larger"
    for record in others:
        assert (record.turns, record.question, record.answer) == (first.turns, first.question, first.answer)
        assert [medium.path for medium in record.media] == [medium.path for medium in first.media]
