#!/bin/bash
# One run of a recipe for each of 3 seeds, one GPU each: how much of a gain is luck.
#SBATCH --job-name=cxrsynth-tune
#SBATCH --array=0-2
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

recipe=${RECIPE:-nano-rlcf} # a file, or a name that `cxrsynth recipes list` shows
runs=${RUNS:-runs}          # a folder that all nodes see

exec cxrsynth tune "$recipe" --out "$runs/seed-$SLURM_ARRAY_TASK_ID" --set "seed=$SLURM_ARRAY_TASK_ID"
