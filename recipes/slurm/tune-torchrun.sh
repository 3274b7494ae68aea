#!/bin/bash
# One run of a recipe on 2 nodes with 8 GPUs each. If a worker dies, torchrun tries to start all of them again; if the job
# fails all the same, submit it again: it resumes from the last checkpoint. docs/many-machines.md says what was tested.
#SBATCH --job-name=cxrsynth-tune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=32
#SBATCH --mem=256G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

recipe=${RECIPE:-nano-rlcf} # a file, or a name that `cxrsynth recipes list` shows
out=${OUT:-runs/tuned}      # a folder that all nodes see
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer takes it from the job since Slurm 22.05

# Without the option, the other nodes would wait for one whose command has failed.
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${GPUS_PER_NODE:-8}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:${PORT:-29500}" \
    -m cxrsynth tune "$recipe" --out "$out"
