# syntax=docker/dockerfile:1

# One image for the API and the workers of the reference application; the command says which.

FROM python:3.13-slim-trixie AS build

RUN pip install --no-cache-dir uv==0.13.8
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /srv

# The dependencies are a layer of their own: a change of the code does not install them again.
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --locked --no-default-groups --group app --no-install-project

COPY README.md LICENSE ./
COPY backend/knapsaq backend/knapsaq
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --locked --no-default-groups --group app --no-editable


FROM python:3.13-slim-trixie

# .knapsaq holds the SQLite file where no other database is configured; a volume put there keeps this owner.
RUN useradd --system --no-create-home --uid 10001 knapsaq \
    && install --directory --owner=knapsaq /srv/.knapsaq
WORKDIR /srv
COPY --from=build /srv/.venv /srv/.venv
COPY backend/app /srv/app
ENV PATH=/srv/.venv/bin:$PATH \
    PYTHONPATH=/srv \
    PYTHONUNBUFFERED=1

USER 10001
EXPOSE 8000
CMD ["litestar", "--app", "app.main:app", "run", "--host", "0.0.0.0", "--port", "8000"]
