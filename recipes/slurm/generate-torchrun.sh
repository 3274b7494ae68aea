#!/bin/bash
# A data set by 2 nodes with 8 GPUs each, as one job. If a worker dies, torchrun tries to start all of them again; if the
# job fails all the same, submit it again: finished shards are kept. docs/many-machines.md says what was tested.
#SBATCH --job-name=cxrsynth-generate
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

reports=${REPORTS:-reports.csv} # or s3://bucket/reports.parquet
out=${OUT:-set}                 # a folder that all nodes see, or s3://bucket/set
model=${MODEL:-nano}
batch_size=${BATCH_SIZE:-64} # part of the plan: the same for a set that is resumed
precision=${PRECISION:-auto} # part of the plan: where cards or CPUs differ, name one, such as bf16
id_key=${ID_KEY:-id.key}
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer takes it from the job since Slurm 22.05

# Without the option, the other nodes would wait for one whose command has failed.
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${GPUS_PER_NODE:-8}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:${PORT:-29500}" \
    -m cxrsynth generate "$reports" --out "$out" --model "$model" --id-key "$id_key" \
    --batch-size "$batch_size" --precision "$precision"
