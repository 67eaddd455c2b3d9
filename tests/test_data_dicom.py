"""DICOM files written here, against pydicom's own windowing and against hand calculations."""

import hashlib
import io
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    MPEG4HP41,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from fairgrpo_jax.data import dicom, dicom_values, media
from fairgrpo_jax.data.record import Media, Record


STORED = np.random.default_rng(0).integers(0, 4096, (48, 64), np.uint16)


def dataset(stored=STORED, *, kind="MONOCHROME2", **tags):
    """A mammogram as VinDr-Mammo de-identifies it: hashes for identifiers."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID("1.2.3.4"), UID("1.2.3.4.5")
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("SOPInstanceUID", "StudyInstanceUID"):
            setattr(file, name, hashlib.md5(name.encode()).hexdigest())
    colour = stored.ndim == 3
    file.Rows, file.Columns = stored.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation = (3, "RGB") if colour else (1, kind)
    if colour:
        file.PlanarConfiguration = 0
    file.BitsAllocated = 8 * stored.itemsize
    file.BitsStored = {1: 8, 2: 12 if stored.dtype == np.uint16 else 16, 4: 32}[stored.itemsize]
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(stored.dtype.kind == "i")
    file.PixelData = stored.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    return file


def written(file):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.save_as(buffer)
    return buffer.getvalue()


def shown(file, **options):
    picture = dicom.pixels(written(file), "x.dicom", **options)
    assert picture.dtype == np.uint8 and (picture == picture[..., :1]).all()
    return picture[..., 0]


def voi_by_pydicom(file):
    """The window as pydicom applies it, from its range of values to 0 .. 255."""
    values = apply_modality_lut(STORED, file)
    out = apply_voi_lut(values, file, index=0)
    slope, intercept = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
    low, high = intercept, (2**file.BitsStored - 1) * slope + intercept
    return 255 * (out - low) / (high - low)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("slope,intercept", [(1, 0), (2, -1000)])
def test_windows_as_pydicom_applies_them(function, slope, intercept):
    file = dataset(WindowCenter=1500, WindowWidth=1800, RescaleSlope=slope, RescaleIntercept=intercept)
    if function:
        file.VOILUTFunction = function
    picture = shown(file)
    np.testing.assert_allclose(picture, voi_by_pydicom(file), atol=0.51)
    assert picture.min() < 20 and picture.max() > 235


def test_the_first_of_several_windows_counts():
    several = dataset(WindowCenter=[1500, 3000], WindowWidth=[1800, 10])
    one = dataset(WindowCenter=1500, WindowWidth=1800)
    np.testing.assert_array_equal(shown(several), shown(one))


def test_a_table_goes_before_a_window():
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], np.arange(4096, dtype="<u2")[::-1].tobytes()
    file = dataset(WindowCenter=1500, WindowWidth=1800, VOILUTSequence=[table])
    np.testing.assert_array_equal(shown(file), np.rint(255 * (4095 - STORED.astype(float)) / 4095))


def test_minmax_and_files_without_a_window():
    by_hand = np.rint(255 * (STORED.astype(float) - STORED.min()) / (int(STORED.max()) - STORED.min()))
    np.testing.assert_array_equal(shown(dataset()), by_hand)
    np.testing.assert_array_equal(shown(dataset(WindowCenter=1500, WindowWidth=1800), window="minmax"), by_hand)
    assert (shown(dataset(np.full((4, 4), 7, np.uint16))) == 0).all()


@pytest.mark.parametrize("name", ["WindowCenter", "WindowWidth"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_window_that_is_none_is_refused(name, value):
    file = dataset(WindowCenter=1500, WindowWidth=1800)
    setattr(file, name, value)
    with pytest.raises(ValueError, match="pass window='minmax'"):
        dicom_values.picture(file, STORED, "voi")


def test_values_that_are_no_numbers_are_dark_and_the_rest_is_shown():
    file, values = dataset(), np.array([[0.0, 1.0], [2.0, np.nan]], np.float32)
    assert dicom_values.picture(file, values, "voi")[..., 0].tolist() == [[0, 128], [255, 0]]
    with pytest.raises(ValueError, match="no finite value"):
        dicom_values.picture(file, np.full((2, 2), np.nan, np.float32), "voi")


def test_monochrome1_is_inverted():
    bright, dark = (shown(dataset(kind=f"MONOCHROME{i}", WindowCenter=2048, WindowWidth=4096)) for i in (2, 1))
    assert np.abs(bright.astype(int) + dark - 255).max() <= 1
    assert bright[STORED < 100].max() < 10 < 245 < dark[STORED < 100].min()


def test_padding_is_black_and_does_not_count():
    stored = np.clip(STORED, 1000, 3000)
    stored[:, :10], stored[:, 10:20] = 4095, 4094
    file = dataset(stored, kind="MONOCHROME1", PixelPaddingValue=4095, PixelPaddingRangeLimit=4094)
    picture = shown(file)
    assert (picture[:, :20] == 0).all()
    assert (shown(dataset(stored, WindowCenter=2000, WindowWidth=900, PixelPaddingValue=4095))[:, :10] == 0).all()
    np.testing.assert_array_equal(picture[:, 20:], np.rint(255 * (1 - (stored[:, 20:] - 1000.0) / 2000)))


def test_signed_pixels():
    stored = (STORED.astype(np.int16) - 2048).astype(np.int16)
    by_hand = np.rint(255 * np.clip((stored - (40 - 0.5)) / (80 - 1) + 0.5, 0, 1))
    np.testing.assert_array_equal(shown(dataset(stored, WindowCenter=40, WindowWidth=80)), by_hand)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_the_full_range_of_every_type(dtype):
    stored = np.random.default_rng(2).integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (30, 40), dtype, endpoint=True)
    stored[0, 0], stored[0, 1] = np.iinfo(dtype).min, np.iinfo(dtype).max
    file = dataset(stored, BitsStored=8 * stored.itemsize, HighBit=8 * stored.itemsize - 1)
    values = stored.astype(np.float64)
    by_hand = np.rint(255 * (values - values.min()) / (values.max() - values.min()))
    np.testing.assert_array_equal(shown(file, window="minmax"), by_hand)


def test_colour_stays():
    stored = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(dicom.pixels(written(dataset(stored)), "x.dcm"), stored)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_lossless_compression(syntax):
    plain, file = dataset(WindowCenter=1500, WindowWidth=1800), dataset(WindowCenter=1500, WindowWidth=1800)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(shown(file), shown(plain))


def test_files_on_disk_are_known_by_name_or_content(tmp_path):
    content = written(dataset(PatientAge="053Y", PatientSex="F"))
    for name in ("a.dicom", "b.DCM", "c"):
        (tmp_path / name).write_bytes(content)
        assert media.decode(Media("image", path=tmp_path / name)).shape == (48, 64, 3)
    head = dicom.header(tmp_path / "a.dicom")
    assert (head.PatientAge, head.PatientSex) == ("053Y", "F") and "PixelData" not in head


def test_the_window_is_chosen_by_the_medium(tmp_path):
    (tmp_path / "a.dicom").write_bytes(written(dataset(WindowCenter=1500, WindowWidth=100)))
    seen = [media.decode(Media("image", path=tmp_path / "a.dicom", window=w)) for w in (None, "voi", "minmax")]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.abs(seen[1].astype(int) - seen[2]).max() > 100


def test_files_that_hold_no_picture(tmp_path):
    whole = written(dataset())
    several = dataset(np.repeat(STORED[None], 2, axis=0).reshape(96, 64), NumberOfFrames=2, Rows=48)
    contents = {
        "noise": (b"nothing of the kind" * 30, "is broken"),
        "empty": (b"", "is broken"),
        "cut": (whole[: len(whole) // 2], "is broken"),
        "several": (written(several), "2 frames"),
        "none": (written(dataset(WindowCenter=10, WindowWidth=-3)), "width -3.0.*minmax"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / f"{name}.dcm").write_bytes(content)
        record = Record(
            "m/7", "m", "", (Media("image", path=tmp_path / f"{name}.dcm"),), "?", "", (), "p", None, None, {}, ""
        )
        with pytest.raises(ValueError, match=f"dataset m, record m/7: .*{name}.dcm .*{message}"):
            media.decode_record(record)


def test_only_the_one_warning_is_silenced():
    content = written(dataset())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        dicom.pixels(content, "x.dcm")
        assert not seen
        warnings.warn("another", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["another"]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("factor,below", [(1, 0), (257, 0), (256, 77)])
def test_palettes_of_sixteen_bits_that_hold_eight_or_sixteen(factor, below, syntax):
    """Some devices write values of 8 bits into tables that they declare to be of 16: the picture was black."""
    order = "<u2" if syntax == ExplicitVRLittleEndian else ">u2"
    stored = np.random.default_rng(1).integers(0, 256, (10, 12), np.uint16)
    tables = np.random.default_rng(2).integers(0, 256, (3, 256))
    tables[:, 0] = 255
    file = dataset(stored.astype(order), kind="PALETTE COLOR")
    file.file_meta.TransferSyntaxUID = syntax
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(file, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(file, f"{name}PaletteColorLookupTableData", (table * factor + below).astype(order).tobytes())
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(buffer, file)
    picture = dicom.pixels(buffer.getvalue(), "x.dcm")
    np.testing.assert_array_equal(picture, np.moveaxis(tables[:, stored], 0, -1))


def without_preamble(file):
    """The data alone, without the 128 bytes, the name of the format and the group that tells the transfer syntax."""
    content = written(file)
    return content[content.index(b"\x08\0\x16\0" if "SOPClassUID" in file else b"\x08\0\x18\0") :]


def test_files_without_a_preamble():
    file = dataset(WindowCenter=1500, WindowWidth=1800, SOPClassUID=SecondaryCaptureImageStorage)
    np.testing.assert_array_equal(dicom.pixels(without_preamble(file), "x.dcm"), dicom.pixels(written(file), "x.dcm"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.compress(RLELossless, generate_instance_uid=False)
    with pytest.raises(ValueError, match="its pixels are compressed and it does not say how"):
        dicom.pixels(without_preamble(file), "x.dcm")
    with pytest.raises(ValueError, match="x.dcm is broken .*DICM"):
        dicom.pixels(without_preamble(dataset()), "x.dcm")


def test_headers_alone_and_films_of_a_camera_say_what_they_are():
    file = dataset(SOPClassUID=SecondaryCaptureImageStorage)
    del file.PixelData
    with pytest.raises(ValueError, match="Secondary Capture Image Storage, has the tags of 48 x 64 pixels and ends"):
        dicom.pixels(written(file), "x.dcm")
    with pytest.raises(ValueError, match="x.dcm has 60000 x 50000 pixels; wanted at most 80,000,000"):
        dicom.pixels(written(dataset(Rows=50000, Columns=60000)), "x.dcm")
    camera = dataset(np.zeros((4, 4, 3), np.uint8))
    camera.file_meta.TransferSyntaxUID = MPEG4HP41
    camera.PixelData = encapsulate([bytes(64)])
    with pytest.raises(ValueError, match="compressed as MPEG-4 .* not read; convert it .* save the stream"):
        dicom.pixels(written(camera), "x.dcm")
