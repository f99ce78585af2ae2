-- Which server is this, and under which name and role does the app connect to it?
SELECT current_setting('server_version') AS server_version,
       current_setting('application_name') AS application_name,
       session_user::text AS role,
       current_database()::text AS database,
       extract(epoch FROM pg_postmaster_start_time())::text AS started_at,
       host(inet_client_addr()) AS client_address,
       pg_backend_pid() AS backend_pid
