-- Takes the lock of all hosts that write, until the transaction ends.
--
-- Pomerium's own processes do not take it. Their readers pass by whatever of ours has a lower version than a change of theirs
-- and is committed after it, and never come back. So where there are some (in_company) they are kept from writing for as long
-- as this takes, once what they write now is done. A vacuum is not waited for longer than others of their writes take; then it
-- goes without. Of theirs, a patch may hold a record that is written here and wait for this: then this gives way, before the
-- server looks for circles (deadlock_timeout, 1 s), and is tried again. It gives way to whoever else holds a record as well: all
-- hosts wait for this.
CREATE FUNCTION pomerium.{name}(in_company boolean) RETURNS void
LANGUAGE plpgsql
-- Whoever may make functions in another schema must not have them called in place of the server's own.
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    PERFORM pg_advisory_xact_lock({key});
    IF in_company THEN
        BEGIN
            SET LOCAL lock_timeout = '50ms';
            LOCK TABLE pomerium.record_changes IN SHARE MODE;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END IF;
    SET LOCAL lock_timeout = '300ms';
END
$function$
