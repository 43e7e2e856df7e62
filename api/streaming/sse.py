"""Envelopes as server-sent events: `id:` seq, `event:` kind, `data:` one JSON object."""

from collections.abc import Iterable

import orjson

from domain.events import Envelope, TextDelta

HEARTBEAT = b": ping\n\n"  # a comment stands alone: after an `id:` line it breaks the OpenAI SDK's decoder
RETRY = b"retry: 1000\n\n"  # ms; a browser that is cut off comes back after that long, with its cursor


def gap_frame(run_id: str, first: int, last: int) -> bytes:
    """Events that are kept no more: from `first` to `last`. It has no `id`: it is not an event of the run."""
    return b"event: gap\ndata: " + orjson.dumps({"kind": "gap", "run_id": run_id, "from": first, "to": last}) + b"\n\n"


class SseRenderer:
    """Renders the events of one run. What does not change from token to token is encoded once."""

    def __init__(self) -> None:
        self._run = b""
        self._run_id = ""

    def render(self, envelopes: Iterable[Envelope]) -> bytes:
        """All of them, in order, ready to be sent in one piece."""
        return b"".join([self._one(envelope) for envelope in envelopes])

    def _one(self, envelope: Envelope) -> bytes:
        if envelope.run_id != self._run_id:
            self._run_id = envelope.run_id
            self._run = b'","run_id":' + orjson.dumps(envelope.run_id) + b',"seq":'
        event = envelope.event
        seq = b"%d" % envelope.seq
        if type(event) is TextDelta:  # nearly all events: no model_dump for each token
            fields = orjson.dumps({"text": event.text, "message_id": event.message_id, "done": event.done})
        else:
            fields = orjson.dumps(event.model_dump(mode="json", exclude={"kind"}))
        kind = event.kind.encode()
        moment = orjson.dumps(envelope.at, option=orjson.OPT_UTC_Z)
        rest = fields[1:] if fields == b"{}" else b"," + fields[1:]
        return b"".join(
            (
                b"id: ",
                seq,
                b"\nevent: ",
                kind,
                b'\ndata: {"kind":"',
                kind,
                self._run,
                seq,
                b',"at":',
                moment,
                rest,
                b"\n\n",
            )
        )
