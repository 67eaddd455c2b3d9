"""Every DICOM file that pydicom tests itself with: the picture that pydicom shows, or a refusal that says the truth."""

import importlib.util
import pathlib
import sys
from collections import Counter

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from fairgrpo_jax.data import dicom, headers, media
from fairgrpo_jax.data.record import Media, Record, RecordList


HAS_GDCM, HAS_LS = (importlib.util.find_spec(name) is not None for name in ("gdcm", "jpeg_ls"))


@pytest.fixture(scope="module")
def corpora():
    path = pathlib.Path(__file__).parents[1] / "benchmarks" / "corpora.py"
    spec = importlib.util.spec_from_file_location("corpora", path)
    assert spec and spec.loader
    module = sys.modules["corpora"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["corpora"]


def of_pydicom(name):
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return pathlib.Path(path)


@pytest.mark.filterwarnings("ignore")
def test_every_file_is_the_picture_or_refused_with_its_name(corpora):
    (folder,) = corpora.folders()
    found = {path: corpora.judge(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    wrong = {path.name: told for path, told in found.items() if told[0] not in corpora.RIGHT}
    assert not wrong
    counts = Counter(outcome for outcome, _ in found.values())
    more = HAS_GDCM + 5 * HAS_LS
    assert counts["equal"] == 78 + more and counts["no decoder"] == 8 - more


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize(
    "name,words",
    [
        ("test-SR.dcm", "is of the class Comprehensive SR Storage and holds no picture; leave it out"),
        ("rtstruct.dcm", "is of the class RT Structure Set Storage and holds no picture"),  # has no preamble
        ("waveform_ecg.dcm", "is of the class 12-lead ECG Waveform Storage and holds no picture"),
        ("DICOMDIR", "is of the class Media Storage Directory Storage and holds no picture"),
        ("MR_truncated.dcm", "is broken .8130 of 8192 bytes of pixel data"),
        ("badVR.dcm", "is broken .NumberOfFrames is '1A'"),
        ("nested_priv_SQ.dcm", "is broken .it has pixel data but no Rows, Columns"),
    ],
)
def test_what_is_said_of_files_without_a_picture(name, words):
    record = Record("r", "d", "", (Media("image", path=of_pydicom(name)),), "?", "", (), "p", None, None, {}, "")
    for read in (media.decode_record, headers.sizes):
        with pytest.raises(ValueError, match=f"record r: DICOM file .*{name} {words}"):
            read(record)


@pytest.mark.parametrize(
    "name,package",
    [("JPGExtended.dcm", "pylibjpeg-libjpeg .GPL."), ("SC_rgb_jpeg_gdcm.dcm", "python-gdcm")]
    + [("MR_small_jpeg_ls_lossless.dcm", "pyjpegls"), ("MR_small_jp2klossless.dcm", "pylibjpeg-openjpeg")],
)
def test_a_missing_decoder_is_named_and_no_broken_file(name, package, monkeypatch):
    monkeypatch.setattr(dicom, "_DECODERS", ())
    record = Record("r", "d", "", (Media("image", path=of_pydicom(name)),), "?", "", (), "p", None, None, {}, "")
    syntax = pydicom.dcmread(of_pydicom(name)).file_meta.TransferSyntaxUID.name.partition(" (")[0]
    for read in (media.decode_record, headers.sizes, lambda one: media.without_broken(RecordList((one,)))):
        with pytest.raises(ImportError, match=f"{name} is compressed as {syntax}.*pip install .*{package}"):
            read(record)


@pytest.mark.skipif(not (HAS_GDCM and HAS_LS), reason="decoders of the extra dicom")
@pytest.mark.parametrize(
    "name,plain", [("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"), ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm")]
)
def test_lossless_compressions_show_what_is_compressed(name, plain):
    one, other = (media.decode(Media("image", path=of_pydicom(file))) for file in (name, plain))
    np.testing.assert_array_equal(one, other)
