//go:build embed_pomerium

// Package pomerium tests a databroker with Pomerium's own code: its storage tests, its clients and its server.
package pomerium

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"databroker-host/tests/pomerium/stock"
	"databroker-host/tests/pomerium/target"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	"github.com/pomerium/pomerium/pkg/grpc/session"
	"github.com/pomerium/pomerium/pkg/grpcutil"
)

// patience bounds every wait for a condition. Pomerium's clients back off up to several seconds after a restart.
const patience = 60 * time.Second

var sessionType = grpcutil.GetTypeURL(new(session.Session))

// TestMain lets the test binary be the stock server when a test starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv(target.RunStockVariable) != "" {
		os.Exit(stock.Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	level, err := zerolog.ParseLevel(os.Getenv("POMERIUM_LOG_LEVEL"))
	if err != nil || level == zerolog.NoLevel {
		// Lost connections are part of the tests and Pomerium logs each of them as an error.
		level = zerolog.Disabled
	}
	zerolog.SetGlobalLevel(level)
	os.Exit(m.Run())
}

// eventually waits until problem returns "", and fails with its last answer.
func eventually(t *testing.T, problem func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		last := problem()
		if last == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v still: %s", patience, last)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// deadline is a context for the calls of one test.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	t.Cleanup(cancel)
	return ctx
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// inBackground runs something that ends with its context, until the test ends.
func inBackground(t *testing.T, run func(ctx context.Context) error) context.CancelFunc {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Errorf("%T did not end within %v after it was cancelled", run, patience)
		}
	})
	return cancel
}

// putSession writes a session whose access token is token and returns the version it got.
func putSession(t *testing.T, client databrokerpb.DataBrokerServiceClient, id, token string) uint64 {
	t.Helper()
	response, err := databrokerpb.Put(deadline(t), client, &session.Session{
		Id: id, OauthToken: &session.OAuthToken{AccessToken: token},
	})
	must(t, err)
	return response.GetRecord().GetVersion()
}

// view is what a client knows of one type: the data of each live record by id.
type view map[string]proto.Message

// live is the view of a client that asks the server now.
func live(t *testing.T, client databrokerpb.DataBrokerServiceClient, recordType string) view {
	t.Helper()
	records, _, _, _, err := databrokerpb.InitialSync(deadline(t), client, &databrokerpb.SyncLatestRequest{
		Type: recordType,
	})
	must(t, err)
	current := make(view)
	current.apply(records)
	return current
}

func (v view) apply(records []*databrokerpb.Record) {
	for _, record := range records {
		if record.GetDeletedAt() != nil {
			delete(v, record.GetId())
		} else {
			v[record.GetId()] = record.GetData()
		}
	}
}

// difference says how the views differ, or "".
func (v view) difference(other view) string {
	for id, data := range v {
		if !proto.Equal(data, other[id]) {
			return fmt.Sprintf("record %q is %v here and %v there", id, data, other[id])
		}
	}
	for id := range other {
		if _, ok := v[id]; !ok {
			return fmt.Sprintf("record %q is missing here", id)
		}
	}
	return ""
}
