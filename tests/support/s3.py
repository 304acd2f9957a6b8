"""moto's S3 server in a process of its own."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.support.servers import free_port

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@dataclass
class S3Server:
    """The running server and a client for looking behind the store's back."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @classmethod
    def start(cls) -> S3Server:
        port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        server = cls(f"http://127.0.0.1:{port}", process)
        until = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{server.url}/moto-api/", timeout=5):
                    return server
            except OSError:
                assert process.poll() is None, "moto's server has ended"
                assert time.monotonic() < until, "moto's server does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    @cached_property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
        )

    def bucket(self) -> Bucket:
        """A fresh one."""
        name = f"emq-{secrets.token_hex(6)}"
        self.client.create_bucket(Bucket=name)
        return Bucket(self, name)


@dataclass
class Bucket:
    """A bucket of one test."""

    server: S3Server
    name: str

    @property
    def store_url(self) -> str:
        """What ``EMQ_STORE_URL`` says of it."""
        return self.at(self.server.port)

    def at(self, port: int) -> str:
        """The same behind a proxy."""
        return f"s3://{self.name}/pre/fix?endpoint=http://127.0.0.1:{port}"

    def listed(self) -> list[str]:
        listed = self.server.client.list_objects_v2(Bucket=self.name)
        return [entry["Key"] for entry in listed.get("Contents", [])]

    def unfinished(self) -> list[str]:
        """Uploads in parts that were neither ended nor given up."""
        return [u["Key"] for u in self.server.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]
