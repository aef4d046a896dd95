#!/usr/bin/env bash
# Health check of a MongoDB node. Until it has once been a member of the replica set, member.js makes it one; from then
# on it is only asked whether it listens: every call of mongosh costs a second of CPU.
set -euo pipefail
if [ -e /tmp/member ]; then
  exec 3<>/dev/tcp/127.0.0.1/27017
else
  mongosh --quiet --nodb /deploy/member.js
  touch /tmp/member
fi
