//go:build embed_pomerium

package pomerium

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"databroker-host/tests/pomerium/target"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	"github.com/pomerium/pomerium/pkg/protoutil"
)

const reconciledType = "pomerium.io/DirectoryUser"

// records makes a wanted state of some records with 10 KiB each, so that many of them need several Puts.
func records(count int, text string) databrokerpb.RecordSetBundle {
	bundle := make(databrokerpb.RecordSetBundle)
	for i := range count {
		bundle.Add(&databrokerpb.Record{
			Type: reconciledType, Id: fmt.Sprint(i),
			Data: protoutil.NewAnyString(text + strings.Repeat(".", 10<<10)),
		})
	}
	return bundle
}

// TestReconciler makes a server's records equal to a wanted state that changes, while the server is cleared, stopped
// and killed.
func TestReconciler(t *testing.T) {
	server := target.Start(t, target.Options{})
	client := server.Client()
	var wanted atomic.Pointer[databrokerpb.RecordSetBundle]
	want := func(bundle databrokerpb.RecordSetBundle) { wanted.Store(&bundle) }
	want(records(300, "first"))

	reconciler := databrokerpb.NewReconciler(client,
		func(ctx context.Context) (databrokerpb.RecordSetBundle, error) {
			found, _, _, _, err := databrokerpb.InitialSync(ctx, client, &databrokerpb.SyncLatestRequest{
				Type: reconciledType,
			})
			bundle := make(databrokerpb.RecordSetBundle)
			for _, record := range found {
				bundle.Add(record)
			}
			return bundle, err
		},
		func(context.Context) (databrokerpb.RecordSetBundle, error) { return *wanted.Load(), nil },
		func([]*databrokerpb.Record) {},
		func(one, other *databrokerpb.Record) bool { return proto.Equal(one.GetData(), other.GetData()) },
	)
	runner := databrokerpb.NewReconcilerRunner(reconciler, "test", client, databrokerpb.WithInterval(leaseTime))
	inBackground(t, runner.Run)

	converges := func(after string) {
		t.Helper()
		target := make(view)
		target.apply((*wanted.Load()).Flatten())
		eventually(t, func() string {
			runner.TriggerSync()
			if difference := live(t, client, reconciledType).difference(target); difference != "" {
				return fmt.Sprintf("after %s the state is not reached: %.200s", after, difference)
			}
			return ""
		})
	}
	converges("the start")
	want(records(100, "second"))
	converges("changes and removals")

	_, err := client.Clear(deadline(t), new(emptypb.Empty))
	must(t, err)
	converges("Clear")
	server.Stop()
	server.StartAgain()
	converges("a stop")
	want(records(200, "third"))
	server.Kill()
	server.StartAgain()
	converges("a kill")
}
