# The image of launch/kubernetes/train.yaml and launch/kuberay/shards.yaml: the repository at /opt/sleepfm, its environment on PATH.
#
#   docker build -t registry.example.com/sleepfm:latest .
#
#   BASE         another image with Python 3.11 and apt, such as one with nvcc for EXTRAS=shards,train,s3,cuda
#   EXTRAS       extras of setup.cfg; `cuda` compiles the fused kernels of Mamba and takes nvcc
#   TORCH_INDEX  a package index to take torch from, such as one with CPU builds; default: pip's own, with CUDA libraries
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG EXTRAS=shards,train,s3
ARG TORCH_INDEX=

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# g++: Triton, and compiled models, call it at run time. wget: KubeRay's probes call it.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --no-install-recommends --yes g++ wget \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sleepfm

# The largest layer depends on the pins alone, so that a change of the code does not make it anew.
COPY constraints.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints.txt torch==2.13.0

COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY sleepfm ./sleepfm
COPY shards ./shards
COPY launch ./launch
COPY configs ./configs
RUN pip install --no-cache-dir --no-build-isolation -c constraints.txt "setuptools>=70" \
 && pip install --no-cache-dir --no-build-isolation -c constraints.txt -e ".[${EXTRAS}]"

# Nobody needs root to build shards or to train. Volumes must be writable by this user.
RUN useradd --create-home --uid 1000 sleepfm && chown sleepfm /opt/sleepfm
USER 1000

CMD ["sleepfm", "--help"]
