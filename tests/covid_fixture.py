"""A small folder in the form of COVID-BLUES, made here: real mp4 files, two CSVs, invented patients."""

import av
import numpy as np


def write(root, patients=4):
    """``patients`` patients of one video each; returns the folder."""
    (root / "lus_videos").mkdir(parents=True)
    clinical, severity = ["patient_id,cov_test,pat_sex,pat_age"], ["video_file,Severity Score,A-lines,B-lines,comments"]
    for i in range(1, patients + 1):
        clinical.append(f"{i},{i % 2},{i // 2 % 2}.0,{20 + 15 * i}.0")
        severity.append(f"patient_{i}_L1,1.0,yes,no,")
        video(root / "lus_videos" / f"patient_{i}_L1.mp4")
    (root / "clinical_variables.csv").write_text("\n".join(clinical) + "\n")
    (root / "severity.csv").write_text("\n".join(severity) + "\n")
    return root


def video(path, frames=20):
    """A grey clip of 64 x 48 pixels that grows brighter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * i, np.uint8))))
        container.mux(stream.encode())
