# What is needed to install packages stays in this stage.
FROM python:3.12-slim AS packages
COPY requirements.txt .
RUN python -m venv --without-pip /venv \
 && python -m pip --python /venv/bin/python install --no-cache-dir -r requirements.txt

FROM python:3.12-slim
RUN python -m pip uninstall --quiet --yes --root-user-action ignore pip
COPY --from=packages /venv /venv

ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv

# The only place the service writes to: the outbox, while there is no mail server.
RUN useradd --uid 10001 --no-create-home --home-dir /srv --shell /usr/sbin/nologin cryptoticker \
 && install --directory --owner cryptoticker --group cryptoticker data

COPY app app
USER cryptoticker
EXPOSE 8000

# ProxyHandler({}): a proxy in the environment is for the world, not for the service's own address.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", \
  "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/health/ready', timeout=4)"]

CMD ["python", "-m", "app"]
