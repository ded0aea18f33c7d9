"""OCI image archives of single programs, without a daemon: one layer, one
platform, the same bytes for the same programs. `docker load`, `podman load` and
`ctr images import` read them."""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

# OCI's name of an architecture, and the folder of its libraries.
ARCHITECTURES = {
    "Advanced Micro Devices X86-64": ("amd64", "x86_64-linux-gnu"),
    "AArch64": ("arm64", "aarch64-linux-gnu"),
}


class Elf:
    """What a program says of itself."""

    def __init__(self, path):
        said = subprocess.run(
            ["readelf", "-Whdl", path], check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        ).stdout
        machine = re.search(r"Machine:\s+(.*)", said)[1]
        if machine not in ARCHITECTURES:
            raise SystemExit(f"{path}: {machine} is no architecture of an image")
        self.architecture, self.triplet = ARCHITECTURES[machine]
        interpreter = re.search(r"program interpreter: (.*)\]", said)
        self.interpreter = interpreter and interpreter[1]
        self.needed = re.findall(r"\(NEEDED\).*\[(.*)\]", said)


def libraries(programs):
    """Where the dynamic linker of the image looks: the file of this host, for all
    that `programs` need."""
    found, todo = {}, list(programs)
    while todo:
        elf = Elf(todo.pop())
        # The dynamic linker is loaded already when a library asks for it.
        wanted = [(name, f"lib/{elf.triplet}/{name}") for name in elf.needed if not name.startswith("ld-")]
        if elf.interpreter:
            wanted.append((Path(elf.interpreter).name, elf.interpreter.lstrip("/")))
        for name, at in wanted:
            if at not in found:
                found[at] = library(name, elf)
                todo.append(found[at])
    return found


def library(name, elf):
    # Debian's own place, that of its cross compilers, others' place.
    for folder in (f"/lib/{elf.triplet}", f"/usr/lib/{elf.triplet}", f"/usr/{elf.triplet}/lib", "/lib64", "/usr/lib64"):
        path = Path(folder, name)
        if path.exists() and Elf(path).architecture == elf.architecture:
            return path
    raise SystemExit(f"no {name} for {elf.architecture} on this machine")


def layer(files, time):
    """A tar of `files`, {path: bytes or a file of this host}; what is below bin/
    is executable."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        folders = {str(parent) for path in files for parent in Path(path).parents} - {"."}
        for name in sorted(folders | set(files)):
            info = tarfile.TarInfo(name)
            info.mtime = time
            if name in folders:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
                continue
            content = files[name] if isinstance(files[name], bytes) else Path(files[name]).read_bytes()
            info.size = len(content)
            info.mode = 0o755 if "bin/" in name or ".so" in name else 0o644
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def archive(path, reference, files, config, architecture, time):
    """Writes the image `reference` to `path`; the size of its layer, compressed."""
    plain = layer(files, time)
    packed = gzip.compress(plain, 6, mtime=0)
    blobs = {}

    def blob(content, kind):
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    layers = [blob(packed, "layer.v1.tar+gzip")]
    created = subprocess.run(
        ["date", "--utc", f"--date=@{time}", "+%Y-%m-%dT%H:%M:%SZ"], check=True, capture_output=True, text=True
    ).stdout.strip()
    image = blob(
        encode({
            "created": created,
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]},
            "history": [{"created": created, "created_by": "k8s/images/build"}],
        }),
        "config.v1+json",
    )
    manifest = blob(
        encode({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": image,
            "layers": layers,
        }),
        "manifest.v1+json",
    )
    manifest["platform"] = {"architecture": architecture, "os": "linux"}
    manifest["annotations"] = {
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
    }
    entries = {
        "oci-layout": encode({"imageLayoutVersion": "1.0.0"}),
        "index.json": encode({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [manifest],
        }),
        # For Docker before 25.
        "manifest.json": encode([{
            "Config": name_of(image),
            "RepoTags": [reference],
            "Layers": [name_of(layers[0])],
        }]),
        **blobs,
    }
    Path(path).write_bytes(layer(entries, time))
    return len(packed)


def name_of(descriptor):
    return "blobs/" + descriptor["digest"].replace(":", "/")


def encode(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
