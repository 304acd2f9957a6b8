"""A receiver of traces: OTLP over HTTP, as OpenTelemetry's collector takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.waiting import wait_until


def about(span: Span) -> dict[str, Any]:
    """A span's attributes."""
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


@dataclass
class Collector:
    """What a receiver got."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    @property
    def settings(self) -> dict[str, str]:
        """The variables that send traces here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}

    def take(self, body: bytes) -> None:
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {a.value.string_value for a in part.resource.attributes if a.key == "service.name"}
            self.spans += [span for scope in part.scope_spans for span in scope.spans]

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id.hex() == trace]

    async def named(self, trace: str, *names: str) -> dict[str, Span]:
        """The spans of a trace once all of these are there; the last of each name."""
        await wait_until(lambda: {*names} <= {span.name for span in self.of(trace)}, 20, f"{names} of {trace}")
        return {span.name: span for span in self.of(trace)}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A receiver on a thread of its own."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            found.take(body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_port}"
        yield found
        server.shutdown()
        thread.join()
