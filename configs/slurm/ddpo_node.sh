#!/usr/bin/env bash
# One node, all of its GPUs, one DDPO run. From the project's folder: sbatch configs/slurm/ddpo_node.sh   (not run on a cluster)
# Another run, or other knobs:
#   CONFIG=configs/ddpo/music_rlhf/fig8d.yaml OUT=runs/fig8d sbatch configs/slurm/ddpo_node.sh module.optimizer.learning_rate=1e-4
# The login node must have the models (compute nodes often have no network):
#   python tools/zoo.py pull audioldm2-music && python tools/zoo.py pull clap-music-audioset

#SBATCH --job-name=attune-ddpo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4    # one process a GPU: Lightning starts none of its own under srun
#SBATCH --gpus-per-node=4      # keep equal to ntasks-per-node; older clusters want --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --mem=128G             # main memory: every process reads the models before it moves them
#SBATCH --time=24:00:00
#SBATCH --requeue              # after a preemption the same command continues from the last checkpoint: resume=true below
#SBATCH --output=slurm-%x-%j.out

set -euo pipefail

config="${CONFIG:-configs/ddpo/music_rlhf/fig5d.yaml}"
memory="${MEMORY:-configs/ddpo/memory/24gb.yaml}"
out="${OUT:-runs/slurm/fig5d}"
gpus="${SLURM_NTASKS_PER_NODE:?start me with sbatch}"

export HF_HUB_OFFLINE=1                              # nothing is looked up from a compute node
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# A round is shared out: repeats grow with the GPUs, so that every process keeps its 32 samples, batches of 8 and four updates.
# An update then learns from 8 samples of every process. For the single GPU's run, only faster, keep data.repeats=8 and give
# module.sampler.batch_size=2 module.update.batch_size=2 instead. Evaluation is shared out, too: its 4 prompts * 25 divide over 1, 2
# and 4 GPUs; for 8 give data.val_repeats=26.
srun python tools/fit.py --config "$config" --config "$memory" \
    trainer.accelerator=gpu trainer.devices="$gpus" trainer.num_nodes=1 trainer.strategy=ddp \
    data.repeats="$((8 * gpus))" out_dir="$out" resume=true "$@"
