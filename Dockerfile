# One image for every process of Headrace; compose says which one it is.
#
#   docker build -t headrace .                      CPU (the default)
#   docker build -t headrace:gpu --build-arg GPU=1 .    NVIDIA GPU: run it with the NVIDIA container runtime
#
# The GPU variant differs in two things: it keeps a C compiler, which Triton calls for each kernel's launcher, and its
# trainer asks for CUDA instead of taking what is there.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY constraints.txt ./
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes -r constraints.txt
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
# The kernels hold a path for each processor generation and choose at run time: the image runs on any x86-64 machine.
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --editable . && /venv/bin/python -m kernels.build

FROM python:${PYTHON}-slim
ARG GPU=0
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 $(test "$GPU" = 0 || echo gcc libc6-dev) \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home headrace \
    && install -d -o headrace -g headrace /data
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HEADRACE_STORE__PATH=/data/store HEADRACE_TRAINER__CHECKPOINT_DIR=/data/checkpoints
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER headrace
VOLUME /data
ENTRYPOINT ["python", "-m"]
CMD ["headrace", "--help"]
