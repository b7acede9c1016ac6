#!/bin/sh
# Before anything else of a deployment runs: brings the schema up to date and marks the repository when it is new.
set -eu
node node_modules/prisma/build/index.js migrate deploy
if [ -z "$(ls -A /srv/repository)" ]; then
  node apps/cli/dist/tephra-engine.js init --repository posix:/srv/repository
fi
