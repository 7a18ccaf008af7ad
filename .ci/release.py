"""Packs a release from a built artifact, with the same bytes from the same bytes: `make release` calls it.

    python .ci/release.py build/artifact build

It writes the artifact as a zip, the template that names it, LICENSE and README.md, to which the template's
metadata lead, and SHA256SUMS. The template needs no build: `sam deploy` and `sam package` upload a local zip
as it is.
https://docs.aws.amazon.com/serverless-application-model/latest/developerguide/sam-resource-function.html
"""

import hashlib
import re
import shutil
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: A zip knows no time zone, and no earlier year.
BEGINNING = (1980, 1, 1, 0, 0, 0)
READABLE = 0o100644


def version(template: str) -> str:
    """Read the template's version."""
    (found,) = re.findall(r"^ +SemanticVersion: (\S+)$", template, re.MULTILINE)
    return str(found)


def pack(artifact: Path, archive: Path) -> None:
    """Write a zip that depends on names and bytes only."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        for path in sorted(artifact.rglob("*"), key=lambda each: each.relative_to(artifact).as_posix()):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(artifact).as_posix(), BEGINNING)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, READABLE << 16
                zipped.writestr(entry, path.read_bytes())


def packaged(template: str, archive: str) -> str:
    """Name the zip in place of the folder, and leave out how to build it."""
    for was, becomes, times in (
        (r"^( +CodeUri:) handler/$", rf"\1 {archive}", 2),
        (r"^ +BuildMethod: makefile.*\n", "", 2),
    ):
        template, count = re.subn(was, becomes, template, flags=re.MULTILINE)
        if count != times:
            raise ValueError(f"template.yaml has {count} times, not {times} times: {was}")
    # What is left of a function's Metadata without it may be nothing.
    return re.sub(r"^    Metadata:\n(?=    \w)", "", template, flags=re.MULTILINE)


def release(artifact: Path, target: Path) -> Path:
    """Write the release's files into a folder of its version, and give that back."""
    template = (ROOT / "template.yaml").read_text()
    name = f"usage-plan-key-{version(template)}"
    folder = target / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pack(artifact, folder / f"{name}.zip")
    (folder / "template.yaml").write_text(packaged(template, f"{name}.zip"))
    for file in ("LICENSE", "README.md"):
        shutil.copyfile(ROOT / file, folder / file)
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())
    ]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


if __name__ == "__main__":
    made = release(*map(Path, sys.argv[1:]))
    print((made / "SHA256SUMS").read_text(), end="")
    print(f"in {made}")
