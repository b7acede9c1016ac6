/** The ids in the name of one of this service's files or objects. */
export function idsIn(name: string): string[] {
  return name.match(/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/g) ?? [];
}
