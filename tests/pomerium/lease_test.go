//go:build embed_pomerium

package pomerium

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"databroker-host/tests/pomerium/target"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
)

// leaseTime is short, since a Leaser that waits looks again after half of it.
const leaseTime = 2 * time.Second

// holders counts those who hold a lease.
type holders struct {
	// now is how many hold it at this moment, shared how often one took it while another held it.
	now, shared atomic.Int64
	// starts is how often one took it.
	starts atomic.Int64
}

// run is the work of a holder.
func (h *holders) run(ctx context.Context) error {
	h.starts.Add(1)
	if h.now.Add(1) > 1 {
		h.shared.Add(1)
	}
	defer h.now.Add(-1)
	<-ctx.Done()
	return ctx.Err()
}

func (h *holders) become(t *testing.T, wanted int64) {
	t.Helper()
	eventually(t, func() string {
		if now := h.now.Load(); now != wanted {
			return fmt.Sprintf("%d hold the lease instead of %d", now, wanted)
		}
		return ""
	})
}

// countRenewals is a dial option that counts the leases that were renewed.
func countRenewals(renewals *atomic.Int64) grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(func(
		ctx context.Context, method string, request, reply any, connection *grpc.ClientConn,
		invoker grpc.UnaryInvoker, options ...grpc.CallOption,
	) error {
		err := invoker(ctx, method, request, reply, connection, options...)
		if err == nil && method == databrokerpb.DataBrokerService_RenewLease_FullMethodName {
			renewals.Add(1)
		}
		return err
	})
}

// TestLeaser has two Leasers compete for a lease while the server is cleared, stopped and killed.
func TestLeaser(t *testing.T) {
	server := target.Start(t, target.Options{})
	var held holders
	var renewals atomic.Int64
	client := server.Client(countRenewals(&renewals))
	stopFirst := inBackground(t, databrokerpb.NewLeasers("lease", leaseTime, client, held.run).Run)
	held.become(t, 1)
	inBackground(t, databrokerpb.NewLeasers("lease", leaseTime, server.Client(countRenewals(&renewals)), held.run).Run)

	renewed := func(times int64) {
		t.Helper()
		wanted := renewals.Load() + times
		eventually(t, func() string {
			if now := renewals.Load(); now < wanted {
				return fmt.Sprintf("the lease was renewed %d times instead of %d", now, wanted)
			}
			return ""
		})
	}
	renewed(2)
	if starts := held.starts.Load(); starts != 1 {
		t.Errorf("the lease was taken %d times while its first holder renewed it", starts)
	}

	_, err := client.Clear(deadline(t), new(emptypb.Empty))
	must(t, err)
	renewed(2)
	if starts := held.starts.Load(); starts != 1 {
		t.Errorf("the lease was taken %d times: Clear must not take leases away", starts)
	}

	stopFirst()
	eventually(t, func() string {
		if starts := held.starts.Load(); starts < 2 {
			return "the second has not taken the lease that the first gave back"
		}
		return ""
	})
	held.become(t, 1)
	if shared := held.shared.Load(); shared != 0 {
		t.Errorf("the lease was taken %d times while another held it", shared)
	}

	server.Stop()
	server.StartAgain()
	renewed(2)
	held.become(t, 1)
	server.Kill()
	server.StartAgain()
	renewed(2)
	held.become(t, 1)
}

// TestLeaserTakesExpiredLease checks that the lease of a holder that died passes on when it is over and not before.
func TestLeaserTakesExpiredLease(t *testing.T) {
	server := target.Start(t, target.Options{})
	client := server.Client()
	taken := time.Now()
	_, err := client.AcquireLease(deadline(t), &databrokerpb.AcquireLeaseRequest{
		Name: "lease", Duration: durationpb.New(leaseTime),
	})
	must(t, err)
	started := make(chan time.Time, 1)
	inBackground(t, databrokerpb.NewLeasers("lease", leaseTime/4, client, func(ctx context.Context) error {
		started <- time.Now()
		<-ctx.Done()
		return ctx.Err()
	}).Run)
	select {
	case at := <-started:
		if waited := at.Sub(taken); waited < leaseTime {
			t.Errorf("a lease of %v was taken from its holder after %v", leaseTime, waited)
		}
	case <-time.After(patience):
		t.Fatalf("a lease of %v did not pass on within %v", leaseTime, patience)
	}
}
