export {
  type Cinder,
  type CinderAttachment,
  type CinderProject,
  CinderRefusedError,
  type CinderSettings,
  CinderUnavailableError,
  type CinderVolume,
  openCinder,
} from "./cinder.ts";
export { passedOn } from "./forward.ts";
export { type HttpClient, openHttpClient } from "./http-client.ts";
export {
  type KeystoneSession,
  type KeystoneSettings,
  KeystoneUnavailableError,
  openKeystone,
  reasonOf,
  type Token,
} from "./keystone.ts";
