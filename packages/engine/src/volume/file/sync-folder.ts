import * as folder from "../../folder.ts";
import { guardStorage } from "../storage-error.ts";

/** Makes the names in a folder durable. */
export const syncFolder = (path: string): Promise<void> => guardStorage(`write ${path}`, () => folder.syncFolder(path));
