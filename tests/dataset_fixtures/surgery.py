"""CholecT50 and AVOS in their owners' form, made here: labels of every kind, frames that differ, invented events."""

import json

from tests.dataset_fixtures import images


PHASES = (
    "preparation",
    "carlot-triangle-dissection",
    "clipping-and-cutting",
    "gallbladder-dissection",
    "gallbladder-packaging",
    "cleaning-and-coagulation",
    "gallbladder-extraction",
)
INSTRUMENTS = ("grasper", "bipolar", "hook", "scissors", "clipper", "irrigator")
VERBS = ("grasp", "retract", "dissect", "coagulate", "clip", "cut", "aspirate", "irrigate", "pack", "null_verb")
TARGETS = ("gallbladder", "cystic_plate", "cystic_duct", "cystic_artery")
TRIPLETS = {
    "17": "grasper,retract,gallbladder",
    "60": "hook,dissect,gallbladder",
    "94": "grasper,null_verb,null_target",
}
SIZE = (80, 60)  # width, height
GRASPER = (17, 0, 1, 0.1, 0.25, 0.3, 0.5, 1, 0, -1, -1, -1, -1, -1)
HOOK = (60, 2, 1, 0.5, 0.5, 0.25, 0.25, 2, 0, -1, -1, -1, -1, -1)
IDLE = (94, 0, 1, -1, -1, -1, -1, 9, -1, -1, -1, -1, -1, -1)
NOTHING = (-1,) * 14


def cholect50(root, videos=("VID01", "VID05", "VID12"), seconds=12):
    """The folder. In each video a grasper at seconds 1 to 4, a hook at 3 to 5; a phase until 6, another behind."""
    for number, video in enumerate(videos):
        frames = {}
        for n in range(seconds):
            phase = number if n < 6 else number + 1
            there = [v for v, own in ((GRASPER, 1 <= n <= 4), (HOOK, 3 <= n <= 5), (IDLE, n == 8)) if own]
            frames[str(n)] = [[*vector, phase] for vector in there or [NOTHING]]
            images.save(root / f"videos/{video}/{n:06d}.png", seed=100 * number + n, size=SIZE, form="PNG")
        told = {
            "video": int(video[3:]),
            "fps": 1,
            "num_frames": seconds,
            "categories": {
                "triplet": TRIPLETS,
                **{
                    kind: {str(i): name for i, name in enumerate(names)}
                    for kind, names in (
                        ("instrument", INSTRUMENTS),
                        ("verb", VERBS),
                        ("target", TARGETS),
                        ("phase", PHASES),
                    )
                },
            },
            "annotations": frames,
            "info": {"description": "made here"},
            "licenses": {"name": "none"},
        }
        path = root / f"labels/{video}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told))
    return root


def avos(root, videos=("aaaaaaaaaaa", "b-b_bbbbbbb")):
    """The folder, with frames at 2 a second: cutting at 1 to 3 s, tying at 4 to 6.5 s; boxes on two frames."""
    spans = [",video_id,start_seconds,end_seconds,start_frame,end_frame,label"]
    boxes = ["image_name,x1,y1,x2,y2,class"]
    for number, video in enumerate(videos):
        for n in range(16):
            images.save(root / f"frames_2fps/{video}/{n:05d}.jpg", seed=500 + 100 * number + n, size=SIZE)
        spans += [
            f"{len(spans) - 1},{video},0.0,1.0,0,2,background",
            f"{len(spans)},{video},1.0,3.0,2,6,cutting",
            f"{len(spans) + 1},{video},4.0,6.5,8,13,tying",
        ]
        boxes += [
            f"{video}-2.jpg,10,10,30,40,hand",
            f"{video}-2.jpg,40,10,60,40,hand",
            f"{video}-2.jpg,5,6,25.5,30,needledriver",
            f"{video}-5.jpg,6,6,26,30,needledriver",
            f"{video}-6.jpg,7,8,27,32,needledriver",
        ]
    (root / "temporal.csv").write_text("\n".join(spans) + "\n")
    (root / "boxes.csv").write_text("\n".join(boxes) + "\n")
    return root
