"""A damaged stream that ends GDCM's process costs its own file and nothing else."""

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from fairgrpo_jax.data import decoder_process, dicom


pytest.importorskip("gdcm", reason="decoder of the extra dicom")
NAME = "SC_rgb_jpeg_gdcm.dcm"  # JPEG Lossless


def of_pydicom(name):
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return pathlib.Path(path)


def sound():
    return of_pydicom(NAME).read_bytes()


def damaged():
    """The file with one byte changed, a marker at the beginning of its JPEG stream; GDCM aborts."""
    content = bytearray(sound())
    content[content.index(b"\xe0\x7f\x10\x00") + 30] = 160
    return bytes(content)


def test_a_file_that_ends_the_decoder_is_an_error_that_names_it():
    wanted = pydicom.dcmread(of_pydicom("SC_rgb_rle.dcm")).pixel_array
    np.testing.assert_array_equal(dicom.pixels(sound(), "good.dcm"), wanted)
    with pytest.raises(ValueError, match="DICOM file bad.dcm is broken, .*it ended its decoder by SIG.*; download it"):
        dicom.pixels(damaged(), "bad.dcm")
    np.testing.assert_array_equal(dicom.pixels(sound(), "good.dcm"), wanted)


def test_threads_share_one_process_which_is_started_again_when_somebody_ends_it():
    wanted = dicom.pixels(sound(), "good.dcm")
    first = decoder_process._worker.process
    assert first is not None
    first.kill()
    first.wait()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: dicom.pixels(sound(), "good.dcm"), range(8)):
            np.testing.assert_array_equal(found, wanted)
    second = decoder_process._worker.process
    assert second is not None and second.pid != first.pid


def test_what_the_decoder_says_of_a_frame_is_told():
    content = sound()
    with pytest.raises(ValueError, match="DICOM file cut.dcm is broken, or gdcm does not know this form of JPEG Loss"):
        dicom.pixels(content[:-2000] + bytes(2000), "cut.dcm")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_a_forked_process_starts_its_own():
    dicom.pixels(sound(), "good.dcm")
    assert decoder_process._worker.process is not None
    if (child := os.fork()) == 0:
        try:
            own = decoder_process._worker.process is None and dicom.pixels(sound(), "good.dcm").shape == (100, 100, 3)
            decoder_process._worker.close()
            os._exit(0 if own else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert dicom.pixels(sound(), "good.dcm").shape == (100, 100, 3)


@pytest.mark.parametrize(
    "program", ["import time; time.sleep(60)", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"]
)
def test_a_decoder_that_does_not_answer_is_ended_and_its_file_named(tmp_path, monkeypatch, program):
    wanted = dicom.pixels(sound(), "good.dcm")
    (tmp_path / "silent.py").write_text(program)
    with monkeypatch.context() as patch:
        patch.setattr(decoder_process, "_worker", decoder_process._Worker())
        patch.setattr(decoder_process, "_PROGRAM", str(tmp_path / "silent.py"))
        patch.setattr(decoder_process, "PATIENCE", -0.5)
        with pytest.raises(
            ValueError, match="DICOM file slow.dcm keeps its decoder gdcm busy .*no answer in 0.5 s.; down"
        ):
            dicom.pixels(sound(), "slow.dcm")
        assert decoder_process._worker.process is None
    np.testing.assert_array_equal(dicom.pixels(sound(), "good.dcm"), wanted)
