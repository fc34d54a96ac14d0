FROM python:3.12-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --system --create-home --home-dir /app gullak
WORKDIR /app

# The dependencies first: they change less often than the code.
COPY requirements/runtime.txt requirements/
RUN pip install --require-hashes -r requirements/runtime.txt

COPY pyproject.toml celeryconfig.py README.md LICENSE ./
COPY metering metering
COPY tasks tasks
COPY worker worker
COPY api api
COPY server server
RUN pip install --no-deps . ./server

USER gullak
CMD ["gullak", "--help"]
