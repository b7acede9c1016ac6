/** Whose work goes first: an operation's tasks within their project, and its bytes at a limit. Restores are of high priority. */
export const priorities = ["high", "normal", "low"] as const;
export type Priority = (typeof priorities)[number];

/** What a priority adds to the rank of a task (`taskRanks` are from 0 to 9): below 0 is what has slots of its own. */
export const priorityRanks = { high: -10, normal: 0, low: 10 } as const satisfies Record<Priority, number>;

/**
 * A worker has its slots twice: those of the lane `high` are for tasks of high priority alone, so that these never wait for a slot that
 * others have. What runs in the others gives way meanwhile (the worker's give-way.ts). Each lane is counted, filled and shared by itself.
 */
export const lanes = ["high", "other"] as const;
export type Lane = (typeof lanes)[number];

/** The ranks of a lane's tasks. */
export const laneRanks = { high: { from: -10, to: -1 }, other: { from: 0, to: 19 } } as const;
