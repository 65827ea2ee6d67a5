package remote

// Limit is something that Pomerium's storage interface or its tests can say and the databroker's protocol cannot.
type Limit struct {
	// What is the name of the method or test, and the part of it.
	What string
	// Reason says why there is no word for it on the wire.
	Reason string
	// Instead says what is done here in its place.
	Instead string
}

// Limits is the whole list. The README repeats it and a test compares the two.
var Limits = []Limit{
	{
		"Backend.SyncLatest with a filter", "SyncLatestRequest has no filter",
		"Query with the same filter and no effective limit; the answer is one message, so 4 MiB at most",
	},
	{
		"Backend.SyncLatest, versions before records", "on the wire the versions message comes last",
		"the stream is read to its end first, and its order is checked",
	},
	{
		"Backend.Sync, control frame", "the frame that says a stream is open never leaves a server",
		"the client makes one when its call is open; an idle server sends nothing that could confirm it",
	},
	{
		"Backend.Clean", "no RPC cleans; a server does by itself, after the history it was configured with",
		"waits until ServerInfo says that the changes are gone, with a history of 2 s and a pass every 50 ms",
	},
	{
		"Backend.Close", "a client cannot close a server's storage",
		"closes the connection; what a stopping server does to its streams is tested with restarts",
	},
	{
		"Backend.Lease with a chosen id", "AcquireLease makes the id itself",
		"RenewLease, which takes a free lease under any id; AcquireLease is tested with Pomerium's Leaser",
	},
	{
		"Backend.SetOptions to remove options", "stock removes them and answers NOT_FOUND, another server may answer OK",
		"both are taken for success; GetOptions must then answer NOT_FOUND",
	},
	{
		"Backend.Put, results in the given records", "a response is another message",
		"the response's records, as many and in the same order, are copied into the given ones",
	},
	{
		"Backend.SetCheckpoint in a cluster", "a leader and a follower refuse it by protocol",
		"tested on a single server",
	},
	{
		"storagetest.TestIndexing, a field without an index finds nothing",
		"an accident of the stock file storage: the protocol does not tell whether a field is indexed",
		"run as for Pomerium's Postgres storage, which finds records by any field",
	},
	{
		"storagetest.TestIndexing, records of type test.Test",
		"that message is part of Pomerium's tests, so a server of another process cannot look inside",
		"the records hold a session.Session with the same strings, one of them nested too; field names follow",
	},
	{
		"storagetest.TestSyncOldRecords on the stock server", "stock keeps an hour of changes, fixed in its code",
		"skipped with TARGET=stock only",
	},
}
