#!/usr/bin/env bash
# Starts a MongoDB node of the Docker stack. The key by which the nodes know each other comes of MONGO_PASSWORD, so that
# there is one secret to keep; mongod wants it in a file that nobody else can read.
set -euo pipefail
umask 077
printf 'key of the replica set: %s' "$MONGO_PASSWORD" | sha256sum | cut --characters -64 >/tmp/keyfile
exec docker-entrypoint.sh "$@" --keyFile /tmp/keyfile
