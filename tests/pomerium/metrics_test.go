//go:build embed_pomerium

package pomerium

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"databroker-host/tests/pomerium/stock"
	"databroker-host/tests/pomerium/target"

	pomeriumgrpc "github.com/pomerium/pomerium/pkg/grpc"
	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
)

// pool begins the names of what is told of a pool of connections.
const pool = "pomerium_pgxpool_"

// TestPoolMetrics compares what a host tells of its pool of connections with a scrape of Pomerium's own databroker on
// the same Postgres server: names, kinds, labels, and what is in those that do not count anything.
func TestPoolMetrics(t *testing.T) {
	target.SkipOnStock(t, "the host is compared with it")
	database := target.NewDatabase(t)
	if database == "" {
		t.Skip("set DATABROKER_POSTGRES to a server to compare what is told of connections to it")
	}

	ready, failed := make(chan string, 1), make(chan error, 1)
	inBackground(t, func(ctx context.Context) error {
		err := stock.Serve(ctx, stock.Config{
			Address: "127.0.0.1:0", SharedSecret: strings.Repeat("A", 43) + "=", StorageType: "postgres",
			StorageConnectionString: database, GracePeriod: time.Second,
		}, func(address string) { ready <- address })
		failed <- err
		return err
	})
	var address string
	select {
	case address = <-ready:
	case err := <-failed:
		t.Fatalf("Pomerium's own databroker does not start: %v", err)
	case <-time.After(patience):
		t.Fatal("Pomerium's own databroker does not start")
	}
	// It makes its pool at the first call.
	connection, err := pomeriumgrpc.NewGRPCClientConn(t.Context(), &pomeriumgrpc.Options{
		Address: address, SignedJWTKey: make([]byte, 32),
	}, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer func() { _ = connection.Close() }()
	_, err = databrokerpb.NewDataBrokerServiceClient(connection).ServerInfo(deadline(t), new(emptypb.Empty))
	must(t, err)
	// What Pomerium shows at its metrics address is this registry.
	registry := httptest.NewServer(promhttp.Handler())
	defer registry.Close()

	// Free now, and nobody else is given it so soon after.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address = listener.Addr().String()
	must(t, listener.Close())
	t.Setenv("METRICS_ADDRESS", address)
	t.Setenv("DATABROKER_HOSTS", "1")
	target.Start(t, target.Options{})

	theirs, ours := scrape(t, registry.URL), scrape(t, "http://"+address+"/metrics")
	if len(theirs) == 0 {
		t.Fatal("Pomerium tells nothing of its pool")
	}
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		t.Logf("%s: %+v", name, theirs[name])
	}
	if !maps.Equal(theirs, ours) {
		t.Errorf("Pomerium tells of its pool\n%+v\nand the host\n%+v", theirs, ours)
	}
}

// family is what is told of one metric.
type family struct {
	// kind is counter or gauge.
	kind string
	// labels with their values, where the name of the database stands for any.
	labels string
}

var (
	// database is the end of a pool's name.
	databaseName = regexp.MustCompile(`/pomerium_[0-9_]+"`)
	sample       = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? \S+$`)
)

// scrape reads what is told of a pool.
func scrape(t *testing.T, url string) map[string]family {
	t.Helper()
	response, err := http.Get(url)
	must(t, err)
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	must(t, err)
	kinds, families := make(map[string]string), make(map[string]family)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if words := strings.Fields(line); len(words) == 4 && words[1] == "TYPE" {
			kinds[words[2]] = words[3]
		}
		if match := sample.FindStringSubmatch(line); match != nil && strings.HasPrefix(match[1], pool) {
			labels := strings.Split(match[2], ",")
			slices.Sort(labels)
			families[match[1]] = family{kinds[match[1]], databaseName.ReplaceAllString(strings.Join(labels, ","), `/database"`)}
		}
	}
	return families
}
