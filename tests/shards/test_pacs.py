"""A real archive (Orthanc) accepts our objects over the network and returns them unchanged."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from pydicom import dcmread

from cxrsynth.settings import SopClass
from cxrsynth.shards.dicom_file import to_bytes
from tests.programs import require
from tests.shards.test_dicom import SETTINGS, made

pytestmark = pytest.mark.filterwarnings("error::UserWarning")

START_TIMEOUT_S = 30


@dataclass(frozen=True)
class Archive:
    """A running Orthanc on loopback."""

    dicom_port: int
    http_port: int

    def get(self, path: str, accept: str = "application/json") -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", headers={"Accept": accept})
        # Loopback needs no proxy, whatever the environment says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as response:
            return bytes(response.read())

    def read(self, path: str) -> Any:
        return json.loads(self.get(path))


def wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> Archive:
    """The archive, once it answers, with the ports the system gave it for port 0; it opens the DICOM one first."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        own = psutil.Process(process.pid)
        connections = getattr(own, "net_connections", None) or own.connections  # its name before psutil 6
        opened = sorted(connections("tcp"), key=lambda connection: connection.fd)
        listening = [connection.laddr.port for connection in opened if connection.status == psutil.CONN_LISTEN]
        if len(listening) == 2:
            try:
                archive = Archive(*listening)
                archive.get("/system")
            except (urllib.error.URLError, OSError):
                pass
            else:
                return archive
        time.sleep(0.05)
    pytest.fail(f"Orthanc did not answer:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    program = require("Orthanc", "orthanc")
    folder = tmp_path_factory.mktemp("orthanc")
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "DicomAet": "ORTHANC",
        "DicomPort": 0,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "HttpPort": 0,
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "SslEnabled": False,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=output, stderr=output, cwd=folder)
    try:
        yield wait_until_ready(process, log)
    finally:
        process.kill()  # asked to end, it takes three seconds
        process.wait()


def test_an_archive_keeps_images_and_markers(archive: Archive, tmp_path: Path) -> None:
    program = require("storescu", "dcmtk")
    computed = replace(SETTINGS, sop_class=SopClass.CR)
    # Two reports, one as SC and one as CR, two images each.
    radiographs = [
        made(report, index, use) for report, use in (("a1", SETTINGS), ("b2", computed)) for index in range(2)
    ]
    paths = [tmp_path / f"{number}.dcm" for number in range(len(radiographs))]
    for path, radiograph in zip(paths, radiographs, strict=True):
        path.write_bytes(to_bytes(radiograph))

    # -xe proposes only the transfer syntax of our files, so nothing is converted on the way.
    command = [program, "-xe", "-aec", "ORTHANC", "127.0.0.1", str(archive.dicom_port), *map(str, paths)]
    sent = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (sent.returncode, sent.stderr) == (0, "")

    counts = archive.read("/statistics")
    found = [counts[f"Count{level}"] for level in ("Patients", "Studies", "Series", "Instances")]
    assert found == [2, 2, 2, len(radiographs)]

    by_uid = {radiograph.SOPInstanceUID: radiograph for radiograph in radiographs}
    for instance in archive.read("/instances"):
        tags = archive.read(f"/instances/{instance}/tags?short")
        radiograph = by_uid.pop(tags["0008,0018"])
        assert tags["0008,001c"] == "YES"
        assert tags["0020,4000"] == radiograph.ImageComments
        stored = dcmread(BytesIO(archive.get(f"/instances/{instance}/file", "application/dicom")))
        assert stored == radiograph
        assert np.array_equal(stored.pixel_array, radiograph.pixel_array)
        # Rendered by the archive's own decoder, not by pydicom.
        rendered = Image.open(BytesIO(archive.get(f"/instances/{instance}/image-uint16", "image/png")))
        assert np.array_equal(np.asarray(rendered), radiograph.pixel_array)
    assert by_uid == {}
