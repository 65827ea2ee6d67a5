//go:build !embed_pomerium

package pomerium

import "testing"

// TestTag tells why nothing else was tested: Pomerium's module lacks the files it embeds unless this tag is given.
func TestTag(t *testing.T) {
	t.Fatal("nothing was tested: run `go test -tags embed_pomerium ./...`, or set GOFLAGS=-tags=embed_pomerium")
}
