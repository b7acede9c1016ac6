#!/bin/sh
# Before anything else of a deployment runs: brings the schema up to date, and marks the repository when it is new.
set -eu
if [ -n "${DATABASE_URL_FILE:-}" ]; then
  DATABASE_URL=$(cat "$DATABASE_URL_FILE")
  export DATABASE_URL
fi
node node_modules/prisma/build/index.js migrate deploy
if [ -n "${TEPHRA_NEW_REPOSITORY:-}" ]; then
  node apps/cli/dist/bundle/tephra-engine.js init --repository "$TEPHRA_NEW_REPOSITORY"
fi
# Only tells: what cannot be reached from here may be reached from the workers.
if [ -n "${TEPHRA_CONFIG:-}" ]; then
  node apps/worker/dist/doctor.js --quick --problems || true
fi
