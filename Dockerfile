# One image for the API, the workers and the command lines (`service`), one with the tools that migrate (`migrate`).
FROM node:24-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
COPY packages/engine/package.json packages/engine/
COPY packages/control/package.json packages/control/
COPY apps/api/package.json apps/api/
COPY apps/worker/package.json apps/worker/
COPY apps/cli/package.json apps/cli/
RUN npm ci --include=dev
COPY tsconfig.base.json tsconfig.json turbo.json prisma.config.ts ./
COPY prisma prisma
COPY scripts scripts
COPY packages packages
COPY apps apps
RUN npm run build

FROM build AS migrate
COPY deploy/migrate.sh deploy/
RUN install -d -o node -g node /srv/repository
USER node
CMD ["sh", "deploy/migrate.sh"]

FROM build AS production
RUN npm prune --omit=dev

FROM node:24-bookworm-slim AS service
ENV NODE_ENV=production
WORKDIR /app
# Named volumes take over the owner of the folder that they are mounted on.
RUN install -d -o node -g node /srv/repository /srv/volumes /srv/import
COPY --from=production /app/node_modules node_modules
COPY --from=production /app/packages/engine/package.json packages/engine/
COPY --from=production /app/packages/engine/dist packages/engine/dist
COPY --from=production /app/packages/control/package.json packages/control/
COPY --from=production /app/packages/control/dist packages/control/dist
COPY --from=production /app/apps/api/package.json apps/api/
COPY --from=production /app/apps/api/dist apps/api/dist
COPY --from=production /app/apps/worker/package.json apps/worker/
COPY --from=production /app/apps/worker/dist apps/worker/dist
COPY --from=production /app/apps/cli/package.json apps/cli/
COPY --from=production /app/apps/cli/bin apps/cli/bin
COPY --from=production /app/apps/cli/dist apps/cli/dist
USER node
EXPOSE 8776
CMD ["node", "apps/api/dist/main.js"]
