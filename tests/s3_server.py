"""A real S3 server on this machine, moto's, that can be told to fail or to check keys."""

import threading
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

# The key that documentation of S3 uses: the server wants it of this shape.
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "not-secret"}


class S3Server:
    """Speaks HTTP at `url`. With `fail_every` N, every N-th request is answered by 503, as an overloaded store does.

    Lists of uploads come in pages of `uploads_a_page`, as S3 gives them; moto's own have all on one.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.fail_every, self.failed, self.requests = 0, 0, 0
        self.uploads_a_page = 1000
        self._lock = threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.environment = KEYS | {"AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1"}
        self.environment |= {"AWS_EC2_METADATA_DISABLED": "true"}
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests += 1
            fails = self.fail_every and self.requests % self.fail_every == 0
            self.failed += bool(fails)
        if fails:
            request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>"]
        asked = parse_qs(request["QUERY_STRING"], keep_blank_values=True)
        if request["REQUEST_METHOD"] == "GET" and "uploads" in asked:
            return self._page_of_uploads(request, start, asked)
        return self._moto(request, start)  # type: ignore[no-any-return]

    def _page_of_uploads(
        self, request: dict[str, Any], start: Callable[..., Any], asked: dict[str, list[str]]
    ) -> Iterable[bytes]:
        """Those after the markers, by key, and of one key by id."""
        from werkzeug.wrappers import Response

        answer = Response.from_app(self._moto, request)
        root = ElementTree.fromstring(answer.get_data())
        space = root.tag.removesuffix("ListMultipartUploadsResult")
        uploads = {
            (one.findtext(f"{space}Key", ""), one.findtext(f"{space}UploadId", "")): one
            for one in root.findall(f"{space}Upload")
        }
        key, upload_id = (asked.get(name, [""])[0] for name in ("key-marker", "upload-id-marker"))
        # A key without an id comes after all uploads to it.
        left = sorted(one for one in uploads if (one > (key, upload_id) if upload_id else one[0] > key))
        page = left[: self.uploads_a_page]
        for one in uploads.keys() - set(page):
            root.remove(uploads[one])
        if len(left) > len(page):
            found = {"IsTruncated": "true", "NextKeyMarker": page[-1][0], "NextUploadIdMarker": page[-1][1]}
            for name, value in found.items():
                there = root.find(f"{space}{name}")
                (ElementTree.SubElement(root, f"{space}{name}") if there is None else there).text = value
        answer.set_data(ElementTree.tostring(root))
        return answer(request, start)

    def check_keys(self) -> None:
        """From now on, refuse every key: none has been given out."""
        self._post("reset-auth", b"0")

    def reset(self) -> None:
        """Empty the store, and accept every key."""
        self.fail_every, self.failed, self.uploads_a_page = 0, 0, 1000
        self._post("reset-auth", b"inf")
        self._post("reset", b"")

    def close(self) -> None:
        self._server.shutdown()

    def _post(self, what: str, content: bytes) -> None:
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.url}/moto-api/{what}", data=content, headers=plain, method="POST")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server, until the context ends."""
    server = S3Server()
    try:
        yield server
    finally:
        server.close()
