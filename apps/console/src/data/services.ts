import { path } from "./queries.ts";

/** A process of the service, as Cinder's dialect tells of it. */
export interface Service {
  binary: string;
  host: string;
  zone: string;
  status: "enabled" | "disabled";
  state: "up" | "down";
  disabled_reason: string | null;
  updated_at: string | null;
}

export const servicesPath = (project: string): string => `/v3/${encodeURIComponent(project)}/os-services`;

export const servicesQuery = (project: string) => path<{ services: Service[] }>(servicesPath(project));
