# One image for every process of Headrace; compose says which one it is.
#
#   docker build -t headrace --build-arg TORCH_INDEX=URL .    CPU; URL: an index of CPU builds of torch
#   docker build -t headrace .                          the same with PyPI's torch, which brings gigabytes of CUDA along
#   docker build -t headrace:gpu --build-arg GPU=1 .    NVIDIA GPU: run it with the NVIDIA container runtime
#
# The GPU variant keeps a C compiler, which Triton calls for each kernel's launcher, and its trainer asks for CUDA instead
# of taking what is there. No variant holds test tools. Everything is checked against the lock file's hashes, but a CPU
# build of torch, which the lock file does not know, and on arm64 what compiles faust-streaming, which has no wheel there:
# for these the index is trusted.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
ARG GPU=0
ARG TORCH_INDEX=
WORKDIR /app
COPY constraints-run.txt ./
RUN python -m venv /venv && if [ "$GPU" = 1 ] || [ -z "$TORCH_INDEX" ]; then \
        /venv/bin/pip install --no-cache-dir --require-hashes -r constraints-run.txt; \
    else \
        awk '/^[a-z]/ { kept = !/^(nvidia-|cuda-|triton=|torch=)/ } kept' constraints-run.txt > cpu.txt \
        && /venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r cpu.txt \
        && /venv/bin/pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" \
            "$(grep -o '^torch==[0-9.]*' constraints-run.txt)"; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY headrace headrace
COPY kernels kernels
COPY model model
COPY serving serving
COPY state state
COPY stream stream
COPY trainer trainer
COPY wire wire
COPY schema schema
# The kernels hold a path for each processor generation and choose at run time: the image runs on any machine of the
# architecture that it was built on, x86-64 or arm64.
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --editable . && /venv/bin/python -m kernels.build

FROM python:${PYTHON}-slim
ARG GPU=0
# hadolint ignore=DL3008
RUN if [ "$GPU" != 0 ]; then set -- gcc libc6-dev; fi \
    && apt-get update && apt-get install --yes --no-install-recommends libgomp1 "$@" \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home headrace \
    && install -d -o headrace -g headrace /data
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HEADRACE_STORE__PATH=/data/store HEADRACE_TRAINER__CHECKPOINT_DIR=/data/checkpoints
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001
VOLUME /data
ENTRYPOINT ["python", "-m"]
CMD ["headrace", "--help"]
