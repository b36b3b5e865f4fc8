# The server: target `cpu`, or `cuda` for an NVIDIA GPU. Build from the repository's root:
#   docker build -f docker/serve.Dockerfile --target cpu -t centernet-service:cpu .
# BuildKit is not needed. The classic builder builds the stages in order, so those that `cpu` needs come first.
FROM python:3.13-slim-trixie AS package
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY docker/requirements/build.txt /requirements/
RUN pip install --require-hashes --requirement /requirements/build.txt \
 && python -m venv --without-pip /opt/centernet
WORKDIR /src
COPY LICENSE README.md pyproject.toml ./
COPY app app
COPY model model
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && pip --python /opt/centernet/bin/python install --no-deps --no-index --prefix /opt/package /wheels/*.whl

FROM python:3.13-slim-trixie AS runtime
LABEL org.opencontainers.image.title="CenterNet service" \
      org.opencontainers.image.description="Object detection as a REST microservice: POST an image, get boxes." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="python:3.13-slim-trixie"
# the thresholds keep glibc from returning each decoded image's pages to the kernel: a third less time for 1080p
ENV CENTERNET_HOST=0.0.0.0 \
    CENTERNET_PORT=8000 \
    MALLOC_MMAP_THRESHOLD_=134217728 \
    MALLOC_TRIM_THRESHOLD_=268435456 \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# a new volume inherits the owner of its mount point
RUN install --directory --owner=10001 --group=10001 /models \
 && python -m venv --without-pip /opt/centernet
EXPOSE 8000
# HTTP_PROXY, which Docker's client can set for every container, would apply even to 127.0.0.1
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["/opt/centernet/bin/python", "-IS", "-c", \
    "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open( \
    f\"http://127.0.0.1:{os.environ['CENTERNET_PORT']}/health/ready\", timeout=2)"]
ENTRYPOINT ["/opt/centernet/bin/centernet-serve"]

FROM runtime AS cpu
ENV CENTERNET_PROVIDER=cpu
COPY docker/requirements/serve.txt /requirements/
# drop the libraries of ONNX Runtime's GPU build that only a GPU or a C program needs, and the packages' tests
RUN pip --python /opt/centernet/bin/python install --require-hashes --requirement /requirements/serve.txt \
 && cd /opt/centernet/lib/python3.*/site-packages \
 && rm -f onnxruntime/capi/libonnxruntime.so* onnxruntime/capi/libonnxruntime_providers_[ct]*.so \
 && find . -type d -name tests -prune -exec rm -r {} +
COPY --from=package /opt/package /opt/centernet
USER 10001:10001

FROM runtime AS cuda
# CUDA is in the wheels; the host provides only the driver. Without a GPU the server exits with an error.
ENV CENTERNET_PROVIDER=cuda \
    CENTERNET_MODEL=default-fp32 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY docker/requirements/cuda.txt /requirements/
RUN pip --python /opt/centernet/bin/python install --require-hashes --requirement /requirements/cuda.txt \
 && cd /opt/centernet/lib/python3.*/site-packages \
 && rm -f onnxruntime/capi/libonnxruntime.so* onnxruntime/capi/libonnxruntime_providers_t*.so \
 && find . -type d -name tests -prune -exec rm -r {} +
COPY --from=package /opt/package /opt/centernet
USER 10001:10001
