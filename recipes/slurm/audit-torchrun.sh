#!/bin/bash
# An audit whose images are scored by 2 nodes with 8 GPUs each; the first process decides and writes the results.
#SBATCH --job-name=cxrsynth-audit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=32
#SBATCH --mem=256G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

images=${IMAGES:-set}    # a folder that all nodes see, or s3://bucket/set
out=${OUT:-set-audit}    # a folder that all nodes see
id_key=${ID_KEY:-id.key} # the same on all nodes
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer takes it from the job since Slurm 22.05

# Without the option, the other nodes would wait for one whose command has failed.
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${GPUS_PER_NODE:-8}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:${PORT:-29500}" \
    -m cxrsynth audit "$images" --out "$out" --id-key "$id_key"
