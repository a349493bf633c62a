#!/usr/bin/env bash
# Install what the repository needs for one Python: bash scripts/setup.sh .venv/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."

python=$1
supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

if [[ $python == .venv/bin/python && ! -x $python ]]; then
    base=
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if command -v "$candidate" >/dev/null && "$candidate" -c "$supported" 2>/dev/null; then
            base=$candidate
            break
        fi
    done
    if [[ -z $base ]]; then
        echo "error: no Python 3.10 to 3.13 found. Install one, or name it: make PYTHON=/path/to/python test" >&2
        exit 1
    fi
    "$base" -m venv .venv || {
        rm -rf .venv
        echo "error: $base cannot make virtual environments. On Debian: apt-get install python3-venv" >&2
        exit 1
    }
fi
if ! "$python" -c "$supported"; then
    echo "error: $python is not Python 3.10 to 3.13. Use another: make PYTHON=/path/to/python test" >&2
    exit 1
fi

"$python" -m pip install -q -r requirements.txt
if ! "$python" -c 'import dassl' 2>/dev/null; then # upstream Dassl, where it is installed, is used
    "$python" -m pip install -q --no-build-isolation -e ./dassl-lite
fi
