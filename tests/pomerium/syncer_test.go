//go:build embed_pomerium

package pomerium

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	"databroker-host/tests/pomerium/target"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	"github.com/pomerium/pomerium/pkg/grpc/session"
	"github.com/pomerium/pomerium/pkg/grpc/user"
)

// collector is a syncer's handler that keeps what it is told.
type collector struct {
	client databrokerpb.DataBrokerServiceClient
	// gate is held while an update is taken in; a test that holds it is a slow handler.
	gate sync.Mutex

	// mu guards the fields below.
	mu sync.Mutex
	// known are the live records.
	known view
	// strangers are the types of records that were delivered although another type was asked for.
	strangers []string
	// delivered counts records, cleared counts resets.
	delivered, cleared int
	// recordType is what the syncer asked for, empty for everything.
	recordType string
}

func (c *collector) GetDataBrokerServiceClient() databrokerpb.DataBrokerServiceClient {
	return c.client
}

func (c *collector) ClearRecords(context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = make(view)
	c.cleared++
}

func (c *collector) UpdateRecords(_ context.Context, _ uint64, records []*databrokerpb.Record) {
	c.gate.Lock()
	defer c.gate.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delivered += len(records)
	if c.known == nil {
		c.known = make(view)
	}
	c.known.apply(records)
	for _, record := range records {
		if c.recordType != "" && record.GetType() != c.recordType {
			c.strangers = append(c.strangers, record.GetType())
		}
	}
}

func (c *collector) view() view {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.known)
}

// collect runs a syncer until the test ends.
func collect(
	t *testing.T, client databrokerpb.DataBrokerServiceClient, recordType string, options ...databrokerpb.SyncerOption,
) *collector {
	t.Helper()
	handler := &collector{client: client, recordType: recordType}
	options = append(options, databrokerpb.WithTypeURL(recordType))
	syncer := databrokerpb.NewSyncer(context.Background(), t.Name(), handler, options...)
	inBackground(t, syncer.Run)
	t.Cleanup(func() { _ = syncer.Close() })
	return handler
}

// TestSyncer clears, stops and kills the server under a Syncer, which must know in the end what the server knows.
func TestSyncer(t *testing.T) {
	server := target.Start(t, target.Options{})
	client := server.Client()
	var ends target.StreamEnds
	putSession(t, client, "before-1", "a")
	putSession(t, client, "before-2", "a")
	_, err := databrokerpb.Put(deadline(t), client, &user.User{Id: "of another type"})
	must(t, err)

	synced := collect(t, server.Client(ends.Record()), sessionType)
	converges := func(id string) {
		t.Helper()
		eventually(t, func() string {
			if _, ok := synced.view()[id]; !ok {
				return fmt.Sprintf("the syncer does not know %q", id)
			}
			return synced.view().difference(live(t, client, sessionType))
		})
	}
	converges("before-2")

	putSession(t, client, "before-1", "b")
	must(t, session.Delete(deadline(t), client, "before-2"))
	putSession(t, client, "streamed", "a")
	converges("streamed")

	_, err = client.Clear(deadline(t), new(emptypb.Empty))
	must(t, err)
	putSession(t, client, "after clear", "a")
	converges("after clear")
	if synced.view()["streamed"] != nil {
		t.Error("a record from before Clear is still known")
	}
	requireNoCancelledStream(t, &ends, codes.Aborted)

	before, err := client.ServerInfo(deadline(t), new(emptypb.Empty))
	must(t, err)
	server.Stop()
	server.StartAgain()
	after, err := client.ServerInfo(deadline(t), new(emptypb.Empty))
	must(t, err)
	if live(t, client, sessionType)["after clear"] == nil && before.GetServerVersion() == after.GetServerVersion() {
		t.Error("the server lost its records in a restart and kept its server version: clients cannot know")
	}
	putSession(t, client, "after stop", "a")
	converges("after stop")
	requireNoCancelledStream(t, &ends, codes.Unavailable)

	server.Kill()
	server.StartAgain()
	putSession(t, client, "after kill", "a")
	converges("after kill")

	synced.mu.Lock()
	defer synced.mu.Unlock()
	if len(synced.strangers) > 0 {
		t.Errorf("a stream of %s delivered records of %v", sessionType, synced.strangers)
	}
	if synced.cleared < 2 {
		t.Errorf("the syncer started over %d times, at the start and after Clear it must", synced.cleared)
	}
}

// requireNoCancelledStream checks that the server ended a stream with the code and none with CANCELLED, which some of
// Pomerium's clients take for their own wish to end for good.
func requireNoCancelledStream(t *testing.T, ends *target.StreamEnds, wanted codes.Code) {
	t.Helper()
	if target.Stock() {
		return // It does end streams with CANCELLED.
	}
	if cancelled := ends.With(codes.Canceled); len(cancelled) > 0 {
		t.Errorf("the server ended streams with CANCELLED: %v", cancelled)
	}
	if len(ends.With(wanted)) == 0 {
		t.Errorf("no stream was ended with %v but with %v", wanted, ends.All())
	}
}

// TestFastForward holds up a fast-forwarding handler while a record changes often: it must get the last state without
// the ones in between.
func TestFastForward(t *testing.T) {
	const changes = 200
	server := target.Start(t, target.Options{})
	client := server.Client()
	slow := collect(t, client, sessionType, databrokerpb.WithFastForward())
	quick := collect(t, client, sessionType)
	putSession(t, client, "snapshot", "first")
	eventually(t, func() string { return slow.view().difference(live(t, client, sessionType)) })

	slow.gate.Lock()
	for i := range changes {
		putSession(t, client, "snapshot", fmt.Sprint(i))
	}
	eventually(t, func() string { return quick.view().difference(live(t, client, sessionType)) })
	slow.gate.Unlock()

	eventually(t, func() string { return slow.view().difference(live(t, client, sessionType)) })
	slow.mu.Lock()
	delivered := slow.delivered
	slow.mu.Unlock()
	if delivered >= changes {
		t.Errorf("%d records were delivered for %d changes: nothing was fast-forwarded", delivered, changes)
	}

	_, err := client.Clear(deadline(t), new(emptypb.Empty))
	must(t, err)
	putSession(t, client, "snapshot", "after clear")
	eventually(t, func() string { return slow.view().difference(live(t, client, sessionType)) })

	server.Stop()
	server.StartAgain()
	putSession(t, client, "snapshot", "after restart")
	eventually(t, func() string { return slow.view().difference(live(t, client, sessionType)) })
}
