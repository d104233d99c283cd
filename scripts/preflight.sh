#!/bin/sh
# Name every missing system package at once, before pip fails half-way with a compiler's message.
set -u
python="$1"
missing=""
command -v g++ >/dev/null 2>&1 || missing="$missing g++"
command -v git >/dev/null 2>&1 || missing="$missing git"
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' 2>/dev/null \
  || missing="$missing python3-dev"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: $python is not Python 3.11 or newer; run: make PYTHON=python3.11 ..." >&2
  exit 2
fi
if [ -n "$missing" ]; then
  echo "error: missing system packages:$missing" >&2
  echo "       on Debian: apt-get install$missing" >&2
  exit 2
fi
