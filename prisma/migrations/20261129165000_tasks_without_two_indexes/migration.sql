-- Tasks that run are few, and the index that begins with the state finds them. Without an index of the lease, a renewal changes no index.
DROP INDEX "tasks_state_lease_until_idx";
DROP INDEX "tasks_worker_id_state_idx";
