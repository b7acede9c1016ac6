import { getVolume, requestVolumeExport, requestVolumeImport } from "@tephra/control";
import { z } from "zod";
import type { Context } from "../context.ts";
import { beneathRoots } from "./import-roots.ts";
import { type OpsAnswer, type OpsCall, parse } from "./serve.ts";

/** PostgreSQL stores neither NUL nor half of a surrogate pair. */
const text = z.string().refine((v) => !v.includes("\0") && v.isWellFormed(), "has characters that cannot be stored");

/** PATH_MAX of Linux. */
const path = z.string().min(1).max(4096);

const ImportBody = z.strictObject({
  path,
  name: text.max(255).nullish(),
  project_id: text.min(1).max(255).nullish(),
});

const ExportBody = z.strictObject({ path });

export const opsVolumes = {
  /** What Cinder's form of a volume has no place for: its exact length. */
  show: async ({ database }: Context, { principal, params }: OpsCall): Promise<OpsAnswer> => {
    const row = await getVolume(database, principal, params["id"] ?? "");
    const volume = {
      id: row.id,
      size: row.sizeGib,
      bytes: Number(row.sizeBytes),
      status: row.status,
      backend: row.backend,
    };
    return { status: 200, body: { volume } };
  },

  /** An admin may import for another project: the volume is then that project's, quota included. */
  import: async ({ database, config }: Context, { principal, body }: OpsCall): Promise<OpsAnswer> => {
    const request = parse(ImportBody, body);
    const owner = request.project_id ? { ...principal, projectId: request.project_id } : principal;
    const { operation, volume } = await requestVolumeImport(database, config, owner, {
      path: beneathRoots(config, request.path),
      name: request.name?.trim() ?? null,
      description: null,
      metadata: {},
    });
    return { status: 202, body: { operation: { id: operation.id }, volume: { id: volume.id } } };
  },

  export: async ({ database, config }: Context, { principal, params, body }: OpsCall): Promise<OpsAnswer> => {
    const request = parse(ExportBody, body);
    const { id } = await requestVolumeExport(database, principal, {
      volumeId: params["id"] ?? "",
      path: beneathRoots(config, request.path),
    });
    return { status: 202, body: { operation: { id } } };
  },
};
