import { Prisma } from "../db/database.ts";

/** Key of a volume's metadata by which its user names a policy. */
export const policyKey = "tephra:policy";

/** How a volume comes to a policy, the most specific first. */
export const policySources = ["volume", "metadata", "machine", "project"] as const;
export type PolicySource = (typeof policySources)[number];

/**
 * SQL: a query of each volume `v` of `volumes` (a condition on it) with every policy that could apply: `volume_id, source, place,
 * policy_id, instance_id`. The one of the least `place` applies. A policy of another project never does, nor an assignment from before the
 * volume went to another project. A name in the metadata is that of the project's own policy, or else of a published one.
 */
export const candidatesOf = (volumes: Prisma.Sql): Prisma.Sql => Prisma.sql`
  SELECT v.id AS volume_id, v.project_id, c.source, c.place, c.policy_id, c.instance_id
  FROM volumes v CROSS JOIN LATERAL (
    SELECT 'volume' AS source, 1 AS place, a.policy_id, NULL::uuid AS instance_id
    FROM policy_assignments a WHERE a.volume_id = v.id AND a.project_id = v.project_id
    UNION ALL
    (SELECT 'metadata', 2, p.id, NULL FROM policies p
      WHERE p.name = v.metadata->>${policyKey} AND (p.project_id = v.project_id OR p.project_id IS NULL)
      ORDER BY p.project_id NULLS LAST LIMIT 1)
    UNION ALL
    (SELECT 'machine', 3, a.policy_id, a.instance_id
      FROM groups g JOIN policy_assignments a ON a.project_id = g.project_id AND a.instance_id = g.instance_id
      WHERE g.id = v.group_id AND g.project_id = v.project_id)
    UNION ALL
    SELECT 'project', 4, a.policy_id, NULL
    FROM policy_assignments a WHERE a.scope = 'project' AND a.project_id = v.project_id
  ) c
  WHERE ${volumes}`;

/**
 * SQL: the ids of volumes to which another policy may apply than that of their project: few of many. One index each, of volumes
 * `volumes_named_policy_idx`.
 */
export const withOwnPolicy: Prisma.Sql = Prisma.sql`
  SELECT a.volume_id AS id FROM policy_assignments a WHERE a.volume_id IS NOT NULL
  UNION
  SELECT n.id FROM volumes n WHERE n.metadata ? ${Prisma.raw(`'${policyKey}'`)}
  UNION
  SELECT m.id FROM policy_assignments a JOIN groups g ON g.project_id = a.project_id AND g.instance_id = a.instance_id
    JOIN volumes m ON m.group_id = g.id`;
