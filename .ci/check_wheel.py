"""Check what a wheel holds: all of the package's files, nothing else, and less than 8 MB."""

import sys
import zipfile
from pathlib import Path

wheel = Path(sys.argv[1])
names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
wanted = {path.as_posix() for path in Path("neuroprobe").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
megabytes = wheel.stat().st_size / 1e6
if names != wanted:
    sys.exit(f"{wheel.name}: missing {sorted(wanted - names)}, not wanted {sorted(names - wanted)}")
if not megabytes < 8:
    sys.exit(f"{wheel.name}: {megabytes:.1f} MB, expected less than 8")
print(f"{wheel.name}: {len(names)} files, {megabytes:.1f} MB")
