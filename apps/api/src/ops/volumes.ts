import { randomUUID } from "node:crypto";
import { getVolume, requestVolumeAdoption, requestVolumeExport, requestVolumeImport } from "@tephra/control";
import { ownPlaces } from "@tephra/control/process";
import { type AnswerOf, requests, type VolumeDetails } from "@tephra/wire";
import { beneathRoots } from "./import-roots.ts";
import { defineOps } from "./serve.ts";

export const opsVolumes = {
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
