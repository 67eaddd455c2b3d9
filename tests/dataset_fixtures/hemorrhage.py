"""The intracranial haemorrhage CT set in its owners' form, version 1.0.0, made here with invented patients."""

from tests.dataset_fixtures import images


DIAGNOSES = (
    "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,No_Hemorrhage,"
    "Fracture_Yes_No\r\n"
    "49,1,0,0,0,0,0,1,0\r\n"
    "49,2,0,0,0,0,0,1,0\r\n"
    "50,1,0,0,0,0,0,1,0\r\n"
    "51,1,0,0,0,1,0,0,1\r\n"
    "51,2,0,1,0,1,0,0,0\r\n"
)
PEOPLE = (
    'Patient Number,"Age\n(years)",Gender,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,'
    "Fracture (Yes/No),Condition on file,Note\r\n"
    "49,33,Female,,,,,,,Trauma,\r\n"
    '50,0.416666667,Male,,,,,,,Trauma,"fall, no fracture"\r\n'
    "51,7,Female,,1,,1,,1,,\r\n"
)
SLICES = {  # folder/window/slice: the bone window of patient 50 is there, the brain window is not
    "049": {"brain": (1, 2), "bone": (1, 2)},
    "050": {"bone": (1,)},
    "051": {"brain": (1, 2), "bone": (1, 2)},
}


def write(root):
    """The owners' folder, with masks beside the slices; returns it."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "hemorrhage_diagnosis.csv").write_bytes(b"\xef\xbb\xbf" + DIAGNOSES.encode())
    (root / "patient_demographics.csv").write_bytes(b"\xef\xbb\xbf" + PEOPLE.encode())
    for folder, windows in SLICES.items():
        for window, numbers in windows.items():
            for number in numbers:
                images.save(root / "Patients_CT" / folder / window / f"{number}.jpg", len(window) + number, mode="L")
    images.save(root / "Patients_CT" / "051" / "brain" / "1_HGE_Seg.jpg", 99, mode="L")
    return root


def published(root):
    """Two tables with as many patients and slices as the owners': 82 patients, 2,501 slices, no images."""
    root.mkdir(parents=True, exist_ok=True)
    head, people = DIAGNOSES.split("\r\n")[0], [PEOPLE.split("\r\n")[0]]
    rows = []
    for number in range(49, 131):
        people.append(f"{number},{number % 70},{'Male' if number % 2 else 'Female'},,,,,,,,")
        rows += [f"{number},{i},0,0,0,0,0,1,0" for i in range(1, 32 if number > 89 else 31)]
    (root / "hemorrhage_diagnosis.csv").write_bytes(("\r\n".join([head, *rows]) + "\r\n").encode("utf-8-sig"))
    (root / "patient_demographics.csv").write_bytes(("\r\n".join(people) + "\r\n").encode("utf-8-sig"))
    return root
