import type { Element, Value } from "./element.ts";
import { invalidValue } from "./faults.ts";

/** The paths of `?follow=a,b.c` by their first name: `{a: {}, b: {c: {}}}`. */
export interface FollowTree extends ReadonlyMap<string, FollowTree> {}

/** Paths in one request, and their depth. */
const pathsMax = 32;
const depthMax = 4;

/** @throws OvirtFault 400 */
export function parseFollow(text: string | undefined): FollowTree {
  const root = new Map<string, FollowTree>();
  const paths = (text ?? "").split(",").map((path) => path.trim());
  if (paths.length > pathsMax) throw invalidValue("follow: too many paths");
  for (const path of paths.filter(Boolean)) {
    const names = path.split(".");
    if (names.length > depthMax || !names.every((name) => /^[a-z_]+$/.test(name))) throw unknownPath(path);
    let at = root;
    for (const name of names) {
      const next = (at.get(name) ?? new Map()) as Map<string, FollowTree>;
      at.set(name, next);
      at = next;
    }
  }
  return root;
}

const unknownPath = (path: string) => invalidValue(`follow: there is no link '${path.slice(0, 64)}'`);

/**
 * The links of a kind of object that can be followed: name → what is shown in its place. `deeper` are the names behind it, which the
 * function has to follow, or refuse.
 */
export type Followed<Subject> = Readonly<Record<string, (subject: Subject, deeper: FollowTree) => Promise<Value>>>;

/** The element with what was asked for in place of its links. @throws OvirtFault 400 for a link that it does not have */
export async function followed<Subject>(
  element: Element,
  subject: Subject,
  tree: FollowTree,
  links: Followed<Subject>,
): Promise<Element> {
  const fields: Record<string, Value> = { ...element.fields };
  for (const [name, deeper] of tree) {
    const load = Object.hasOwn(links, name) ? links[name] : undefined;
    if (!load) throw unknownPath(name);
    fields[name] = await load(subject, deeper);
  }
  const rels = new Set([...tree.keys()].map((name) => name.replaceAll("_", "")));
  const left = element.links?.filter((link) => !rels.has(typeof link === "string" ? link : link[0]));
  return { ...element, ...(left && { links: left }), fields };
}

/** @throws OvirtFault 400 where anything is asked for: for objects without links */
export function refuseFollow(tree: FollowTree): void {
  const [name] = tree.keys();
  if (name !== undefined) throw unknownPath(name);
}
