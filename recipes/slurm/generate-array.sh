#!/bin/bash
# A data set in 16 parts, one GPU each, that need no connection to each other; the last one to end completes it.
# sbatch generate-array.sh; parts that failed are made again by sbatch --array=3,7 generate-array.sh.
#SBATCH --job-name=cxrsynth-generate
#SBATCH --array=1-16
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

parts=${PARTS:-16}              # as many as in --array above; SLURM_ARRAY_TASK_COUNT would change with --array=3,7
reports=${REPORTS:-reports.csv} # or s3://bucket/reports.parquet
out=${OUT:-set}                 # a folder that all nodes see, or s3://bucket/set
model=${MODEL:-nano}
batch_size=${BATCH_SIZE:-64} # part of the plan: the same for all parts, and for a set that is resumed
precision=${PRECISION:-auto} # part of the plan: where cards or CPUs differ, name one, such as bf16
id_key=${ID_KEY:-id.key} # one key for all parts: (umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > id.key)

exec cxrsynth generate "$reports" --out "$out" --model "$model" --id-key "$id_key" \
    --batch-size "$batch_size" --precision "$precision" --part "$SLURM_ARRAY_TASK_ID/$parts"
