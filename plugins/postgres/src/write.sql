-- Writes changes: gives each a version, in their order, and a row in the change log, in the records and in our own table.
-- As one function it is one round trip to the server, also where it is a transaction of its own; and unlike a single statement
-- each of its statements sees what was committed before it, so that nothing is read before the lock is held.
--
-- in_json is null where a record is removed whose last data is the database's; so are its exact bytes then, if there are any.
-- in_last is true for the last change of a key. in_expected is the version that a record must have before: 0 for none at all
-- (which nothing keeps from Pomerium's processes until in_company is true), null for any. Where one has another, nothing is
-- written, and versions is null. Whoever removes has locked the records before.
CREATE FUNCTION pomerium.{name}(
    in_types text[], in_ids text[], in_json text[], in_bytes bytea[], in_networks text[], in_deleted boolean[],
    in_last boolean[], in_expected bigint[], in_now bigint, in_sequence text, in_company boolean,
    OUT server_version bigint, OUT options_revision bigint, OUT versions bigint[])
LANGUAGE plpgsql
-- Whoever may make functions in another schema must not have them called in place of the server's own.
SET search_path = pg_catalog, pg_temp
-- Rows are found one by one, by an index. One plan is right for that however many there are, and a plan for each call would
-- cost more than the write; but one that was made while the tables were small must not read all of them later on.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
-- What is turned off costs so much that the server would compile the plan, at each call.
SET jit = off
AS $function$
#variable_conflict use_column
DECLARE
    sequence CONSTANT regclass := in_sequence;
    now_rounded CONSTANT timestamptz := timestamptz 'epoch' + (in_now / 1000) * interval '1 microsecond';
    are_all_kept boolean;
BEGIN
    -- An operator may have set that a transaction sees what was there when it began, which is before it had the lock.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN;
    END IF;
    PERFORM pomerium.{lock}(in_company);
    SELECT m.server_version, {options_revision} INTO server_version, options_revision FROM pomerium.migration_info m LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'pomerium.migration_info is empty' USING ERRCODE = 'no_data_found',
            HINT = 'Restore its row, or drop the schema pomerium.';
    END IF;

    IF in_expected IS NOT NULL THEN
        -- Pomerium's processes leave them alone from here on.
        PERFORM FROM (
                SELECT * FROM unnest(in_types, in_ids, in_expected) AS u(type, id, expected)
                WHERE expected IS NOT NULL ORDER BY type, id) k
            LEFT JOIN LATERAL (
                SELECT r.version FROM pomerium.records r WHERE r.type = k.type AND r.id = k.id FOR UPDATE) r ON true
            WHERE k.expected <> coalesce(r.version, 0);
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;

    WITH input AS MATERIALIZED (
        SELECT nextval(sequence) AS version, i.*, o.version AS old, coalesce(i.json::jsonb, o.data) AS data FROM (
            SELECT * FROM unnest(in_types, in_ids, in_json, in_bytes, in_networks, in_deleted, in_last)
            WITH ORDINALITY AS u(type, id, json, bytes, network, deleted, is_last, n) ORDER BY n) i
        LEFT JOIN LATERAL (
            SELECT r.version, CASE WHEN i.json IS NULL THEN r.data END AS data FROM pomerium.records r
            WHERE r.type = i.type AND r.id = i.id AND (i.is_last OR i.json IS NULL) OFFSET 0) o ON true),
    logged AS (
        INSERT INTO pomerium.record_changes (type, id, version, data, modified_at, deleted_at)
        SELECT type, id, version, data, now_rounded, CASE WHEN deleted THEN now_rounded END FROM input),
    exact AS (
        INSERT INTO pomerium.host_exact (version, data, modified_at, deleted_at)
        SELECT i.version, CASE WHEN i.json IS NULL THEN d.data ELSE i.bytes END, in_now, CASE WHEN i.deleted THEN in_now END
        FROM input i LEFT JOIN LATERAL (
            SELECT * FROM pomerium.host_exact d WHERE i.json IS NULL AND d.version = i.old OFFSET 0) d ON true
        WHERE i.json IS NOT NULL OR d.version IS NOT NULL),
    kept AS (
        INSERT INTO pomerium.records AS r (type, id, version, data, modified_at, index_cidr)
        SELECT type, id, version, data, now_rounded, network::inet FROM input WHERE is_last AND NOT deleted
        ON CONFLICT (type, id) DO UPDATE SET version = EXCLUDED.version, data = EXCLUDED.data,
            modified_at = EXCLUDED.modified_at, index_cidr = EXCLUDED.index_cidr WHERE r.version < EXCLUDED.version
        RETURNING r.version),
    stale AS (
        DELETE FROM pomerium.host_exact d WHERE d.version = ANY (ARRAY (SELECT i.old FROM input i WHERE i.is_last))
        AND (SELECT c.version FROM pomerium.record_changes c WHERE c.version = d.version) IS NULL)
    SELECT array_agg(version ORDER BY n), count(*) FILTER (WHERE is_last AND NOT deleted) = (SELECT count(*) FROM kept)
    INTO versions, are_all_kept FROM input;
    -- A record with a higher version is one that a process of Pomerium's has written meanwhile; unless nobody was ever given that
    -- version, as where records were copied without their sequence. Then what is written here would be lost.
    IF NOT are_all_kept AND EXISTS (
        SELECT FROM unnest(in_types, in_ids) AS k(type, id)
        CROSS JOIN LATERAL (SELECT r.version FROM pomerium.records r WHERE r.type = k.type AND r.id = k.id OFFSET 0) r
        WHERE r.version > pg_sequence_last_value(sequence)) THEN
        RAISE EXCEPTION 'a record has a version that the sequence of pomerium.record_changes has not reached'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'A host moves the sequence on when it starts.';
    END IF;

    IF true = ANY (in_deleted) THEN
        DELETE FROM pomerium.records WHERE ctid = ANY (ARRAY (
            SELECT r.ctid FROM unnest(in_types, in_ids, in_deleted, in_last) AS k(type, id, deleted, is_last)
            CROSS JOIN LATERAL (
                SELECT r.ctid FROM pomerium.records r WHERE r.type = k.type AND r.id = k.id FOR UPDATE) r
            WHERE k.deleted AND k.is_last));
    END IF;
    IF versions IS NOT NULL THEN
        PERFORM pg_notify('pomerium_record_change', '');
    END IF;
END
$function$
