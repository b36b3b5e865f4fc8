# Training, on the CPU or an NVIDIA GPU: PyTorch's wheel for Linux on x86-64 contains CUDA. Build from the root:
#   docker build -f docker/train.Dockerfile -t centernet-train .
FROM python:3.13-slim-trixie AS package
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY docker/requirements/build.txt /requirements/
RUN pip install --require-hashes --requirement /requirements/build.txt \
 && python -m venv --without-pip /opt/centernet
WORKDIR /src
COPY LICENSE README.md pyproject.toml ./
COPY app app
COPY model model
COPY training training
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && pip --python /opt/centernet/bin/python install --no-deps --no-index --prefix /opt/package /wheels/*.whl

FROM python:3.13-slim-trixie
LABEL org.opencontainers.image.title="CenterNet training" \
      org.opencontainers.image.description="Labelled photos in, a model for the CenterNet service out." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="python:3.13-slim-trixie"
# libraries keep their caches below HOME; only the volumes and /tmp are writable
ENV HOME=/tmp \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# a new volume inherits the owner of its mount point
RUN install --directory --owner=10001 --group=10001 /models /work /work/runs \
 && python -m venv --without-pip /opt/centernet
COPY docker/requirements/train.txt /requirements/
RUN pip --python /opt/centernet/bin/python install --require-hashes --requirement /requirements/train.txt
COPY --from=package /opt/package /opt/centernet
WORKDIR /work
USER 10001:10001
# training serves no requests: it is alive while its process is
HEALTHCHECK NONE
ENTRYPOINT ["/opt/centernet/bin/centernet-train"]
