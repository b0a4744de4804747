"""Files: uploaded in pieces, and only for the project that uploaded them."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from typing import TYPE_CHECKING

import attrs

from llm_router.emulator.calls import parsed
from llm_router.emulator.refusals import RefusalError
from llm_router.emulator.shelf import Shelf, timestamp
from llm_router.emulator.tokens import parts_of, turns
from llm_router.gemini_http.api_errors import file_denied, missing_key, not_found
from llm_router.gemini_http.framing import Body, dump
from llm_router.gemini_http.targets import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_router.domain.clock import Clock
    from llm_router.emulator.admission import Admission
    from llm_router.emulator.calls import Call

__all__ = ["FileService"]

_LIFE = 48 * 3600.0
"""Seconds that a file exists."""

_SERVICE = "https://generativelanguage.googleapis.com/v1beta"
_NAMED = re.compile(r"/v1(?:beta|alpha)?/(files/[^/?:#]+)$")
_PAGE, _LARGEST_PAGE = 10, 100


@attrs.frozen
class _File:
    """A file that was uploaded."""

    resource: Body
    data: bytes = attrs.field(repr=False)


@attrs.define
class _Upload:
    """An upload that has begun."""

    project: str
    described: Body
    kind: str
    data: bytearray = attrs.field(factory=bytearray, repr=False)


class FileService:
    """Takes, keeps and gives files."""

    def __init__(self, admission: Admission, clock: Clock) -> None:
        self._admission = admission
        self._clock = clock
        self._shelf: Shelf[_File] = Shelf("files/", clock)
        self._uploads: dict[str, _Upload] = {}
        self.operations: dict[Operation, Callable[[Call], Awaitable[None]]] = {
            Operation.UPLOAD: self._upload,
            Operation.LIST_FILES: self._list,
            Operation.GET_FILE: self._get,
            Operation.DELETE_FILE: self._delete,
            Operation.DOWNLOAD_FILE: self._download,
        }

    def require_named(self, call: Call) -> None:
        """Check that every file that the contents of a request name belongs to its project.

        A URI without the path of a file of this API, such as that of a video elsewhere, is not looked at.

        Raises:
            RefusalError: A file does not exist, or belongs to another project.
        """
        for turn in turns(call.body):
            for part in parts_of(turn):
                data = part.get("fileData") or part.get("file_data")
                uri = data.get("fileUri") or data.get("file_uri") if isinstance(data, dict) else None
                found = _NAMED.search(uri) if isinstance(uri, str) else None
                if found is not None:
                    self._require(found[1], call.project)

    def _require(self, name: str, project: str) -> _File:
        file = self._shelf.find(name, project)
        if file is None:
            raise RefusalError.of(file_denied(name))
        return file

    # ----------------------------------------------------------------- upload

    async def _upload(self, call: Call) -> None:
        upload_id = call.parameter("upload_id")
        await self._admission.enter(call, None)
        if upload_id:
            await self._continue(call, upload_id)
        elif not call.project:
            raise RefusalError.of(missing_key())
        elif call.header("x-goog-upload-protocol") != "resumable":
            raise RefusalError.invalid("The emulator takes resumable uploads only.")
        else:
            upload_id = secrets.token_urlsafe(24)
            described = (parsed(call.raw).get("file") or {}) if call.raw else {}
            kind = call.header("x-goog-upload-header-content-type") or "application/octet-stream"
            self._uploads[upload_id] = _Upload(call.project, described, kind)
            url = (
                f"{call.exchange.own_url}/upload/v1beta/files?upload_id={upload_id}&upload_protocol=resumable"
            )
            await call.exchange.reply(200, b"", headers=_status("active", b"x-goog-upload-url", url))

    async def _continue(self, call: Call, upload_id: str) -> None:
        """Serve a request of an upload that has begun; its id is its only credential."""
        upload = self._uploads.get(upload_id)
        if upload is None or call.project not in ("", upload.project):
            raise RefusalError.of(not_found())
        commands = {word.strip() for word in call.header("x-goog-upload-command").split(",")}
        if "cancel" in commands:
            del self._uploads[upload_id]
            await call.exchange.reply(200, b"", headers=_status("cancelled"))
            return
        if "upload" in commands:
            offset = call.header("x-goog-upload-offset")
            if offset != str(len(upload.data)):
                raise RefusalError.invalid(
                    f"The offset is not {len(upload.data)}, the bytes received so far."
                )
            upload.data += call.raw
        if "finalize" in commands:
            del self._uploads[upload_id]
            await call.exchange.reply(200, dump({"file": self._keep(upload)}), headers=_status("final"))
        else:
            received = str(len(upload.data))
            headers = _status("active", b"x-goog-upload-size-received", received)
            await call.exchange.reply(200, b"", headers=headers)

    def _keep(self, upload: _Upload) -> Body:
        """Make a file of a finished upload, and return its description."""
        now, data = self._clock.time(), bytes(upload.data)
        described = upload.described
        name = described.get("name") or self._shelf.new_name()
        kind = described.get("mimeType") or described.get("mime_type") or upload.kind
        display_name = described.get("displayName") or described.get("display_name")
        resource: Body = {
            "name": name,
            "mimeType": kind,
            "sizeBytes": str(len(data)),
            "createTime": timestamp(now),
            "updateTime": timestamp(now),
            "expirationTime": timestamp(now + _LIFE),
            "sha256Hash": base64.b64encode(hashlib.sha256(data).hexdigest().encode()).decode(),
            "uri": f"{_SERVICE}/{name}",
            "state": "ACTIVE",
            "source": "UPLOADED",
        }
        if display_name:
            resource["displayName"] = display_name
        self._shelf.put(name, upload.project, _File(resource, data), now + _LIFE)
        return resource

    # ------------------------------------------------------- list, get, delete

    async def _list(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        files = [file.resource for file in reversed(self._shelf.all_of(call.project))]
        page, token = call.page(files, _PAGE, _LARGEST_PAGE)
        body: Body = {"files": page} if page else {}
        await self._admission.reply(call, fault, body | ({"nextPageToken": token} if token else {}))

    async def _get(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        await self._admission.reply(call, fault, self._require(call.resource, call.project).resource)

    async def _delete(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        self._require(call.resource, call.project)
        self._shelf.remove(call.resource)
        await self._admission.reply(call, fault, {})

    async def _download(self, call: Call) -> None:
        """Send the bytes of a file; the API does so only for files that a model made."""
        await self._admission.enter(call, None)
        file = self._require(call.resource, call.project)
        await call.exchange.reply(200, file.data, file.resource["mimeType"])


def _status(status: str, name: bytes = b"", value: str = "") -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of an answer to an upload, with one more if ``name`` is given."""
    headers = ((b"x-goog-upload-status", status.encode()),)
    return (*headers, (name, value.encode())) if name else headers
