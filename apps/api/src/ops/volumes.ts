import { randomUUID } from "node:crypto";
import {
  excludeVolume,
  getProtection,
  getVolume,
  includeVolume,
  type ListedProtection,
  listDays,
  listProtection,
  type ProtectionRow,
  requestVolumeAdoption,
  requestVolumeExport,
  requestVolumeImport,
} from "@tephra/control";
import { ownPlaces } from "@tephra/control/process";
import { type AnswerOf, type ProtectedVolume, requests, type VolumeDetails, type VolumeProtection } from "@tephra/wire";
import { beneathRoots } from "./import-roots.ts";
import { defineOps } from "./serve.ts";

const secondsOf = (hours: number): number => hours * 3_600;

const protectionOf = (row: ProtectionRow): VolumeProtection => ({
  state: row.state,
  reason: row.reason,
  last_good:
    row.goodId && row.goodAt
      ? {
          backup_id: row.goodId,
          at: row.goodAt.toISOString(),
          verified_at: row.verifiedAt?.toISOString() ?? null,
          verified_mode: row.verifiedMode,
        }
      : null,
  last_try:
    row.tryId && row.tryAt ? { backup_id: row.tryId, status: row.tryStatus ?? "", at: row.tryAt.toISOString() } : null,
  target_seconds: secondsOf(row.targetHours),
  next_at: row.nextAt?.toISOString() ?? null,
  policy: row.policyId === null ? null : { id: row.policyId, name: row.policyName ?? "" },
  excluded:
    row.excludedReason === null
      ? null
      : { reason: row.excludedReason, until: row.excludedUntil?.toISOString() ?? null },
});

const viewProtected = (row: ListedProtection): ProtectedVolume => ({
  id: row.id,
  name: row.name,
  project_id: row.projectId,
  bytes: Number(row.sizeBytes),
  status: row.status,
  backend: row.backend,
  machine: row.machineId === null ? null : { id: row.machineId, name: row.machineName ?? "" },
  protection: protectionOf(row),
  points: row.points,
  stored_bytes: row.storedBytes,
  chain_depth: row.chainDepth,
});

export const opsVolumes = {
  /** How protected volumes are: those without a good backup first, then by its age. */
  list: defineOps({
    ...requests["GET /ops/volumes"],
    handle: async ({ database, config }, { principal, query }) => {
      const { state, sort, marker, limit } = query;
      const { q: text, project_id: projectId, policy_id: policyId, backend } = query;
      const asked = { state, text, projectId, policyId, backend, sort, marker, limit: limit + 1 };
      const { rows, facets } = await listProtection(database, config, principal, asked);
      const shown = rows.slice(0, limit);
      const next = rows.length > limit ? (shown.at(-1)?.id ?? null) : null;
      const body = { volumes: shown.map(viewProtected), facets: { state: facets }, next };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/volumes"> };
    },
  }),

  /** A calendar: on which days one can go back to. */
  days: defineOps({
    ...requests["GET /ops/protection/days"],
    handle: async ({ database }, { principal, query }) => {
      const { volume_id: volumeIds, from = null, to = null, tz: timezone } = query;
      const body = await listDays(database, principal, { volumeIds, from, to, timezone });
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/protection/days"> };
    },
  }),

  exclude: defineOps({
    ...requests["PUT /ops/volumes/:id/exclusion"],
    handle: async ({ database, config }, { principal, params, body }) => {
      const id = params["id"] ?? "";
      await excludeVolume(database, principal, id, body);
      const protection = protectionOf(await getProtection(database, config, principal, id));
      return { status: 200, body: { protection } satisfies AnswerOf<"PUT /ops/volumes/:id/exclusion"> };
    },
  }),

  include: defineOps({
    handle: async ({ database }, { principal, params }) => {
      await includeVolume(database, principal, params["id"] ?? "");
      return { status: 204 };
    },
  }),

  /** What Cinder's representation of a volume lacks: its exact length. */
  show: defineOps({
    handle: async ({ database }, { principal, params }) => {
      const row = await getVolume(database, principal, params["id"] ?? "");
      const volume: VolumeDetails = {
        id: row.id,
        size: row.sizeGib,
        bytes: Number(row.sizeBytes),
        status: row.status,
        backend: row.backend,
      };
      return { status: 200, body: { volume } satisfies AnswerOf<"GET /ops/volumes/:id"> };
    },
  }),

  /**
   * An admin may import for another project, which then owns the volume and whose quota is charged. With an id, see
   * requestVolumeAdoption.
   */
  import: defineOps({
    ...requests["POST /ops/volumes/import"],
    handle: async ({ database, config }, { principal, body }) => {
      const owner = body.project_id ? { ...principal, projectId: body.project_id } : principal;
      const path = body.path ? beneathRoots(config, ownPlaces(config), body.path) : null;
      const name = body.name?.trim() ?? null;
      if (body.id || path === null) {
        const volumeId = body.id ?? randomUUID();
        const adoption = { volumeId, path, image: body.image ?? null, backend: body.backend ?? null, name };
        const operation = await requestVolumeAdoption(database, config, owner, adoption);
        const accepted = {
          operation,
          volume: { id: adoption.volumeId },
        } satisfies AnswerOf<"POST /ops/volumes/import">;
        return { status: 202, body: accepted };
      }
      const { operation, volume } = await requestVolumeImport(database, config, owner, {
        path,
        name,
        description: null,
        metadata: {},
      });
      const accepted = { operation: { id: operation.id }, volume: { id: volume.id } };
      return { status: 202, body: accepted satisfies AnswerOf<"POST /ops/volumes/import"> };
    },
  }),

  export: defineOps({
    ...requests["POST /ops/volumes/:id/export"],
    handle: async ({ database, config }, { principal, params, body }) => {
      const { id } = await requestVolumeExport(database, principal, {
        volumeId: params["id"] ?? "",
        path: beneathRoots(config, ownPlaces(config), body.path),
        overwrite: body.overwrite,
      });
      return { status: 202, body: { operation: { id } } satisfies AnswerOf<"POST /ops/volumes/:id/export"> };
    },
  }),
};
