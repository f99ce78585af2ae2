-- Which sessions are this app's, what do they do since when, and whom do they wait for?
-- Sessions of others are listed too where one of the app's waits for them, directly or through others.
WITH RECURSIVE shown AS (
    SELECT pid, TRUE AS is_own
      FROM pg_stat_activity
     WHERE datname = current_database()
       AND pid <> pg_backend_pid()
       AND application_name <> :reader_name
       AND (backend_type IS NULL OR backend_type = 'client backend')
       AND (application_name LIKE :pattern
            OR (CAST(:own_name AS text) IS NOT NULL AND application_name = :own_name AND usename = session_user))
    UNION
    SELECT blocker.pid, FALSE
      FROM shown
      JOIN pg_stat_activity AS waiting ON waiting.pid = shown.pid
           -- Asking who blocks a session stops the lock manager for a moment: only where it may be blocked.
     CROSS JOIN LATERAL unnest(
           CASE WHEN waiting.wait_event_type = 'Lock' OR waiting.backend_type IS NULL
                THEN pg_blocking_pids(waiting.pid) END) AS blocker (pid)
), listed AS (
    SELECT pid, bool_or(is_own) AS is_own FROM shown GROUP BY pid
), waits AS MATERIALIZED (
    -- Servers before 14 have no such column, and one that has just begun to wait has no time in it.
    SELECT pid,
           max(CASE WHEN to_jsonb(lock) ? 'waitstart'
               THEN coalesce(extract(epoch FROM clock_timestamp()
                                                - CAST(to_jsonb(lock) ->> 'waitstart' AS timestamptz)), 0)
               END)::float8 AS seconds
      FROM pg_locks AS lock
     WHERE NOT granted
     GROUP BY pid
)
SELECT activity.pid,
       listed.is_own,
       activity.application_name,
       activity.usename::text AS user_name,
       activity.datname::text AS database,
       host(activity.client_addr) AS client_address,
       -- The server blanks what the role may not see. Where it blanks nothing, no state is a session about to start,
       -- or a process of the server's own.
       CASE WHEN activity.backend_type IS NULL THEN 'hidden'
            WHEN activity.backend_type <> 'client backend' THEN coalesce(activity.state, activity.backend_type)
            ELSE coalesce(activity.state, 'starting') END AS state,
       extract(epoch FROM clock_timestamp() - activity.backend_start)::float8 AS connected_seconds,
       extract(epoch FROM clock_timestamp() - activity.xact_start)::float8 AS transaction_age_seconds,
       extract(epoch FROM clock_timestamp() - activity.state_change)::float8 AS state_age_seconds,
       activity.wait_event_type || '/' || activity.wait_event AS wait_event,
       CASE WHEN activity.backend_type IS NOT NULL THEN activity.query END AS query,
       CASE WHEN activity.wait_event_type = 'Lock' OR activity.backend_type IS NULL
            THEN pg_blocking_pids(activity.pid) END AS blocked_by,
       CASE WHEN activity.wait_event_type = 'Lock' OR activity.backend_type IS NULL
            THEN (SELECT seconds FROM waits WHERE waits.pid = activity.pid) END AS wait_seconds
  FROM listed
  JOIN pg_stat_activity AS activity ON activity.pid = listed.pid
 ORDER BY activity.pid
