# syntax=docker/dockerfile:1
# Two stages: the first makes the environment from the lock, the second holds it and the code, nothing else.

FROM python:3.12-slim-bookworm AS build
RUN pip install --no-cache-dir uv==0.13.8
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/venv
WORKDIR /srv/routeur
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-dev --no-install-project --extra ollama --extra postgres
COPY . .
RUN uv sync --locked --no-dev --extra ollama --extra postgres \
 && python -m compileall -q api config core domain graphs migrations services *.py

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin routeur \
 && install -d -o routeur -g routeur /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv/routeur /srv/routeur
WORKDIR /srv/routeur
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    DATA_DIR=/data \
    LOG_FORMAT=json \
    ENVIRONMENT=production
USER routeur
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\", \"8000\")}/health', timeout=2)"]
ENTRYPOINT ["routeur"]
CMD ["serve"]
