"""The one module that uses OpenTelemetry, an optional dependency: spans with given times, sent by the SDK's exporter.

Where they go and how many are taken is said by OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME`` …).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker.jobs.traces import Kind

CLOSE_S = 3.0
"""What is not sent by then when the broker ends is lost."""
_KINDS = {"producer": SpanKind.PRODUCER, "consumer": SpanKind.CONSUMER, "internal": SpanKind.INTERNAL}
_CONTEXT = TraceContextTextMapPropagator()


class OtelSpan:
    """A span that has begun."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.traceparent: str | None = None
        if span.get_span_context().trace_flags.sampled:
            context = span.get_span_context()
            self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, at_ns: int, error: str = "") -> None:
        """End it, as failed when there is an ``error``."""
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(at_ns)


class OtelTracer:
    """Makes spans. Sending them is done by a thread of the SDK, so nothing here waits."""

    def __init__(self, version: str) -> None:
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "emq"}
        self._exporter = OTLPSpanExporter()
        resource = Resource.create({**named, "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("emq", version)

    def begin(
        self, name: str, parent: str | None, at_ns: int, kind: Kind, attributes: Mapping[str, str | int]
    ) -> OtelSpan:
        """Begin a span under ``parent`` (a ``traceparent``; what is none is ignored)."""
        context = _CONTEXT.extract({"traceparent": parent} if parent else {})
        given = {f"emq.{field}": value for field, value in attributes.items()}
        return OtelSpan(self._tracer.start_span(name, context, kind=_KINDS[kind], attributes=given, start_time=at_ns))

    async def close(self) -> None:
        """Send what is left, for a short time."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, CLOSE_S)
        if ending.is_alive():  # it still tries to send
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
