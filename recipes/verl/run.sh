#!/usr/bin/env bash
# Trains one of the paper's pairs in verl: one node, or the head of a Ray cluster of N nodes with 8 GPUs each.
#     recipes/verl/run.sh qwen3-1.7b-8b|qwen3-0.6b-4b trb|fixed|opd [N] [overrides of verl ...]
# On a cluster: `ray start --head` here, `ray start --address=HEAD:6379` on the other nodes, then this with N.
set -euo pipefail
usage() { sed -n '3s/^# *//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
pair=$1 method=$2 nodes=${3:-1}
shift 2
[ $# -eq 0 ] || shift
folder=$(cd "$(dirname "$0")" && pwd)
[ -f "$folder/$pair.yaml" ] || usage
case $method in trb | fixed | opd) ;; *) usage ;; esac
[[ $nodes =~ ^[1-9][0-9]*$ ]] || usage

python -c 'import trbext.verl.plugin' # says in one line what is wrong: verl itself would not
exec python -m verl.trainer.main_ppo --config-dir "$folder" --config-name "$pair" \
    "trb=$method" "trainer.nnodes=$nodes" "trainer.experiment_name=$pair-$method" "$@"
