#!/usr/bin/env bash
# First light: checks and times the CUDA kernels on a GPU in nine minutes, by one command.
#
#   bash benchmarks/first_light.sh                  # what it needs: docs/gpu/README.md; 560 s at most
#   bash benchmarks/first_light.sh --device cpu     # the same stages without a GPU; those that need one are left out
#
# Stages run one after another, each with its own time limit and log, and none stops the next. They end with a short
# table and in DIR: <device>.md, to be kept in docs/gpu/ as it is; chip.json, for the option --chip of
# `python -m benchmarks.models.cuda_model`; the profiler's report and the logs. The cheapest stages run first, so that an
# interrupted run has results too.
#
#   --output DIR   default runs/first_light
#   --limit S      seconds of all stages together, default 560 (cpu: an hour); later stages are cut to what is left
#   --wheel FILE   trbext for this Python, torch and GPU, used if the build fails or is too slow
#   --build no     builds nothing: takes the trbext that is installed, which must be of these sources
set -uo pipefail

device=cuda output=runs/first_light limit= wheel= build=yes
usage() { echo "first_light.sh: $1; usage: [--device cuda|cpu] [--output DIR] [--limit S] [--wheel FILE] [--build yes|no]" >&2; exit 2; }
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage "$1 needs a value"
    case $1 in
        --device) device=$2; [ "$2" = cuda ] || [ "$2" = cpu ] || usage "--device must be cuda or cpu, got $2" ;;
        --output) output=$2 ;;
        --limit) limit=$2; [[ $2 =~ ^[0-9]+$ ]] || usage "--limit must be whole seconds, got $2" ;;
        --wheel) wheel=$2; [ -f "$2" ] || usage "--wheel must be a file, got $2" ;;
        --build) build=$2; [ "$2" = yes ] || [ "$2" = no ] || usage "--build must be yes or no, got $2" ;;
        *) usage "unknown option $1" ;;
    esac
    shift 2
done
[ -z "$wheel" ] || [ "$build" = yes ] || usage "--build no takes no --wheel, got $wheel"

# A machine without a GPU may be slow, so its stages get more time.
patience=1
[ "$device" = cuda ] || patience=10
limit=${limit:-$((patience == 1 ? 560 : 3600))}
root=$(cd "$(dirname "$0")/.." && pwd) work=$(mktemp -d) python=${PYTHON:-python3} began=$(date +%s)
trap 'rm -rf "$work"' EXIT
mkdir -p "$output/logs" 2>/dev/null && output=$(cd "$output" && pwd) || usage "--output must be a folder that can be made, got $output"
rm -f "$output"/stages.tsv "$output"/chip.* "$output"/rows.ncu-rep "$output"/blend_cuda.* "$output"/*.md "$output"/logs/*.log
cd "$root"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
# A build or wheel goes into a folder of its own, which Python searches before the source folder of the same name. That
# one takes the binaries of an install, if they are of the same sources.
export PYTHONSAFEPATH=1 PYTHONPATH="$work/site:$root${PYTHONPATH:+:$PYTHONPATH}"
failures=0

record() { printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$output/stages.tsv"; }

left_out() { record "$1" "left out: $2" 0 0; echo "== $1: left out: $2"; }

# stage NAME SECONDS LINES COMMAND...: LINES of the log's end are shown. Returns the command's exit code.
stage() {
    local name=$1 seconds=$(($2 * patience)) lines=$3 left start rc outcome
    shift 3
    left=$((limit - $(date +%s) + began))
    if [ "$left" -lt 5 ]; then left_out "$name" "no time left"; return 1; fi
    [ "$seconds" -le "$left" ] || seconds=$left
    start=$(date +%s)
    timeout -s INT -k 10 "$seconds" "$@" >"$output/logs/$name.log" 2>&1
    rc=$?
    case $rc in
        0) outcome=ok ;;
        124 | 137) outcome="too slow" ;;
        *) outcome="failed ($rc)" ;;
    esac
    [ "$rc" = 0 ] || failures=$((failures + 1))
    record "$name" "$outcome" $(($(date +%s) - start)) "$seconds"
    echo "== $name: $outcome, $(($(date +%s) - start)) s"
    tail -n "$lines" "$output/logs/$name.log" | cut -c1-200
    return $rc
}

on_gpu() { # NAME COMMAND-THAT-MUST-EXIST: whether the stage can run at all
    if [ "$device" = cpu ]; then left_out "$1" "needs a GPU"; return 1; fi
    if [ -n "${2:-}" ] && ! command -v "$2" >/dev/null; then left_out "$1" "no $2 on PATH"; return 1; fi
}

machine() { # leaves the device's name for the report, and its architecture for the compilers
    ! command -v nvcc >/dev/null || nvcc --version | tail -n 2
    if [ "$device" = cpu ]; then
        echo "a CPU, dry run" >"$output/gpu.txt"
        grep -m 1 "model name" /proc/cpuinfo || true
        "$python" -c 'import platform, torch; print(f"Python {platform.python_version()}, torch {torch.__version__}")'
        return
    fi
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,memory.total --format=csv
    "$python" - "$output/gpu.txt" "$work/capability" <<'PYTHON'
import pathlib, platform, sys, torch
print(f"Python {platform.python_version()}, torch {torch.__version__}")
gpu = torch.cuda.get_device_properties(0)
print(gpu)
pathlib.Path(sys.argv[1]).write_text(gpu.name)
pathlib.Path(sys.argv[2]).write_text(f"{gpu.major}{gpu.minor}")
PYTHON
}

chip() { # its output stays in chip.partial if it fails or is ended
    nvcc -std=c++17 -O3 "-arch=sm_$1" benchmarks/chip_probe/main.cu -o "$work/chip_probe" || return 1
    if [ "$device" = cpu ]; then echo "compiled for sm_$1; not run: no GPU"; return 0; fi
    (set -o pipefail && "$work/chip_probe" | tee "$output/chip.partial") && mv "$output/chip.partial" "$output/chip.json"
}

build() { "$python" -m pip install -q --no-build-isolation --no-deps --no-index --target "$work/site" .; }

installed() { # an editable install of another checkout would come before these sources
    "$python" - "$root" <<'PYTHON'
import pathlib, sys, trbext
found, root = (pathlib.Path(path).resolve() for path in (trbext.__file__, sys.argv[1]))
if root not in found.parents:
    sys.exit(f"trbext must be of {root}, got that of {found.parent}")
PYTHON
}

take_wheel() {
    rm -rf "$work/site"
    "$python" -m pip install -q --no-deps --no-index --target "$work/site" "$wheel"
}

tests() { # -v and the faulthandler name a test that was under way when the stage was ended
    "$python" -m pytest -v -p no:cacheprovider -o faulthandler_timeout=60 --tb=short --maxfail 25 "$@"
}

ncu_text() {
    ncu --import "$output/rows.ncu-rep" --page details --print-details all |
        grep -E 'rows<|Duration|SM Frequency|DRAM (Throughput|Frequency)|Memory Throughput|L2 Hit|Issue|No Eligible|Eligible Warps|(Theoretical|Achieved) Occupancy|[Ss]tall|Registers Per Thread|Cluster Size|Max Active Clusters|Executed Ipc'
}

export -f machine chip build installed take_wheel tests ncu_text # `timeout` runs them in a shell of their own
export device output root work python wheel

export CMAKE_BUILD_PARALLEL_LEVEL=$(nproc)
echo "unknown device" >"$output/gpu.txt"
stage machine 60 12 bash -c machine
sm=$(cat "$work/capability" 2>/dev/null || echo 90)
if [ "$device" = cpu ]; then export TRB_CUDA=OFF; else export TRB_CUDA=ON TRB_CUDA_ARCHS="$sm-real"; fi
if command -v nvcc >/dev/null; then
    stage chip 60 40 bash -c "chip $sm"
else
    left_out chip "no nvcc on PATH"
fi
built() {
    if [ "$build" = yes ]; then stage build 150 3 bash -c build; else stage installed 60 1 bash -c installed; fi
}
if built || { [ -n "$wheel" ] && stage wheel 30 3 bash -c take_wheel; }; then
    stage smoke 60 26 "$python" -m benchmarks.first_light smoke --device "$device"
    stage time 75 30 "$python" -m benchmarks.first_light time --device "$device" --output "$output"
    if on_gpu peers; then
        stage peers 70 40 "$python" -m benchmarks.operators.blend_cuda --quick --output "$output"
    fi
    if on_gpu device_tests; then
        # These tests measure memory, so no others run beside them. Tests that compile take longest and come last.
        stage device_tests 120 20 bash -c "tests -m cuda -k 'not compute_sanitizer and not compiled_code' python_tests/cuda/test_cuda_device.py"
        # Several processes share the GPU: these tests need little of it.
        stage operator_tests 80 20 bash -c "tests -m cuda -n 6 python_tests/cuda/test_cuda_device_verify.py python_tests/operators/test_{edges,solve,blend,sample,bitwise,sweeps,verify,verify_edges,verify_layouts,verify_usage,torch_integration}.py"
    else
        stage operator_tests 120 5 bash -c "tests -q -m 'not ptx' -n 2 python_tests/operators/test_{edges,verify_edges}.py"
    fi
    if on_gpu ncu ncu; then
        stage ncu 60 3 ncu --clock-control none --profile-from-start off -f -o "$output/rows" -k regex:_rows \
            --set full "$python" -m benchmarks.first_light launches
        stage ncu_text 20 60 bash -c ncu_text
    fi
    for tool in memcheck racecheck; do
        if on_gpu "$tool"; then
            stage "$tool" 50 4 "$python" -m python_tests.cuda.compute_sanitizer --quick "$tool"
        fi
    done
    if on_gpu compiled_tests; then
        stage compiled_tests 70 10 bash -c "tests -m cuda -k compiled_code python_tests/cuda/test_cuda_device.py"
    fi
fi

tar -czf "$output/logs.tar.gz" -C "$output" logs
report=$(PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" "$python" -m benchmarks.first_light.report "$output")
echo
sed -n '/^| stage/,/^$/p' "$report"
echo "$(($(date +%s) - began)) s in all; $report"
[ "$failures" = 0 ]
