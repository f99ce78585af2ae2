-- Keep the reading itself short, and out of what a second reader takes for a session of the app.
-- Both settings end with the transaction, so that a connection pooler in between does not pass them on.
SELECT set_config('statement_timeout', :timeout_ms, true),
       set_config('application_name', :reader_name, true)
