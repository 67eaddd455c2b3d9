"""VinDr-Mammo in its owners' form, made here: 16-bit DICOM with md5 identifiers, three tables."""

import hashlib
import io
import warnings

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless


VIEWS = (("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO"))
BREASTS = {("A", "L"): (1, "B"), ("A", "R"): (4, "B"), ("B", "L"): (2, "C"), ("B", "R"): (5, "C")}
SPLITS = {"A": "training", "B": "test"}
AGES = {"A": "053Y", "B": "036Y"}
BREAST_HEADER = "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,split"
FINDING_HEADER = BREAST_HEADER.replace(",split", ",finding_categories,finding_birads,xmin,ymin,xmax,ymax,split")
METADATA_HEADER = (
    "SOP Instance UID,Series Instance UID,Study Instance UID,Manufacturer, Manufacturer's Model Name ,"
    "Patient's Age,Rows,Columns,Photometric Interpretation"
)


def uid(text):
    """An identifier as the owners made them: 32 hexadecimal digits."""
    return hashlib.md5(text.encode()).hexdigest()


def rows():
    """One dictionary an image, in the order of the table."""
    for study in SPLITS:
        for laterality, view in VIEWS:
            birads, density = BREASTS[study, laterality]
            yield {
                "study": uid(study),
                "image": uid(f"{study}{laterality}{view}"),
                "series": uid(f"series{study}"),
                "name": study,
                "laterality": laterality,
                "view": view,
                "birads": birads,
                "density": density,
                "split": SPLITS[study],
                "inverted": (study, laterality, view) == ("A", "R", "CC"),
                "compressed": (study, laterality, view) == ("B", "L", "MLO"),
            }


def breast_table():
    """The text of ``breast-level_annotations.csv``."""
    lines = [
        f"{r['study']},{r['series']},{r['image']},{r['laterality']},{r['view']},48,64,BI-RADS {r['birads']},"
        f"DENSITY {r['density']},{r['split']}"
        for r in rows()
    ]
    return "\n".join([BREAST_HEADER, *lines]) + "\n"


def finding_table():
    """The text of ``finding_annotations.csv``: two findings on one image, none on the others."""
    lines = []
    for r in rows():
        head = f"{r['study']},{r['series']},{r['image']},{r['laterality']},{r['view']},48,64,BI-RADS {r['birads']},"
        head += f"DENSITY {r['density']}"
        if (r["name"], r["laterality"], r["view"]) == ("B", "R", "CC"):
            lines.append(f"{head},\"['Mass', 'Skin Retraction']\",BI-RADS 5,10.5,4.25,30.0,20.75,{r['split']}")
            lines.append(f"{head},['Suspicious Calcification'],BI-RADS 4,40.0,8.0,50.0,16.0,{r['split']}")
        else:
            lines.append(f"{head},['No Finding'],,,,,,{r['split']}")
    return "\n".join([FINDING_HEADER, *lines]) + "\n"


def metadata_table():
    """The text of ``metadata.csv``: the age as a list for study A, empty for study B."""
    ages = {"A": "['053Y']", "B": ""}
    lines = [
        f"{r['image']},{r['series']},{r['study']},SIEMENS,Mammomat Inspiration,{ages[r['name']]},48,64,"
        f"MONOCHROME{1 if r['inverted'] else 2}"
        for r in rows()
    ]
    return "\n".join([METADATA_HEADER, *lines]) + "\n"


def pixels(image):
    """12-bit pixels of an image, by its identifier, neither black nor white."""
    return np.random.default_rng(int(image[:8], 16)).integers(500, 3000, (48, 64), np.uint16)


def dicom(path, row):
    """A mammogram as the owners left it: identifiers that are no valid UID, ages kept in the file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID("1.2.3.4")
    meta.MediaStorageSOPInstanceUID = UID(row["image"])
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.3.4", row["image"]
    ds.StudyInstanceUID, ds.SeriesInstanceUID = row["study"], row["series"]
    ds.PatientSex = "F"
    if row["view"] == "CC" or row["name"] == "A":
        ds.PatientAge = AGES[row["name"]]
    ds.Rows, ds.Columns, ds.SamplesPerPixel = 48, 64, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PhotometricInterpretation = "MONOCHROME1" if row["inverted"] else "MONOCHROME2"
    ds.WindowCenter, ds.WindowWidth = ([2048, 1024], [4096, 2048]) if row["view"] == "CC" else (2048, 4096)
    ds.PixelData = pixels(row["image"]).tobytes()
    if row["compressed"]:
        coded = io.BytesIO()
        Image.fromarray(pixels(row["image"])).save(coded, "JPEG2000", no_jp2=True)
        ds.BitsStored, ds.HighBit = 16, 15
        ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
        ds.PixelData = encapsulate([coded.getvalue()])
        ds["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=False)


def write(root, *, media=True):
    """The owners' folder; returns it. Without ``media`` only the tables."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "breast-level_annotations.csv").write_text(breast_table())
    (root / "finding_annotations.csv").write_text(finding_table())
    (root / "metadata.csv").write_text(metadata_table())
    if media:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Invalid value for VR UI")
            for row in rows():
                dicom(root / "images" / row["study"] / f"{row['image']}.dicom", row)
    return root
