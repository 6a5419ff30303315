#!/bin/sh
# Names what the machine lacks, with the command that installs it. Usage: check_machine.sh PYTHON
missing=0
lack() { echo "missing: $1 - install it with: $2" >&2; missing=1; }

"$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  lack "Python >= 3.11 as '$1'" "apt-get install python3 python3-venv (or make PYTHON=/path/to/python3.11)"
"$1" -c 'import venv, ensurepip' 2>/dev/null || lack "the venv module of '$1'" "apt-get install python3-venv"
if command -v cargo >/dev/null 2>&1; then
  minor=$(cargo --version | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
  [ "${minor:-0}" -ge 85 ] || lack "Rust >= 1.85 (found $(cargo --version))" "rustup update stable"
else
  lack "cargo (Rust >= 1.85)" "rustup (see the Rust site), or apt-get install rustup && rustup default stable"
fi
command -v cc >/dev/null 2>&1 || lack "a C linker, cc" "apt-get install gcc libc6-dev"
exit $missing
