# The environment of `make setup` as an image, with operators for CUDA. Building needs no GPU.
#     docker build -t pcb .
#     docker run --gpus all --shm-size 8g -v $PWD/data:/pcb/data -v $PWD/results:/pcb/results pcb \
#         snakemake --cores all --resources gpu=8 --config scale=lvis
# For a driver older than 580: --build-arg LOCK=requirements-cuda12.lock, from an image with the
# CUDA 12.8 toolkit (docs/scaling.md). For the CPU alone: --build-arg FORCE_CUDA=0.
FROM python:3.11-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends g++ make git

WORKDIR /pcb
# Only what set-up reads, so that another change does not compile the operators again.
COPY Makefile pyproject.toml requirements.lock requirements-cuda12.lock README.md LICENSE ./
COPY tools tools
COPY pcb pcb
ARG LOCK=requirements.lock
ARG FORCE_CUDA=1
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;9.0"
ENV PIP_NO_CACHE_DIR=1
RUN make setup ENV=/opt/pcb

COPY . .
ENV PATH=/opt/pcb/bin:$PATH
CMD ["pcb", "doctor", "--device", "cuda"]
