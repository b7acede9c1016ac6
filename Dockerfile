# One image for the API, the workers and the command lines (`service`), one with the tools that migrate (`migrate`).
FROM node:24-bookworm-slim AS build
# For the native hashing of packages/engine/native: without a compiler the image would hash by OpenSSL alone, at half the speed.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
COPY packages/format/package.json packages/format/
COPY packages/wire/package.json packages/wire/
COPY packages/openstack/package.json packages/openstack/
COPY packages/engine/package.json packages/engine/
COPY packages/control/package.json packages/control/
COPY apps/api/package.json apps/api/
COPY apps/worker/package.json apps/worker/
COPY apps/transfer/package.json apps/transfer/
COPY apps/cli/package.json apps/cli/
COPY apps/console/package.json apps/console/
RUN npm ci --include=dev
COPY tsconfig.base.json tsconfig.json turbo.json prisma.config.ts ./
COPY prisma prisma
COPY scripts scripts
COPY packages packages
COPY apps apps
RUN npm run build && test -f packages/engine/dist/native/hashing.node && test -f apps/console/dist/index.html

FROM build AS migrate
COPY deploy/migrate.sh deploy/
USER node
CMD ["sh", "deploy/migrate.sh"]

# What runs, and nothing else: packages of a workspace may lie in its own folder, so the tree is thinned out, not picked.
FROM build AS production
RUN npm prune --omit=dev && rm -rf scripts prisma *.config.ts tsconfig*.json turbo.json apps/*/src packages/*/src apps/console/public apps/console/index.html

FROM node:24-bookworm-slim AS service
# As in scripts/bootstrap.mjs: what is short-lived takes 16 MiB instead of 128.
ENV NODE_ENV=production NODE_OPTIONS="--max-semi-space-size=8 --use-system-ca"
WORKDIR /app
# For repositories with zlib_encoder isal.
RUN apt-get update && apt-get install --yes --no-install-recommends libisal2 && rm -rf /var/lib/apt/lists/*
# Named volumes take over the owner of the folder that they are mounted on.
RUN install -d -o node -g node /srv/volumes /srv/import
COPY --from=production /app ./
USER node
EXPOSE 8776
CMD ["node", "apps/api/dist/main.js"]
