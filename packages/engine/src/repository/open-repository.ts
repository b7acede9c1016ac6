import { resolve } from "node:path";
import { RepositoryConfigError } from "../errors.ts";
import { PosixRepository } from "./posix.ts";
import type { Repository } from "./repository.ts";

/**
 * Opens the repository that a URL names: `posix:` and a path, relative ones to the working directory. Nothing is created or
 * checked; ask for its identity before writing. RepositoryConfigError for any other text.
 */
export async function openRepository(url: string): Promise<Repository> {
  const path = /^posix:(.+)$/s.exec(url)?.[1];
  if (path === undefined || path.includes("\0")) {
    throw new RepositoryConfigError(
      `Not the URL of a repository: ${JSON.stringify(url.slice(0, 300))}. Expected posix:/folder.`,
    );
  }
  return new PosixRepository(resolve(path));
}
