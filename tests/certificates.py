"""Certificates for tests of TLS, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """A certificate authority of its own in a folder: ``pem`` is what its clients trust."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        self.pem = folder / f"{name}.pem"
        key = folder / f"{name}.key"
        self._run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(self.pem),
                  "-subj", f"/CN={name}", "-days", "2")  # fmt: skip

    def certify(self, name: str, address: str = "") -> tuple[Path, Path]:
        """The certificate of ``name`` (a server's with ``address``, such as ``IP:127.0.0.1``), and its key."""
        pem, key, request, extra = (self._folder / f"{name}.{end}" for end in ("pem", "key", "csr", "ext"))
        if pem.exists():
            return pem, key
        extra.write_text(f"subjectAltName={address}\n" if address else "basicConstraints=CA:FALSE\n")
        self._run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(request),
                  "-subj", f"/CN={name}")  # fmt: skip
        self._run("x509", "-req", "-in", str(request), "-CA", str(self.pem), "-CAkey",
                  str(self._folder / f"{self._name}.key"), "-CAcreateserial", "-out", str(pem), "-days", "2",
                  "-extfile", str(extra))  # fmt: skip
        return pem, key

    def locked(self, key: Path, password: str) -> Path:
        """The same key under a password."""
        path = key.with_suffix(".locked")
        self._run("rsa", "-aes256", "-passout", f"pass:{password}", "-in", str(key), "-out", str(path))
        return path

    def keystore(self, name: str, address: str) -> Path:
        """A server's key and certificate in one file, as Kafka reads it."""
        pem, key = self.certify(name, address)
        path = self._folder / f"{name}.store.pem"
        path.write_text(key.read_text() + pem.read_text())
        return path

    @staticmethod
    def _run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
