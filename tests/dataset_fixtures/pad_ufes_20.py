"""PAD-UFES-20 in its owners' form, made here with invented patients: PNG photographs, zips inside a zip."""

from tests.dataset_fixtures import images


METADATA = (
    "patient_id,lesion_id,smoke,drink,background_father,background_mother,age,pesticide,gender,skin_cancer_history,"
    "cancer_history,has_piped_water,has_sewage_system,fitspatrick,region,diameter_1,diameter_2,diagnostic,itch,grew,"
    "hurt,changed,bleed,elevation,img_id,biopsed\n"
    "PAT_9000,9701,,,,,11,,,,,,,,ARM,,,NEV,False,False,False,False,False,False,PAT_9000_9701_31.png,False\n"
    "PAT_9005,9702,False,False,ITALY,ITALY,61,False,FEMALE,True,True,True,True,4.0,NECK,7.0,3.0,BCC,True,True,"
    "False,True,True,True,PAT_9005_9702_32.png,True\n"
    "PAT_9001,9703,,,,,72,,,,,,,,FACE,,,ACK,True,False,False,False,False,False,PAT_9001_9703_33.png,False\n"
    "PAT_9002,9704,True,True,BRASIL,BRAZIL,69,True,MALE,True,False,True,False,1.0,HAND,11.0,9.0,SCC,True,UNK,True,UNK,"
    "True,True,PAT_9002_9704_34.png,True\n"
    "PAT_9003,9705,False,True,GERMANY,UNK,66,False,MALE,True,False,False,False,2.0,FOREARM,6.0,4.0,MEL,False,True,"
    "False,True,False,False,PAT_9003_9705_35.png,True\n"
    "PAT_9015,9706,,,,,49,,,,,,,,CHEST,,,SEK,UNK,UNK,UNK,UNK,UNK,UNK,PAT_9015_9706_36.png,False\n"
    "PAT_9005,9707,False,False,ITALY,ITALY,61,False,FEMALE,True,True,True,True,4.0,NOSE,5.0,2.0,ACK,False,False,"
    "False,False,False,True,PAT_9005_9707_37.png,True\n"
)
SIZES = ((30, 20), (25, 25), (40, 33), (20, 30), (31, 17), (28, 26), (22, 24))


def names():
    """The images in the order of the table."""
    return [row.split(",")[-2] for row in METADATA.splitlines()[1:]]


def photographs():
    """``{name: bytes}``, the second of them with an alpha channel."""
    forms = {
        name: ("RGBA" if i == 1 else "RGB", size) for i, (name, size) in enumerate(zip(names(), SIZES, strict=True))
    }
    return {name: images.encoded(i, size, mode, "PNG") for i, (name, (mode, size)) in enumerate(forms.items())}


def parts():
    """The photographs by part, ``{part: {member: bytes}}``."""
    out = {1: {}, 2: {}, 3: {}}
    for i, (name, content) in enumerate(photographs().items()):
        out[1 + i % 3][f"imgs_part_{1 + i % 3}/{name}"] = content
    return out


def write(root, layout="parts"):
    """The owners' folder as ``layout`` says; returns it.

    ``parts``: ``images/imgs_part_N/*.png``; ``flat``: ``images/*.png``; ``zips``: ``images/imgs_part_N.zip``;
    ``archive``: the one downloaded file, nothing unpacked.
    """
    root.mkdir(parents=True, exist_ok=True)
    zips = {f"images/imgs_part_{part}.zip": images.archive(members) for part, members in parts().items()}
    if layout == "archive":
        (root / "zr7vgbcyr2-1.zip").write_bytes(images.archive({"metadata.csv": METADATA.encode(), **zips}))
        return root
    (root / "metadata.csv").write_text(METADATA)
    members = {name: content for part in parts().values() for name, content in part.items()}
    if layout == "flat":
        files = {f"images/{name.split('/')[1]}": content for name, content in members.items()}
    else:
        files = zips if layout == "zips" else {f"images/{name}": content for name, content in members.items()}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root
