"""Receives OTLP logs over HTTP as strictly as the official messages of opentelemetry-proto do.

otlp_receiver.py PORT OUT: answers POST /v1/logs, and writes each log record as one line of JSON to OUT. Bodies that the
messages cannot read, unknown fields included, are answered 400.
"""

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from google.protobuf import json_format
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

PORT, OUT = int(sys.argv[1]), sys.argv[2]


def check(message):
    """Fails on a field that the messages do not have, at any depth."""
    if len(UnknownFieldSet(message)):
        raise ValueError("unknown field in " + type(message).__name__)
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for one in value if field.is_repeated else [value]:
                check(one)


def from_json(text):
    """The JSON of OTLP has trace ids in hexadecimal digits, that of protobuf in base64; enums are numbers."""
    whole = json.loads(text)
    for resource in whole["resourceLogs"]:
        for scope in resource["scopeLogs"]:
            for record in scope["logRecords"]:
                if not isinstance(record["severityNumber"], int):
                    raise ValueError("an enum is a number")
                if "traceId" in record:
                    record["traceId"] = base64.b64encode(bytes.fromhex(record["traceId"])).decode()
    return json_format.ParseDict(whole, ExportLogsServiceRequest(), ignore_unknown_fields=False)


def plain(attributes):
    def value(any_value):
        return getattr(any_value, any_value.WhichOneof("value"))

    found = {attribute.key: value(attribute.value) for attribute in attributes}
    if len(found) != len(attributes):
        raise ValueError("a key twice")
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        kind = self.headers["content-type"]
        try:
            if self.path != "/v1/logs":
                raise ValueError("path")
            if kind == "application/x-protobuf":
                request = ExportLogsServiceRequest.FromString(body)
                answer = ExportLogsServiceResponse().SerializeToString()
            elif kind == "application/json":
                request = from_json(body)
                answer = b"{}"
            else:
                raise ValueError(kind)
            check(request)
            with open(OUT, "a", encoding="utf-8") as out:
                for resource in request.resource_logs:
                    for scope in resource.scope_logs:
                        if not scope.scope.name:
                            raise ValueError("no scope")
                        for record in scope.log_records:
                            out.write(json.dumps({
                                "resource": plain(resource.resource.attributes),
                                "time": record.time_unix_nano,
                                "observed": record.observed_time_unix_nano,
                                "severity": record.severity_number,
                                "severity_text": record.severity_text,
                                "event": record.event_name,
                                "body": record.body.string_value,
                                "attributes": plain(record.attributes),
                                "trace": record.trace_id.hex(),
                            }) + "\n")
            status = 200
        except Exception as error:
            print(repr(error), file=sys.stderr, flush=True)
            status, answer = 400, b""
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
