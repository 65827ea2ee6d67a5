//go:build embed_pomerium

package pomerium

import (
	"os"
	"strings"
	"testing"
	"time"

	"databroker-host/tests/pomerium/remote"
	"databroker-host/tests/pomerium/target"

	"github.com/pomerium/pomerium/pkg/storage/storagetest"
)

// backend starts a server and returns it as one of Pomerium's storages.
func backend(t testing.TB, options target.Options) *remote.Backend {
	t.Helper()
	return remote.New(target.Start(t, options).Dial(), options.History)
}

// TestStorage runs the tests that Pomerium has for its own storages.
func TestStorage(t *testing.T) {
	t.Run("Backend", func(t *testing.T) { storagetest.TestBackend(t, backend(t, target.Options{})) })
	t.Run("Indexing", func(t *testing.T) {
		translated := remote.Translated{Backend: backend(t, target.Options{})}
		if target.Stock() {
			storagetest.TestIndexing(t, translated)
		} else {
			storagetest.TestIndexing(t, translated, storagetest.WithPostgres())
		}
	})
	t.Run("Filter", func(t *testing.T) { storagetest.TestFilter(t, backend(t, target.Options{})) })
	t.Run("SyncOldRecords", func(t *testing.T) {
		target.SkipOnStock(t, "it keeps an hour of changes, fixed in its code")
		storagetest.TestSyncOldRecords(t, backend(t, target.Options{
			History: 2 * time.Second, CleanInterval: 50 * time.Millisecond,
		}))
	})
	t.Run("Clear", func(t *testing.T) { storagetest.TestClear(t, backend(t, target.Options{})) })
	t.Run("Registry", func(t *testing.T) { storagetest.TestRegistry(t, backend(t, target.Options{})) })
}

// BenchmarkStorage runs Pomerium's benchmark of a storage.
func BenchmarkStorage(b *testing.B) {
	b.Run("Put", func(b *testing.B) { storagetest.BenchmarkPut(b, backend(b, target.Options{})) })
}

// TestLimits prints what cannot be said over gRPC, and keeps the README's list of it complete.
func TestLimits(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	must(t, err)
	for _, limit := range remote.Limits {
		t.Logf("%s: %s; here: %s", limit.What, limit.Reason, limit.Instead)
		row := "| " + strings.Join([]string{limit.What, limit.Reason, limit.Instead}, " | ") + " |"
		if !strings.Contains(string(readme), row) {
			t.Errorf("the README's table of limits lacks this row:\n%s", row)
		}
	}
}
