-- Which parts of this app's units are prepared in this database, and wait for somebody to end them?
SELECT gid AS name,
       owner::text AS role,
       extract(epoch FROM clock_timestamp() - prepared)::float8 AS age_seconds
  FROM pg_prepared_xacts
 WHERE database = current_database()
   AND gid LIKE :pattern
 ORDER BY prepared
