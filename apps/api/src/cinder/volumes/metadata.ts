import {
  changeSnapshotMetadata,
  changeVolumeMetadata,
  getSnapshot,
  getVolume,
  type Metadata,
  type MetadataChange,
} from "@tephra/control";
import type { Context } from "../../context.ts";
import { badRequest, Refusal } from "../../http/refusals.ts";
import { type Action, type Call, defineAction } from "../../openstack/call.ts";
import { assertMetadataFits } from "../../openstack/metadata-limits.ts";
import { metaBody, metadataBody } from "./schemas.ts";

const idOf = (call: Call): string => call.params["id"] ?? "";
const keyOf = (call: Call): string => call.params["key"] ?? "";

/** Handlers of the routes below `/{owner}/{id}/metadata`. */
interface MetadataRoutes {
  list: Action;
  add: Action;
  replace: Action;
  show: Action;
  set: Action;
  remove: Action;
}

function metadataOf(owner: {
  name: string;
  read: (context: Context, call: Call) => Promise<unknown>;
  change: (context: Context, call: Call, change: MetadataChange) => Promise<Metadata>;
}): MetadataRoutes {
  const read = async (context: Context, call: Call) =>
    ((await owner.read(context, call)) as { metadata: Metadata }).metadata;
  const missing = (call: Call): Refusal =>
    new Refusal(404, `${owner.name} ${idOf(call)} has no metadata with key ${keyOf(call)}.`);
  const load = owner.read;
  return {
    list: defineAction({
      load,
      handle: async (context, call) => ({ status: 200, body: { metadata: await read(context, call) } }),
    }),
    add: defineAction({
      body: metadataBody,
      load,
      handle: async (context, call) => {
        const metadata = await owner.change(context, call, (old) =>
          assertMetadataFits(context.config, { ...old, ...call.body.metadata }),
        );
        return { status: 200, body: { metadata } };
      },
    }),
    replace: defineAction({
      body: metadataBody,
      load,
      handle: async (context, call) => {
        const metadata = await owner.change(context, call, () => call.body.metadata);
        return { status: 200, body: { metadata } };
      },
    }),
    show: defineAction({
      load,
      handle: async (context, call) => {
        const metadata = await read(context, call);
        const key = keyOf(call);
        if (!Object.hasOwn(metadata, key)) throw missing(call);
        return { status: 200, body: { meta: { [key]: metadata[key] } } };
      },
    }),
    set: defineAction({
      body: metaBody,
      load,
      handle: async (context, call) => {
        const { meta } = call.body;
        if (!Object.hasOwn(meta, keyOf(call))) throw badRequest("Request body and URI mismatch");
        await owner.change(context, call, (old) => assertMetadataFits(context.config, { ...old, ...meta }));
        return { status: 200, body: { meta } };
      },
    }),
    remove: defineAction({
      load,
      handle: async (context, call) => {
        await owner.change(context, call, (old) => {
          const { [keyOf(call)]: removed, ...rest } = old;
          if (removed === undefined) throw missing(call);
          return rest;
        });
        return { status: 200 };
      },
    }),
  };
}

export const volumeMetadata = metadataOf({
  name: "Volume",
  read: ({ database }, call) => getVolume(database, call.principal, idOf(call)),
  change: ({ database }, call, change) => changeVolumeMetadata(database, call.principal, idOf(call), change),
});

export const snapshotMetadata = metadataOf({
  name: "Snapshot",
  read: ({ database }, call) => getSnapshot(database, call.principal, idOf(call)),
  change: ({ database }, call, change) => changeSnapshotMetadata(database, call.principal, idOf(call), change),
});
