"""MedVidBench in its owners' form, made here: a row of every task, frames as JPEG files; invented questions."""

import json

from tests.dataset_fixtures import images


def frames(source="AVOS", video="v", count=10, prefix="/root/data"):
    """The owners' paths of the first frames of a video; one is repeated."""
    names = [f"{prefix}/{source}/frames_15fps/{video}/{n:04d}.jpg" for n in range(count)]
    return [*names, names[-1]] if count % 2 else names


def row(
    task,
    question,
    answer,
    *,
    source="AVOS",
    video="v",
    count=4,
    struc=None,
    fps="1.0",
    prefix="/root/data",
    video_order=None,
    **more,
):
    """A row with the owners' keys; no turn of the model if ``answer`` is None."""
    turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": answer}]
    names = frames(source, video, count, prefix)
    names = [names[n] for n in video_order] if video_order else names
    return {
        "id": f"{video}&&0&&{15 * count}&&{fps}",
        "conversations": turns[: 1 if answer is None else 2],
        "video": names,
        "sampled_video_frames": [15 * n for n in range(len(names))],
        "metadata": {
            "fps": fps,
            "video_id": video,
            "input_video_start_frame": "0",
            "input_video_end_frame": str(15 * count),
        },
        "qa_type": task,
        "data_source": source,
        "dataset_name": source,
        "struc_info": struc,
        "is_RC": False,
        "RC_info": None,
        **more,
    }


REGION = {"start_frame": frames()[2], "start_frame_bbox": [5, 6, 20.5, 21]}


def spans(action, *times):
    """The structured answer of TAG."""
    found = [{"start": start, "end": end} for start, end in times]
    return [{"procedure": "suturing", "action_list": ["cut", "tie"], "action": action, "spans": found}]


def boxes(name, **times):
    """The structured answer of STG; times as ``t1`` for 1.0."""
    found = {f"{float(time[1:]):.1f}": box for time, box in times.items()}
    return [{"start": min(map(float, found)), "end": max(map(float, found)), "stride": 1, "object": name,
             "bbox_dict": found}]  # fmt: skip


SPANS = spans("cut", (1.0, 1.0), (2.0, 3.0))
EVENTS = [[{"start": 1.0, "end": 2.0, "caption": "cut: A cut."}]]
VIEW = {"cvs_scores": {"two_structures": 2, "cystic_plate": 1, "hepatocystic_triangle": 0}}
ROWS = (
    row("tal", "When is thread cut?", "1.0-1.0, 2.0-3.0 seconds.", struc=SPANS),
    row("tal", "When is a knot tied?", "3.0-4.0 seconds.", struc=spans("tie", (3.0, 4.0)), fps="0.5"),
    row("stg", "Where is the needle?", "1.0 seconds: [1.5, 2.0, 30.25, 31.0]",
        struc=boxes("needle", t1=[1.5, 2.0, 30.25, 31.0]), video_order=(0, 3, 1, 2)),
    row("next_action", "What comes next: cut, tie?", "tie", video="w", count=5, struc={}),
    row("dense_captioning_gemini", "Describe each event.", "1.0-2.0 seconds: cut: A cut.", struc=EVENTS),
    row("video_summary_gpt", "Sum up the clip.", None, source="NurViD", video="n-1", metadata={
        "fps": "2.0", "video_id": "n-1", "input_video_start_time": "12.5", "input_video_end_time": "14.5"}),
    row("region_caption_gpt", "What does the marked tool do?", "It holds tissue.", is_RC=True, RC_info=REGION),
    row("skill_assessment", "Rate the skill.", "Respect for tissue: 2/5", source="JIGSAWS", video="B001", RC_info={}),
    row("cvs_assessment", "Rate the view.", "Two structures: 2, Cystic plate: 1, Hepatocystic triangle: 0",
        source="Cholec80_CVS", video="video12", struc=VIEW,
        metadata={"fps": "1.0", "video_id": "video12", "start_frame": "0", "end_frame": "60"}),
    row("stg", "Where is the hook?", "1.0 seconds: [1, 2, 3, 4]", source="CholecT50", video="VID12",
        struc=boxes("hook", t1=[1, 2, 3, 4])),
)  # fmt: skip
TEST = (
    row("tal", "When is the skin closed?", None, prefix="testdata", dataset_name=None),
    row("tal", "When is the skin closed?", None, prefix="testdata"),
    row("video_summary_gemini", "Sum up the clip.", None, prefix="testdata"),
)
TRAINVAL, TESTING = "medvidu_eccv2026_trainval.json", "cleaned_test_data_11_04.json"


def write(root, rows=ROWS, *, folder="", test=TEST):
    """The folder with both JSON files; the frames of every video of AVOS and of the other sources' first rows."""
    (root / TRAINVAL).write_text(json.dumps(list(rows)), encoding="utf-8")
    (root / TESTING).write_text(json.dumps(list(test)), encoding="utf-8")
    for video, count in (("v", 10), ("w", 5)):
        for n in range(count):
            images.save(root / folder / "AVOS/frames_15fps" / video / f"{n:04d}.jpg", seed=n, size=(40, 32))
    for n in range(4):
        images.save(root / "testdata/AVOS/frames_15fps/v" / f"{n:04d}.jpg", seed=50 + n, size=(40, 32))
    return root
