import { randomUUID } from "node:crypto";
import type { Prisma } from "../db/database.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isUuid, orderOf, type Page, windowOf } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { GroupType } from "../rows/groups.ts";
import { instanceGroupType } from "../rows/groups.ts";

/** By id or name. @throws NotFoundError */
export async function getGroupType(database: Database | Transaction, wanted: string): Promise<GroupType> {
  const row = await database.groupType.findFirst({ where: isUuid(wanted) ? { id: wanted } : { name: wanted } });
  if (!row) throw new NotFoundError("Group type", wanted);
  return row;
}

export type GroupTypeSortKey = "id" | "name" | "createdAt" | "updatedAt" | "isPublic" | "description";

/** One page; types that are not public are shown to admins only. */
export async function listGroupTypes(
  database: Database,
  query: { isPublic: boolean | null; page: Page<GroupTypeSortKey> },
): Promise<GroupType[]> {
  const { isPublic, page } = query;
  if (page.marker !== undefined) await getGroupType(database, page.marker);
  const where = isPublic === null ? {} : { isPublic };
  return database.groupType.findMany({ where, orderBy: orderOf(page), ...windowOf(page) });
}

export interface NewGroupType {
  name: string;
  description: string | null;
  isPublic: boolean;
  groupSpecs: Record<string, string>;
}

/** @throws InvalidError when the name is taken */
export async function createGroupType(database: Database, type: NewGroupType): Promise<GroupType> {
  const [row] = await database.groupType.createManyAndReturn({
    data: [{ ...type, id: randomUUID() }],
    skipDuplicates: true,
  });
  if (!row) throw new InvalidError("request", `Group Type ${type.name} already exists.`);
  return row;
}

/** The type of instance groups is part of the service and read-only. @throws InvalidError */
function refuseReserved(id: string): void {
  if (id !== instanceGroupType) return;
  throw new InvalidError("request", "The group type instance_group_type is reserved.");
}

/** Changes the given fields. @throws InvalidError when the name is taken or the type is reserved; NotFoundError */
export async function updateGroupType(
  database: Database,
  id: string,
  change: Partial<NewGroupType>,
): Promise<GroupType> {
  return inTransaction(database, async (tx) => {
    const { id: found } = await getGroupType(tx, id);
    refuseReserved(found);
    const taken = change.name === undefined ? null : await tx.groupType.findUnique({ where: { name: change.name } });
    if (taken && taken.id !== found) throw new InvalidError("request", `Group Type ${change.name} already exists.`);
    const data: Prisma.GroupTypeUpdateInput = { ...change, updatedAt: new Date() };
    return tx.groupType.update({ where: { id: found }, data });
  });
}

/** @throws InvalidError while groups are of this type, or if it is reserved; NotFoundError */
export async function deleteGroupType(database: Database, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { id: found } = await getGroupType(tx, id);
    refuseReserved(found);
    if ((await tx.group.count({ where: { groupTypeId: found } })) > 0) {
      throw new InvalidError("request", "Target group type is still in use.");
    }
    await tx.groupType.delete({ where: { id: found } });
  });
}
