-- What became of the transaction that decides over prepared ones?
SELECT pg_xact_status(CAST(CAST(:xid AS text) AS xid8))
