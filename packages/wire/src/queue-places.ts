/** The first places of the queue, which are counted: `queue_position` is at most one more. In a file of its own, without the schemas. */
export const queuePlaces = 1_000;
