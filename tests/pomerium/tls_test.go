//go:build embed_pomerium

package pomerium

import (
	"bytes"
	"context"
	"crypto/tls"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"databroker-host/tests/pomerium/target"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
)

// refused is how long a connection that must not come about is given to do so.
const refused = 2 * time.Second

// TestDerivedTLS shows that Pomerium's services with tls_derive trust the certificates that the server derives from the
// shared secret, and that nobody else does.
func TestDerivedTLS(t *testing.T) {
	target.SkipOnStock(t, "TLS is the business of Envoy there")
	for name, domain := range map[string]string{"domain": "databroker.example.com", "any_name": "*"} {
		t.Run(name, func(t *testing.T) {
			server := target.Start(t, target.Options{TLSDerive: domain})
			client := server.Client()
			version := putSession(t, client, "derived", "token")
			records := live(t, client, sessionType)
			if version == 0 || len(records) != 1 {
				t.Fatalf("version %d and records %v over TLS", version, records)
			}

			other, err := target.DerivedTLS(domain, bytes.Repeat([]byte{1}, 32))
			must(t, err)
			named, err := target.DerivedTLS(domain, server.Secret())
			must(t, err)
			named.ServerName = "other.example.com"
			options := map[string]grpc.DialOption{
				"another secret": grpc.WithTransportCredentials(credentials.NewTLS(other)),
				"another name":   grpc.WithTransportCredentials(credentials.NewTLS(named)),
				"no TLS":         grpc.WithTransportCredentials(insecure.NewCredentials()),
				"the system's authorities": grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
					ServerName: named.ServerName,
				})),
			}
			if domain == "*" {
				delete(options, "another name")
			}
			for reason, option := range options {
				ctx, cancel := context.WithTimeout(t.Context(), refused)
				_, err := server.Client(option).ServerInfo(ctx, new(emptypb.Empty))
				cancel()
				if err == nil {
					t.Errorf("the server is trusted in spite of %s", reason)
				}
			}
		})
	}
}

// TestDerivedTLSAfterRestart shows that a client that has connected once connects again: every start derives the same
// authority.
func TestDerivedTLSAfterRestart(t *testing.T) {
	target.SkipOnStock(t, "TLS is the business of Envoy there")
	server := target.Start(t, target.Options{TLSDerive: "databroker.example.com"})
	client := server.Client()
	info := func() string {
		ctx, cancel := context.WithTimeout(t.Context(), refused)
		defer cancel()
		if _, err := client.ServerInfo(ctx, new(emptypb.Empty)); err != nil {
			return err.Error()
		}
		return ""
	}
	eventually(t, info)
	server.Stop()
	server.StartAgain()
	eventually(t, info)
	_, err := databrokerpb.NewDataBrokerServiceClient(server.Dial()).ServerInfo(deadline(t), new(emptypb.Empty))
	must(t, err)
}
