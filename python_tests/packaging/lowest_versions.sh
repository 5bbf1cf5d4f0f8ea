#!/usr/bin/env bash
# Trains, resumes, evaluates, probes, compares and plots with the oldest Python packages that pyproject.toml declares.
#
#     bash python_tests/packaging/lowest_versions.sh [PYTHON]
#
# torch and trbext's binaries stay those of PYTHON (default: python), which must have trbext installed: an older torch is
# a matter of its headers, which test_torch_headers.py compiles against. Everything else comes into a new environment.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# 1. The oldest versions that go together: numpy 1.26 is declared, and newer pyarrow wants a newer numpy.
"$python" -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
uv=("$folder/env/bin/uv" pip)
echo 'pyarrow==21.*' >"$folder/constraints"
"${uv[@]}" compile -q --python "$folder/env/bin/python" --no-annotate --no-header --resolution lowest-direct \
    --constraint "$folder/constraints" --extra test pyproject.toml >"$folder/all"
grep -Ev '^(torch|triton|nvidia-|cuda-|cmake|ninja)' "$folder/all" >"$folder/oldest"
"${uv[@]}" install -q --python "$folder/env/bin/python" --no-deps -r "$folder/oldest"

# 2. What is left, torch and the binaries, from the environment of PYTHON, which comes after this one's own packages.
"$folder/env/bin/python" - "$("$python" -c 'import json, site; print(json.dumps(site.getsitepackages()))')" <<'CODE'
import json, pathlib, site, sys

lines = [f"import site; site.addsitedir({folder!r})\n" for folder in json.loads(sys.argv[1])]
pathlib.Path(site.getsitepackages()[0], "zz_other_environment.pth").write_text("".join(lines), encoding="utf-8")
CODE

# 3. Every module can be imported, each declared package is its oldest version, and a short subset of the tests passes.
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1
"$folder/env/bin/python" - "$folder/oldest" <<'CODE'
import importlib, pkgutil, sys
from importlib import metadata

import trbext

for line in open(sys.argv[1], encoding="utf-8"):
    name, _, version = line.split(";")[0].strip().partition("==")
    assert metadata.version(name) == version, f"{name} is {metadata.version(name)}, not {version}"
# Those that are loaded by verl, and import it, have a process of verl's to themselves.
of_verl = {"omegaconf", "ray", "transfer_queue", "verl"}
for module in pkgutil.walk_packages(trbext.__path__, "trbext."):
    if module.name.endswith(("__main__", ".worker", "libtrb_ops", "trbext.verl.plugin")):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if not module.name.startswith("trbext.verl.") or error.name.partition(".")[0] not in of_verl:
            raise
print("transformers", metadata.version("transformers"), "trl", metadata.version("trl"), "imported throughout")
CODE
"$folder/env/bin/python" -m pytest -q -p no:cacheprovider -W 'error:decoding in lockstep' \
    python_tests/{runs/test_locale,training/test_checkpoint_weights,studies/test_compare_statistics}.py \
    python_tests/{runs/test_yaml_file,evaluation/test_math_verifier}.py
