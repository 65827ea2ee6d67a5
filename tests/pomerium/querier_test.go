//go:build embed_pomerium

package pomerium

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"databroker-host/tests/pomerium/target"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	"github.com/pomerium/pomerium/pkg/grpc/session"
	"github.com/pomerium/pomerium/pkg/storage"
)

// byID is the query that Pomerium's authorize service makes for each request.
func byID(id string, hint uint64) *databrokerpb.QueryRequest {
	request := &databrokerpb.QueryRequest{Type: sessionType, Limit: 1}
	request.SetFilterByIDOrIndex(id)
	if hint > 0 {
		request.MinimumRecordVersionHint = proto.Uint64(hint)
	}
	return request
}

// token asks a querier for a session's access token, "" if there is no such session.
func token(t *testing.T, querier storage.Querier, id string, hint uint64) (string, error) {
	t.Helper()
	response, err := querier.Query(deadline(t), byID(id, hint))
	if err != nil || len(response.GetRecords()) == 0 {
		return "", err
	}
	var found session.Session
	must(t, response.GetRecords()[0].GetData().UnmarshalTo(&found))
	return found.GetOauthToken().GetAccessToken(), nil
}

// answers waits until a querier is able to answer and requires that its first answer is the wanted one.
func answers(t *testing.T, querier storage.Querier, id string, hint uint64, wanted string) {
	t.Helper()
	eventually(t, func() string {
		got, err := token(t, querier, id, hint)
		switch {
		case errors.Is(err, storage.ErrUnavailable):
			return fmt.Sprintf("the querier has not reached version %d", hint)
		case err != nil:
			t.Fatalf("querying %q: %v", id, err)
		case got != wanted:
			t.Fatalf("asked for %q at version %d, the querier answered %q instead of %q", id, hint, got, wanted)
		}
		return ""
	})
}

// settles waits until a querier that is being reset answers as wanted.
func settles(t *testing.T, querier storage.Querier, id, wanted string) {
	t.Helper()
	eventually(t, func() string {
		got, err := token(t, querier, id, 0)
		if err != nil || got != wanted {
			return fmt.Sprintf("the querier answers %q and %v for %q", got, err, id)
		}
		return ""
	})
}

func syncQuerier(t *testing.T, client databrokerpb.DataBrokerServiceClient) storage.Querier {
	t.Helper()
	querier := storage.NewSyncQuerier(client, sessionType)
	t.Cleanup(querier.Stop)
	return querier
}

// TestSyncQuerierReadsItsWrites checks that the version a Put returns is the one that Sync delivers: a sync querier
// that is told of a higher one would wait forever, and one that is told of a lower one would answer with old records.
func TestSyncQuerierReadsItsWrites(t *testing.T) {
	server := target.Start(t, target.Options{})
	client := server.Client()
	querier := syncQuerier(t, client)
	ctx := storage.WithQuerier(deadline(t), querier)
	for i := range 50 {
		wanted := fmt.Sprint(i)
		response, err := databrokerpb.Put(ctx, client, &session.Session{
			Id: "s", OauthToken: &session.OAuthToken{AccessToken: wanted},
		})
		must(t, err)
		storage.InvalidateCacheForDataBrokerRecords(ctx, response.GetRecords()...)
		// The hint of the invalidation is kept by the querier, so the query needs none.
		answers(t, querier, "s", 0, wanted)
	}

	// A Put of several records hands out several versions, of which the last is the hint of a login.
	response, err := databrokerpb.Put(ctx, client,
		&session.Session{Id: "a", OauthToken: &session.OAuthToken{AccessToken: "a"}},
		&session.Session{Id: "b", OauthToken: &session.OAuthToken{AccessToken: "b"}})
	must(t, err)
	answers(t, querier, "b", response.GetRecords()[1].GetVersion(), "b")
	answers(t, querier, "a", response.GetRecords()[1].GetVersion(), "a")

	// A Patch too.
	mask := fieldMask(t, "oauth_token")
	patched, err := session.Patch(ctx, client, &session.Session{
		Id: "a", OauthToken: &session.OAuthToken{AccessToken: "patched"},
	}, mask)
	must(t, err)
	storage.InvalidateCacheForDataBrokerRecords(ctx, patched.GetRecords()...)
	answers(t, querier, "a", 0, "patched")

	_, err = storage.DeleteDataBrokerRecord(ctx, client, sessionType, "a")
	must(t, err)
	settles(t, querier, "a", "")
}

// TestSyncQuerierAcrossClearAndRestart checks that a sync querier is never ended for good by the server.
func TestSyncQuerierAcrossClearAndRestart(t *testing.T) {
	t.Run("clear", func(t *testing.T) {
		target.SkipOnStock(t, "Clear ends its streams with CANCELLED, on which a sync querier stops for good")
		server := target.Start(t, target.Options{})
		client := server.Client()
		var ends target.StreamEnds
		querier := syncQuerier(t, server.Client(ends.Record()))
		answers(t, querier, "s", putSession(t, client, "s", "before"), "before")
		for i := range 3 {
			_, err := client.Clear(deadline(t), new(emptypb.Empty))
			must(t, err)
			settles(t, querier, "s", "")
			wanted := fmt.Sprint("after clear ", i)
			putSession(t, client, "s", wanted)
			settles(t, querier, "s", wanted)
		}
		requireNoCancelledStream(t, &ends, codes.Aborted)
	})
	for _, end := range []struct {
		name string
		end  func(server *target.Server)
	}{
		{"stop", (*target.Server).Stop},
		{"kill", (*target.Server).Kill},
	} {
		t.Run(end.name, func(t *testing.T) {
			server := target.Start(t, target.Options{})
			client := server.Client()
			var ends target.StreamEnds
			querier := syncQuerier(t, server.Client(ends.Record()))
			answers(t, querier, "s", putSession(t, client, "s", "before"), "before")
			end.end(server)
			server.StartAgain()
			putSession(t, client, "s", "after")
			settles(t, querier, "s", "after")
			requireNoCancelledStream(t, &ends, codes.Unavailable)
		})
	}
}

// TestCachingQuerier checks that a response's record version lets a cache see that it is too old for a hint.
func TestCachingQuerier(t *testing.T) {
	server := target.Start(t, target.Options{})
	client := server.Client()
	querier := storage.NewCachingQuerier(storage.NewQuerier(client), storage.NewGlobalCache(time.Minute))

	first := putSession(t, client, "s", "first")
	answers(t, querier, "s", first, "first")
	second := putSession(t, client, "s", "second")
	answers(t, querier, "s", 0, "first") // From the cache, or this test would show nothing.
	answers(t, querier, "s", first, "first")
	answers(t, querier, "s", second, "second")
	answers(t, querier, "s", 0, "second")

	third := putSession(t, client, "s", "third")
	querier.InvalidateCache(context.Background(), byID("s", third))
	answers(t, querier, "s", 0, "third")
}

// TestAuthorizeQuerier puts the queriers together as the authorize service does: what a login wrote is found at once,
// by the sync querier if it is up to date and else by a call, and the server may be cleared and restarted in between.
func TestAuthorizeQuerier(t *testing.T) {
	server := target.Start(t, target.Options{})
	client := server.Client()
	querier := storage.NewFallbackQuerier(
		syncQuerier(t, client),
		storage.NewCachingQuerier(storage.NewQuerier(client), storage.NewGlobalCache(time.Minute)),
	)
	ctx := storage.WithQuerier(deadline(t), querier)
	login := func(wanted string) {
		t.Helper()
		response, err := databrokerpb.Put(ctx, client, &session.Session{
			Id: "s", OauthToken: &session.OAuthToken{AccessToken: wanted},
		})
		must(t, err)
		storage.InvalidateCacheForDataBrokerRecords(ctx, response.GetRecords()...)
		found, err := storage.GetDataBrokerMessage[session.Session](ctx, "s", response.GetRecord().GetVersion())
		must(t, err)
		if got := found.GetOauthToken().GetAccessToken(); got != wanted {
			t.Fatalf("a login that wrote %q was answered %q", wanted, got)
		}
	}
	for i := range 20 {
		login(fmt.Sprint(i))
	}
	server.Stop()
	server.StartAgain()
	eventually(t, func() string {
		if putSession(t, client, "s", "after restart"); len(live(t, client, sessionType)) == 0 {
			return "the record is not there"
		}
		if got, err := token(t, querier, "s", 0); err != nil || got != "after restart" {
			return fmt.Sprintf("the querier answers %q and %v", got, err)
		}
		return ""
	})
	for i := range 20 {
		login(fmt.Sprint("again ", i))
	}
}
