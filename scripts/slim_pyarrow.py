"""Rewrite a wheel of pyarrow without what reading and writing Parquet on a local disk does not need: 48 MiB become 33.

python scripts/slim_pyarrow.py pyarrow-....whl

The wheel is replaced: scripts/wheels.sh calls this for what it has downloaded itself, into a folder that was empty.
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

# Libraries are linked against Substrait's, which stays; of three copies of one the loader asks for that of the short version.
LEFT_OUT = re.compile(
    r"pyarrow/(tests|include|includes|src)/"
    r"|pyarrow/(libarrow(_python)?_flight|_flight|_substrait|_gcsfs|_s3fs|_azurefs|_hdfs|_orc|_dataset_orc|_cuda|_pyarrow_cpp_tests)\b"
    r"|pyarrow/libarrow_python(_parquet_encryption)?\.so(\.\d+\.\d+\.\d+)?$"
    r"|pyarrow/.*\.(pxd|pxi|pyx|h)$"
)


def main(path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as slim:
        for entry in whole.infolist():
            if LEFT_OUT.match(entry.filename):
                continue
            content = whole.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                content = b"".join(line for line in content.splitlines(True) if not LEFT_OUT.match(line.decode().split(",")[0]))
            slim.writestr(entry, content, zipfile.ZIP_DEFLATED)
    temporary.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
