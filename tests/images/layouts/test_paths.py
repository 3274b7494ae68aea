"""What the paths and tables of public data sets say in ways of their own, each in a small twin of its layout."""

from pathlib import Path

import pytest

from cxrsynth.auditing.read import unclear_cells
from cxrsynth.images.collection import Collection, open_collection
from cxrsynth.images.image import Radiograph
from cxrsynth.images.layouts.paths import patient_of
from cxrsynth.images.layouts.vocabulary import class_of
from cxrsynth.reports.labels import Side, Status
from tests.images.making import encoded, levels, read_all, write


def images_of(folder: Path, *names: str) -> Path:
    for place, name in enumerate(names):
        write(folder / name, encoded(levels(place), "JPEG" if name.endswith("jpg") else "PNG"))
    return folder


def read(folder: Path, table: Path | None = None, file_column: str | None = None) -> dict[str, Radiograph]:
    found, damaged = read_all(open_collection(folder, table=table, file_column=file_column))
    assert damaged == []
    return {one.key: one for one in found}


def present(one: Radiograph) -> list[str]:
    labels = {} if one.report is None else one.report.labels
    return [name for name, label in labels.items() if label.status is Status.PRESENT]


@pytest.mark.parametrize(
    ("path", "patient"),
    [
        ("CheXpert-v1.0-small/train/patient00042/study1/view1_frontal.jpg", "patient00042"),
        ("patient64541/study2/view2_lateral.jpg", "patient64541"),
        ("files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg", "10000032"),
        ("images_001/00000013_005.png", "13"),
        ("PNEUMONIA/person1000_virus_1681.jpeg", "person1000"),
        ("set/0a1b2c3d.png", ""),
        ("patient_data/image_1.png", ""),
        ("study1/20190314_001.txt", ""),
        ("study1/20190314_001.png", ""),  # a date
        ("nih-00000013_005.png", "13"),
        ("set/NIH_00030805_000.jpg", "30805"),
        ("train-patient00042_study1_view1_frontal.jpg", "patient00042"),
        ("p10000032_s50414267_02aa804e.jpg", "10000032"),
        ("kermany-person1000_virus_1681.jpeg", "person1000"),
        ("NORMAL/NORMAL-1003233-0001.jpeg", "1003233"),
        ("PNEUMONIA/BACTERIA-1008087-0001.jpeg", "1008087"),
        ("00000001_000.webp", "1"),
        ("images/00030805_000.tif", "30805"),
        ("person1_virus_6.dcm", "person1"),
    ],
)
def test_patients_of_known_layouts(path: str, patient: str) -> None:
    assert patient_of(path) == patient


def test_chexpert(tmp_path: Path) -> None:
    """Its table has no column of patients, and its view in two."""
    names = [
        "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00001/study1/view2_lateral.jpg",
        "train/patient00002/study1/view1_frontal.jpg",
    ]
    folder = images_of(tmp_path / "CheXpert-v1.0-small", *names)
    lines = ["Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pleural Effusion"]
    lines += [f"CheXpert-v1.0-small/{names[0]},Female,68,Frontal,AP,,1.0,-1.0"]
    lines += [f"CheXpert-v1.0-small/{names[1]},Female,68,Lateral,,,,0.0"]
    lines += [f"CheXpert-v1.0-small/{names[2]},Male,7,Frontal,PA,1.0,,"]
    found = read(folder, write(tmp_path / "train.csv", "\n".join(lines)))
    one, two, three = (found[name] for name in names)
    assert [image.patient for image in (one, two, three)] == ["patient00001", "patient00001", "patient00002"]
    assert [image.report and image.report.view for image in (one, two, three)] == ["AP", "LATERAL", "PA"]
    assert one.report is not None
    assert {name: label.status for name, label in one.report.labels.items()} == {
        "Edema": Status.PRESENT,
        "Pleural Effusion": Status.UNCERTAIN,
    }
    assert present(three) == ["No Finding"]
    assert (one.age_group, three.age_group) == ("adult", "child")


def test_nih(tmp_path: Path) -> None:
    folder = images_of(tmp_path / "images", "00000001_000.png", "00000001_001.png", "00000002_000.png")
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    lines += ["00000001_000.png,Cardiomegaly|Effusion,0,1,58,M,PA", "00000001_001.png,No Finding,1,1,58,M,AP"]
    lines += ["00000002_000.png,Mass,0,2,81,F,PA"]
    found = read(folder, write(tmp_path / "Data_Entry_2017.csv", "\n".join(lines)))
    assert [one.patient for one in found.values()] == ["1", "1", "2"]  # as the table has them
    assert [sorted(present(one)) for one in found.values()] == [
        ["Cardiomegaly", "Pleural Effusion"],
        ["No Finding"],
        ["Lung Lesion"],
    ]
    assert [one.patient for one in read(folder).values()] == ["1", "1", "2"]  # and the paths say the same


def test_kermany_and_other_folders_of_a_class(tmp_path: Path) -> None:
    names = [
        "train/NORMAL/IM-0115-0001.jpeg.png",
        "train/PNEUMONIA/person1_virus_6.jpg",
        "Lung_Opacity/images/Lung_Opacity-1.png",
        "other/x.png",
    ]
    found = read(images_of(tmp_path, *names))
    assert [present(found[name]) for name in sorted(names)] == [["Lung Opacity"], [], ["No Finding"], ["Pneumonia"]]
    assert [class_of(name) for name in ("x.png", "images/x.png", "images/a/x.png")] == [None, None, None]
    # A table says more than a folder.
    table = write(tmp_path / "t.csv", f"path,label\n{names[0]},Edema\n{names[1]},\n")
    found = read(tmp_path, table)
    assert (present(found[names[0]]), present(found[names[1]])) == (["Edema"], ["Pneumonia"])


@pytest.mark.parametrize(
    ("column", "cell", "labels"),
    [
        ("labels", "\"['pleural effusion', 'cardiomegaly']\"", ["Pleural Effusion", "Cardiomegaly"]),
        ("labels", '"[""edema""]"', ["Edema"]),
        ("class", "NORMAL", ["No Finding"]),
        ("class_name", "Pneumonia", ["Pneumonia"]),
        ("Finding Labels", "Infiltration|Nodule", ["Lung Opacity", "Lung Lesion"]),
        ("finding", "Pneumonia", ["Pneumonia"]),
        ("disease", "Effusion", ["Pleural Effusion"]),
        ("Effusion", "1", ["Pleural Effusion"]),
        ("Viral Pneumonia", "1", ["Pneumonia"]),
        ("Viral Pneumonia", "0", []),
        ("tags", "Edema|portable", ["Edema"]),
        ("classes", "Pneumonia", ["Pneumonia"]),
        ("pathologies", "Effusion;Mass", ["Pleural Effusion", "Lung Lesion"]),
        ("diseases", '"Edema, rib fracture"', ["Edema", "Fracture"]),
        ("target", "Edema", ["Edema"]),
        ("target", "1", []),
        ("target", "right lung", []),
        ("label", '"{""Edema"": 1, ""Mass"": 0}"', ["Edema"]),
        ("label", "\"{'Edema': 1, 'pulmonary edema': 0, 'catheter': 1}\"", ["Edema", "Support Devices"]),
        ("labels", "Edema/Consolidation", ["Edema", "Consolidation"]),
        ("labels", "Nodule/Mass + Effusion", ["Lung Lesion", "Pleural Effusion"]),
        ("labels", "Edema and Fracture", ["Edema", "Fracture"]),
        ("finding", "Pneumonia/Viral/COVID-19", ["Pneumonia"]),
        # A sentence is no list.
        ("labels", "no edema / effusion", []),
        ("labels", "Edema|no effusion or fracture|Mass", ["Edema"]),
        ("label", "1", []),
        ("caption", "normal", ["No Finding"]),
        ("caption", "Large left pleural effusion.", ["Pleural Effusion"]),
    ],
)
def test_labels_as_tables_have_them(tmp_path: Path, column: str, cell: str, labels: list[str]) -> None:
    folder = images_of(tmp_path / "set", "a.png")
    found = read(folder, write(tmp_path / "t.csv", f"filename,{column}\na.png,{cell}\n"))["a.png"]
    assert sorted(set(present(found)) - ({"No Finding"} if labels != ["No Finding"] else set())) == sorted(labels)
    if "left" in cell:
        assert found.report is not None
        assert found.report.labels["Pleural Effusion"].side is Side.LEFT


def test_a_column_of_files_can_be_named(tmp_path: Path) -> None:
    folder = images_of(tmp_path / "set", "a.png", "b.png")
    table = write(tmp_path / "t.csv", "id,scan,Edema\n1,a.png,1\n2,c.png,1\n")
    collection = open_collection(folder, table=table, file_column="scan")
    assert collection.described == (2, 1)
    assert collection.columns_used == "file from scan, report from id, 1 column of labels"
    assert present(read(folder, table, "scan")["a.png"]) == ["Edema"]


def test_folders_named_after_findings(tmp_path: Path) -> None:
    names = [
        "COVID/a.png",
        "Effusion/b.png",
        "Emphysema/c.png",
        "Normal/images/d.png",
        "Viral Pneumonia/e.png",
        "f.png",
    ]
    found = read(images_of(tmp_path, *names))
    assert [present(found[name]) for name in names] == [[], ["Pleural Effusion"], [], ["No Finding"], ["Pneumonia"], []]
    layout = open_collection(tmp_path).layout
    assert layout is not None
    assert (layout.name, layout.tables) == ("folders named after findings", {})
    assert layout.caveats == [
        "labels that are none of the 14 observations are left out: Emphysema (1)",
        "labels not understood: 1 kind in 1 image",
    ]


def table_of(tmp_path: Path, header: str, *rows: str) -> Collection:
    folder = images_of(tmp_path / "set", *(f"{place}.png" for place in range(len(rows))))
    lines = [f"path,{header}", *(f"{place}.png,{row}" for place, row in enumerate(rows))]
    return open_collection(folder, table=write(tmp_path / "t.csv", "\n".join(lines)))


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    found = table_of(tmp_path, "pid,target,tags,kg,Projection,Edema", "7,1,Mass,70,AP,1", "8,0,,80,PA,0")
    assert found.columns_used == (
        "file from path, patient from pid, 1 column of labels, tags; not read: target, kg, Projection;"
        " meant as Projection (view? --view-column)"
    )
    assert found.unclear == {}
    assert [one.patient for one in read_all(found)[0]] == ["7", "8"]


def test_a_table_without_a_header_shows_none_of_its_words(tmp_path: Path) -> None:
    found = table_of(tmp_path, "John Smith,2019-03-14,Small effusion on the left side now.", "a,b,c")
    assert found.columns_used.startswith("file from path; not read: 3, not shown")


def test_a_column_of_labels_that_names_no_finding_says_what_to_do(tmp_path: Path) -> None:
    found = table_of(tmp_path, "disease,view", "1,frontal", "0,AP", ",frontal view")
    assert found.columns_used == "file from path, view from view; not read: disease"
    (first, advice), (second, expected) = unclear_cells(found.unclear)
    assert first == "the column disease names no observation in any of 2 rows, and is not read"
    assert "where its 1 and 0 mark one of them, give the column that name: No Finding, " in advice
    assert second == "the column view of 2 rows is not understood (the first: line 2), and stays unknown"
    assert expected.startswith("expected PA, AP or LATERAL for a view")


def test_views_sexes_and_ages_that_are_understood_or_missing_are_not_counted(tmp_path: Path) -> None:
    rows = ["PA,F,7", "lateral,x,1-5", ",,", "n/a,unknown,>89", "decubitus,M,067Y"]
    assert table_of(tmp_path, "view,sex,age", *rows).unclear == {}
    assert table_of(tmp_path / "b", "view,sex,age", "from above,neither,old").unclear.keys() == {"view", "sex", "age"}
