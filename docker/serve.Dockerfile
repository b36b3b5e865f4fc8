# Build from the repository's root: docker build -f docker/serve.Dockerfile -t centernet-service .
# For an NVIDIA GPU add --build-arg EXTRAS=[cuda], and run with --gpus all.
FROM python:3.11-slim AS build
ARG EXTRAS=""
WORKDIR /src
RUN python -m venv /opt/centernet
# the dependencies alone first: they change less often than the code, and are nearly all of the image
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app/__init__.py app/
RUN /opt/centernet/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS}"
COPY app app
COPY model model
RUN /opt/centernet/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11-slim
COPY --from=build /opt/centernet /opt/centernet
# the thresholds keep glibc from giving each decoded image's pages back: a third less time for 1080p
ENV CENTERNET_HOST=0.0.0.0 \
    CENTERNET_PORT=8000 \
    MALLOC_MMAP_THRESHOLD_=134217728 \
    MALLOC_TRIM_THRESHOLD_=268435456
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["/opt/centernet/bin/python", "-c", \
    "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['CENTERNET_PORT']}/health/ready\", timeout=2)"]
ENTRYPOINT ["/opt/centernet/bin/centernet-serve"]
