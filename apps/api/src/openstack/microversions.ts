import { badRequest, Refusal } from "../http/refusals.ts";

/** The minor version N of 3.N: there is no other major version. */
export type Microversion = number;

export const versionMin: Microversion = 0;
export const versionMax: Microversion = 71;
export const versionText = (version: Microversion): string => `3.${version}`;

/** The first microversion that has each feature (cinder-api 2.3). The only such table: no other code compares with literals. */
export const since = {
  messages: 3,
  messageQueries: 5,
  serviceCluster: 7,
  resourceFilters: 33,
  limitsOfOthers: 39,
  serviceBackendState: 49,
  backupUpdate: 9,
  volumeBootableStrict: 2,
  volumeFilterGroup: 10,
  volumeSummary: 12,
  groupTypes: 11,
  groups: 13,
  groupSnapshots: 14,
  groupSnapshotResetStatus: 19,
  groupResetStatus: 20,
  groupVolumeList: 25,
  groupSnapshotPages: 29,
  attachments: 27,
  attachmentComplete: 44,
  attachmentMode: 54,
  transferSnapshots: 55,
  transferHistory: 57,
  transferPages: 59,
  poolFilter: 28,
  poolTypeFilter: 35,
  groupReplication: 38,
  groupProjectId: 58,
  volumeGroupId: 13,
  backupProjectAttribute: 18,
  volumeProviderId: 21,
  snapshotFilterMetadata: 22,
  volumeDeleteForce: 23,
  unknownFilterRefused: 31,
  backupSortByName: 37,
  snapshotSortByName: 30,
  snapshotGroupId: 14,
  snapshotUserId: 41,
  backupMetadata: 43,
  withCount: 45,
  volumeFromBackup: 47,
  volumeSummaryMetadata: 36,
  volumeExtendInUse: 42,
  volumeSharedTargets: 48,
  backupZone: 51,
  volumeUnknownRefused: 53,
  backupUserId: 56,
  volumeClusterName: 61,
  volumeTypeId: 63,
  encryptionKeyId: 64,
  consumesQuota: 65,
  snapshotInUse: 66,
} as const satisfies Record<string, Microversion>;

const form = /^([1-9]\d*)\.([1-9]\d*|0)$/;

/** The requested version is outside the supported range; the response header echoes it. */
export class VersionRangeError extends Refusal {
  readonly asked: string;
  constructor(asked: string) {
    const range = `Minimum is ${versionText(versionMin)} and maximum is ${versionText(versionMax)}.`;
    super(406, `Version ${asked} is not supported by the API. ${range}`);
    this.asked = asked;
  }
}

/** Cinder's error for a request that it cannot parse. */
export const malformedRequest = (): Refusal =>
  badRequest("The server could not comply with the request since it is either malformed or otherwise incorrect.");

/**
 * The value of OpenStack-API-Version → the effective version (cinder-api 2.2). With several services, the first entry for `volume`
 * counts.
 *
 * @throws VersionRangeError 406, Refusal 400
 */
export function negotiate(header: string | undefined): Microversion {
  if (header === undefined) return versionMin;
  const entry = header.split(",").find((part) => part.includes("volume"));
  if (entry === undefined) throw malformedRequest();
  const [, asked, ...rest] = entry.trim().split(/\s+/);
  if (asked === undefined || rest.length > 0) throw malformedRequest();
  if (asked === "latest") return versionMax;
  const [, major, minor] = form.exec(asked) ?? [];
  if (major === undefined || minor === undefined) {
    throw badRequest(`API Version String ${asked} is of invalid format. Must be of format MajorNum.MinorNum.`);
  }
  const version = Number(minor);
  if (major !== "3" || version < versionMin || version > versionMax) throw new VersionRangeError(asked);
  return version;
}
