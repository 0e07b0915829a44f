# The classifier as a service, from requirements.lock as everything else:
#
#     docker build -t headstart .
#     docker run --rm -p 8000:8000 -v "$PWD/data/package/model:/model:ro" headstart
#
# The model is not in the image, so that a new one needs no new image. docs/serving.md says how to put it in.
FROM python:3.11-slim AS environment
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /build
COPY requirements.lock ./
RUN uv venv /environment \
    && uv pip install --no-cache --compile-bytecode --python /environment --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY headstart headstart
RUN uv pip install --no-cache --compile-bytecode --python /environment --no-deps --no-build-isolation .

FROM python:3.11-slim
COPY --from=environment /environment /environment
ENV PATH=/environment/bin:$PATH
WORKDIR /service
RUN chown 10001:10001 /service
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
CMD ["headstart", "serve", "--model", "/model", "--host", "0.0.0.0", "--port", "8000"]
