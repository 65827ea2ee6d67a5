//go:build embed_pomerium

package pomerium

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"databroker-host/tests/pomerium/stock"
	"databroker-host/tests/pomerium/target"

	pomeriumgrpc "github.com/pomerium/pomerium/pkg/grpc"
	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	registrypb "github.com/pomerium/pomerium/pkg/grpc/registry"
	"github.com/pomerium/pomerium/pkg/grpc/session"
	"github.com/pomerium/pomerium/pkg/grpc/user"
	"github.com/pomerium/pomerium/pkg/identity"
	identitystate "github.com/pomerium/pomerium/pkg/identity/identity"
	"github.com/pomerium/pomerium/pkg/identity/manager"
)

// follow starts a stock server that follows the server under test and returns a connection to it.
func follow(t *testing.T, leader *target.Server, options ...manager.Option) *grpc.ClientConn {
	t.Helper()
	ready := make(chan string, 1)
	failed := make(chan error, 1)
	inBackground(t, func(ctx context.Context) error {
		err := stock.Serve(ctx, stock.Config{
			Address:         "127.0.0.1:0",
			SharedSecret:    base64.StdEncoding.EncodeToString(leader.Secret()),
			StorageType:     "memory",
			LeaderAddress:   leader.Address(),
			IdentityManager: len(options) > 0,
			ManagerOptions:  options,
			GracePeriod:     time.Second,
		}, func(address string) { ready <- address })
		failed <- err
		return err
	})
	select {
	case address := <-ready:
		connection, err := pomeriumgrpc.NewGRPCClientConn(t.Context(), &pomeriumgrpc.Options{
			Address: address, SignedJWTKey: leader.Secret(),
		})
		must(t, err)
		t.Cleanup(func() { _ = connection.Close() })
		return connection
	case err := <-failed:
		t.Fatalf("the follower did not start: %v", err)
	case <-time.After(patience):
		t.Fatalf("the follower did not start within %v", patience)
	}
	return nil
}

func fieldMask(t *testing.T, paths ...string) *fieldmaskpb.FieldMask {
	t.Helper()
	mask, err := fieldmaskpb.New(new(session.Session), paths...)
	must(t, err)
	return mask
}

// onReplica makes a call that a follower answers from its own copy of the leader's records.
func onReplica(t *testing.T) context.Context {
	t.Helper()
	return databrokerpb.WithOutgoingClusterRequestMode(deadline(t), databrokerpb.ClusterRequestModeLocal)
}

// optionsOf reads a type's options from SyncLatest, since a follower does not answer GetOptions from its own copy.
func optionsOf(
	ctx context.Context, client databrokerpb.DataBrokerServiceClient, recordType string,
) (options *databrokerpb.Options, err error) {
	stream, err := client.SyncLatest(ctx, &databrokerpb.SyncLatestRequest{Type: recordType})
	if err != nil {
		return nil, err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return options, nil
		} else if err != nil {
			return nil, err
		}
		if typed := response.GetOptions(); typed.GetTypeURL() == recordType {
			options = typed.GetOptions()
		}
	}
}

// TestFollowerForwards makes calls to a stock follower, which must have the same effect as calls to its leader.
func TestFollowerForwards(t *testing.T) {
	leader := target.Start(t, target.Options{})
	direct := leader.Client()
	connection := follow(t, leader)
	forwarded := databrokerpb.NewDataBrokerServiceClient(connection)

	putSession(t, forwarded, "written through the follower", "a")
	found, err := session.Get(deadline(t), direct, "written through the follower")
	must(t, err)
	if found.GetOauthToken().GetAccessToken() != "a" {
		t.Errorf("the leader has %v", found)
	}
	version := putSession(t, direct, "written to the leader", "a")
	response, err := forwarded.Query(deadline(t), byID("written to the leader", version))
	must(t, err)
	if len(response.GetRecords()) != 1 || response.GetRecords()[0].GetVersion() != version {
		t.Errorf("a query through the follower finds %v", response.GetRecords())
	}
	if response.GetRecordVersion() < version {
		t.Errorf("the query's record version %d is older than the record's %d", response.GetRecordVersion(), version)
	}

	_, err = session.Patch(deadline(t), forwarded, &session.Session{
		Id: "written to the leader", OauthToken: &session.OAuthToken{AccessToken: "patched"},
	}, fieldMask(t, "oauth_token"))
	must(t, err)
	if found, err = session.Get(deadline(t), direct, "written to the leader"); err != nil ||
		found.GetOauthToken().GetAccessToken() != "patched" {
		t.Errorf("after a patch through the follower the leader has %v, %v", found, err)
	}

	synced := collect(t, forwarded, sessionType)
	putSession(t, direct, "streamed", "a")
	eventually(t, func() string { return synced.view().difference(live(t, direct, sessionType)) })
	eventually(t, func() string {
		if synced.view()["streamed"] == nil {
			return "a stream through the follower lacks a record written to the leader"
		}
		return ""
	})

	request := &databrokerpb.AcquireLeaseRequest{Name: "lease", Duration: durationpb.New(time.Minute)}
	_, err = forwarded.AcquireLease(deadline(t), request)
	must(t, err)
	if _, err := direct.AcquireLease(deadline(t), request); status.Code(err) != codes.AlreadyExists {
		t.Errorf("a lease taken through the follower was given again by the leader: %v", err)
	}

	services := []*registrypb.Service{{Kind: registrypb.ServiceKind_PROMETHEUS_METRICS, Endpoint: "http://metrics"}}
	reported, err := registrypb.NewRegistryClient(connection).Report(deadline(t), &registrypb.RegisterRequest{
		Services: services,
	})
	must(t, err)
	if reported.GetCallBackAfter().AsDuration() <= 0 {
		t.Errorf("a reporter is told to call back after %v, on which it would never rest", reported.GetCallBackAfter())
	}
	list, err := registrypb.NewRegistryClient(leader.Dial()).List(deadline(t), &registrypb.ListRequest{
		Kinds: []registrypb.ServiceKind{registrypb.ServiceKind_PROMETHEUS_METRICS},
	})
	must(t, err)
	if !proto.Equal(list, &registrypb.ServiceList{Services: services}) {
		t.Errorf("the leader lists %v", list)
	}

	before, err := direct.ServerInfo(deadline(t), new(emptypb.Empty))
	must(t, err)
	cleared, err := forwarded.Clear(deadline(t), new(emptypb.Empty))
	must(t, err)
	if cleared.GetOldServerVersion() != before.GetServerVersion() ||
		cleared.GetNewServerVersion() == before.GetServerVersion() || cleared.GetNewServerVersion() == 0 {
		t.Errorf("Clear went from %d to %d, the server was at %d", cleared.GetOldServerVersion(),
			cleared.GetNewServerVersion(), before.GetServerVersion())
	}
	putSession(t, forwarded, "after clear", "a")
	eventually(t, func() string { return synced.view().difference(live(t, direct, sessionType)) })
}

// TestFollowerReplicates checks the copy that a stock follower keeps of its leader's records and options.
func TestFollowerReplicates(t *testing.T) {
	leader := target.Start(t, target.Options{})
	client := leader.Client()
	putSession(t, client, "before", "a")
	setOptions := func(options *databrokerpb.Options) {
		t.Helper()
		_, err := client.SetOptions(deadline(t), &databrokerpb.SetOptionsRequest{Type: sessionType, Options: options})
		must(t, err)
	}
	first := &databrokerpb.Options{Capacity: proto.Uint64(100), IndexableFields: []string{"user_id"}}
	setOptions(first)

	replica := databrokerpb.NewDataBrokerServiceClient(follow(t, leader))
	replicated := func(when string) {
		t.Helper()
		eventually(t, func() string {
			copied, _, _, _, err := databrokerpb.InitialSync(onReplica(t), replica, &databrokerpb.SyncLatestRequest{
				Type: sessionType,
			})
			if err != nil {
				return fmt.Sprintf("%s: %v", when, err)
			}
			known := make(view)
			known.apply(copied)
			if difference := known.difference(live(t, client, sessionType)); difference != "" {
				return fmt.Sprintf("%s the copy differs: %s", when, difference)
			}
			return ""
		})
	}
	optionsBecome := func(wanted *databrokerpb.Options) {
		t.Helper()
		eventually(t, func() string {
			options, err := optionsOf(onReplica(t), replica, sessionType)
			if err != nil || !proto.Equal(options, wanted) {
				return fmt.Sprintf("the copy's options are %v, %v instead of %v", options, err, wanted)
			}
			return ""
		})
	}
	replicated("at the start")
	optionsBecome(first)

	putSession(t, client, "streamed", "a")
	must(t, session.Delete(deadline(t), client, "before"))
	replicated("after changes")

	_, err := client.Clear(deadline(t), new(emptypb.Empty))
	must(t, err)
	putSession(t, client, "after clear", "a")
	replicated("after Clear")

	t.Run("options that change later", func(t *testing.T) {
		target.SkipOnStock(t, "it sends options only when a stream starts")
		second := &databrokerpb.Options{Capacity: proto.Uint64(2)}
		setOptions(second)
		for i := range 4 {
			putSession(t, client, fmt.Sprint("evicted ", i), "a")
		}
		if left := len(live(t, client, sessionType)); left != 2 {
			t.Errorf("a capacity of 2 left %d records", left)
		}
		optionsBecome(second)
		replicated("after evictions")
	})
}

// provider is an identity provider that hands out new tokens.
type provider struct {
	identity.Authenticator
	// refreshes counts the tokens.
	refreshes atomic.Int64
	// refused is an access token that is not renewed any more.
	refused string
}

func (p *provider) Refresh(_ context.Context, old *oauth2.Token, _ identitystate.State) (*oauth2.Token, error) {
	if old.AccessToken == p.refused {
		return nil, errors.New("this session was revoked")
	}
	return &oauth2.Token{
		AccessToken:  fmt.Sprint("renewed ", p.refreshes.Add(1)),
		RefreshToken: old.RefreshToken,
		TokenType:    "Bearer",
		Expiry:       time.Now().Add(time.Hour),
	}, nil
}

func (p *provider) Revoke(context.Context, *oauth2.Token) error { return nil }

func (p *provider) UpdateUserInfo(_ context.Context, _ *oauth2.Token, into any) error {
	return json.Unmarshal([]byte(`{"name":"Renewed Name","email":"renewed@example.com","groups":["renewed"]}`), into)
}

// TestFollowerRefreshesSessions runs Pomerium's identity manager in a stock follower: it must find the sessions on the
// server under test and write the new tokens there.
func TestFollowerRefreshesSessions(t *testing.T) {
	leader := target.Start(t, target.Options{})
	client := leader.Client()
	accessed := timestamppb.New(time.Now().Add(-time.Minute).Truncate(time.Second))
	expiring := func(id, token string) *session.Session {
		return &session.Session{
			Id: id, UserId: "user", IdpId: "provider", AccessedAt: accessed,
			ExpiresAt: timestamppb.New(time.Now().Add(time.Hour)),
			OauthToken: &session.OAuthToken{
				AccessToken: token, RefreshToken: "refresh", ExpiresAt: timestamppb.New(time.Now().Add(2 * time.Second)),
			},
		}
	}
	_, err := databrokerpb.Put(deadline(t), client, &user.User{Id: "user", Name: "Old Name"}, expiring("before", "old"))
	must(t, err)

	idp := &provider{refused: "revoked"}
	follow(t, leader,
		manager.WithCachedGetAuthenticator(func(context.Context, string) (identity.Authenticator, error) {
			return idp, nil
		}),
		manager.WithSessionRefreshCoolOffDuration(100*time.Millisecond),
	)

	refreshed := func(id string) {
		t.Helper()
		eventually(t, func() string {
			found, err := session.Get(deadline(t), client, id)
			must(t, err)
			if token := found.GetOauthToken(); token.GetAccessToken() == "old" {
				return fmt.Sprintf("session %q still has its old token", id)
			}
			if !proto.Equal(found.GetAccessedAt(), accessed) || found.GetUserId() != "user" {
				t.Errorf("the refresh changed more than the token: %v", found)
			}
			if found.GetOauthToken().GetExpiresAt().AsTime().Before(time.Now().Add(30 * time.Minute)) {
				t.Errorf("the new token expires at %v", found.GetOauthToken().GetExpiresAt().AsTime())
			}
			if groups := found.GetClaims()["groups"].GetValues(); len(groups) != 1 || groups[0].GetStringValue() != "renewed" {
				t.Errorf("the session's claims are %v", found.GetClaims())
			}
			return ""
		})
	}
	refreshed("before")
	if _, err := client.AcquireLease(deadline(t), &databrokerpb.AcquireLeaseRequest{
		Name: "identity_manager", Duration: durationpb.New(time.Second),
	}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the identity manager of the follower holds no lease on the server: %v", err)
	}

	// A login while the manager runs reaches it by its stream.
	_, err = databrokerpb.Put(deadline(t), client, expiring("later", "old"))
	must(t, err)
	refreshed("later")
	eventually(t, func() string {
		found := &user.User{Id: "user"}
		must(t, databrokerpb.Get(deadline(t), client, found))
		if found.GetName() != "Renewed Name" || found.GetEmail() != "renewed@example.com" {
			return fmt.Sprintf("the user is still %v", found)
		}
		return ""
	})

	// A session that the provider refuses is deleted on the server.
	_, err = databrokerpb.Put(deadline(t), client, expiring("revoked", "revoked"))
	must(t, err)
	eventually(t, func() string {
		if _, err := session.Get(deadline(t), client, "revoked"); status.Code(err) != codes.NotFound {
			return fmt.Sprintf("the session that the provider refused is still there: %v", err)
		}
		return ""
	})
}
